// Command mpc-node stands in for the node in tests and in the demo: a small static program that is started the way the
// node is, shows by its log and by a file in /data what it was started with, and waits.
//
//	mpc-node start-with-config-file PATH
//
// Lines of the file at PATH, in whatever table they stand, choose how it behaves: exit_code = N and
// exit_after_ms = N make it end by itself (N milliseconds after the start, 0 if only the code is
// given), ignore_term = true makes it survive SIGTERM, and listen = PORT makes it answer TCP
// connections there: it says which start of it this is, having read its config, and whoever answers
// "exit N" ends it with that code. It reads just enough of TOML for that and does nothing else that
// a node does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const dataDir = "/data"

func main() {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	os.Exit(run(os.Args[1:], dataDir, terminated, os.Stdout, os.Stderr))
}

// run is the program without the process: it returns the exit code.
func run(args []string, data string, terminated <-chan os.Signal, stdout, stderr io.Writer) int {
	if len(args) != 2 || args[0] != "start-with-config-file" {
		fmt.Fprintln(stderr, "usage: mpc-node start-with-config-file PATH")
		return 2
	}
	config, err := readConfig(args[1])
	if err != nil {
		fmt.Fprintln(stderr, "mpc-node:", err)
		return 1
	}
	starts, err := recordStart(data)
	if err != nil {
		fmt.Fprintln(stderr, "mpc-node:", err)
		return 1
	}
	fmt.Fprintf(stdout, "mpc-node: start %d, image_hash = %q\n", starts, config.imageHash)

	ordered := make(chan int)
	if config.listens {
		listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", fmt.Sprintf(":%d", config.listen))
		if err != nil {
			fmt.Fprintln(stderr, "mpc-node:", err)
			return 1
		}
		defer listener.Close()
		go answer(listener, starts, ordered)
		fmt.Fprintf(stdout, "mpc-node: listening on port %d\n", listener.Addr().(*net.TCPAddr).Port)
	}

	var ended <-chan time.Time
	if config.ends {
		ended = time.After(config.exitAfter)
	}
	for {
		select {
		case <-ended:
			return config.exitCode
		case code := <-ordered:
			return code
		case <-terminated:
			if config.ignoreTerm {
				fmt.Fprintln(stdout, "mpc-node: ignoring SIGTERM")
				continue
			}
			fmt.Fprintln(stdout, "mpc-node: stopped")
			return 0
		}
	}
}

type config struct {
	imageHash  string
	ends       bool
	exitCode   int
	exitAfter  time.Duration
	ignoreTerm bool
	listens    bool
	listen     uint16 // 0: any
}

func readConfig(path string) (config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return config{}, err
	}
	var c config
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		key, value, assigned := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !assigned {
			continue // a table, a comment, a part of a longer value
		}
		if err := c.set(key, value); err != nil {
			return config{}, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
	}
	if c.imageHash == "" {
		return config{}, fmt.Errorf("%s: no image_hash", path)
	}
	return c, nil
}

func (c *config) set(key, value string) error {
	var err error
	switch key {
	case "image_hash":
		c.imageHash = strings.Trim(value, `"'`)
	case "exit_code":
		c.ends = true
		c.exitCode, err = strconv.Atoi(value)
	case "exit_after_ms":
		c.ends = true
		var ms int
		ms, err = strconv.Atoi(value)
		c.exitAfter = time.Duration(ms) * time.Millisecond
	case "ignore_term":
		c.ignoreTerm, err = strconv.ParseBool(value)
	case "listen":
		var port uint64
		port, err = strconv.ParseUint(value, 10, 16)
		c.listens, c.listen = true, uint16(port)
	}
	return err
}

// recordStart adds a line to the file of starts, so that a test sees which boot started it and that the volume was kept,
// and returns how many starts stand there now.
func recordStart(dir string) (int, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, err
	}
	path := filepath.Join(dir, "starts")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(f, "%s %s\n", strings.TrimSpace(string(boot)), time.Now().UTC().Format(time.RFC3339Nano))
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	lines, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strings.Count(string(lines), "\n"), nil
}

func answer(listener net.Listener, starts int, ordered chan<- int) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprintf(conn, "mpc-node: start %d\n", starts)
			var code int
			if _, err := fmt.Fscanf(conn, "exit %d\n", &code); err == nil {
				ordered <- code
			}
		}()
	}
}
