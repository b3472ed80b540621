// Command launcher starts the approved workload of a confidential VM, measured exactly once.
//
// It is thin: it turns flags and environment into settings, wires the packages together and prints. What is
// guaranteed stands in their comments.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"tee-launcher/pkg/exit"
)

// version is set by the linker for a release.
var version = "dev"

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // a reader of our log that ends must not end us in the middle of a measurement
	go func() {
		for s := range signals {
			cancel(&signalError{s})
		}
	}()
	p := program{
		args: os.Args[1:], environ: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
	}
	os.Exit(int(p.run(ctx)))
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal os.Signal }

func (e *signalError) Error() string { return "ended by signal: " + e.signal.String() }

func (e *signalError) ExitCode() exit.Code {
	if e.signal == syscall.SIGINT {
		return exit.Interrupted
	}
	return exit.Terminated
}
