package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/sanitize"
)

// program is one invocation and all that it may touch of the process.
type program struct {
	args     []string
	environ  []string
	stdin    io.Reader
	stdout   io.Writer
	stderr   io.Writer
	terminal bool // stderr is one

	// The clock; nil, as everywhere but in tests: the machine's.
	now   func() time.Time
	sleep func(context.Context, time.Duration) error
}

// run executes the command line and prints the error, if any, once.
func (p *program) run(ctx context.Context) exit.Code {
	log.SetOutput(io.Discard) // net/http logs what a server says unasked, whatever that is
	root := p.newRootCmd()
	root.SetArgs(p.args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exit.OK
	}
	reasons, attachment := exit.Tell(err)
	for _, reason := range reasons {
		fmt.Fprintf(p.stderr, "error: %s\n", sanitize.Line(reason, sanitize.MaxLine))
	}
	if attachment != "" {
		fmt.Fprintf(p.stderr, "\n%s\n\n", strings.TrimRight(attachment, "\n"))
	}
	for _, hint := range exit.Hints(err) {
		fmt.Fprintf(p.stderr, "hint: %s\n", sanitize.Line(hint, sanitize.MaxLine))
	}
	return exit.Of(err)
}

func (p *program) newRootCmd() *cobra.Command {
	o := &runOpts{program: p}
	root := &cobra.Command{
		Use:   "launcher",
		Short: "Start the approved workload of a confidential VM, measured exactly once",
		Long: `launcher takes a list of approved manifest digests, pulls image@sha256:… and proves every
byte, streams the image into the local Docker engine, emits the digest once into RTMR3
through the dstack guest agent, writes the workload's config and starts it with Compose.

Without a command it does what "launcher run" does.`,
		Example: `  PLATFORM=TEE DOCKER_CONTENT_TRUST=1 DEFAULT_IMAGE_DIGEST=sha256:… launcher
  launcher verify                 # would it succeed?`,
		Args:          noArguments,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          o.runRun,
	}
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, err) })
	addSettings(root)
	root.AddCommand(o.newCmd(), p.newPullCmd(), p.newVerifyCmd(), p.newDigestCmd(), p.newRenderCmd(), p.newRTMR3Cmd(), p.newVersionCmd())
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			for _, shell := range cmd.Commands() {
				shell.Args = noArguments // cobra's own mistake has no exit code
			}
		}
	}
	return root
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError(cmd, fmt.Errorf("unknown command or argument %q", args[0]))
	}
	return nil
}

// usageError is a mistake on the command line or in the environment.
func usageError(cmd *cobra.Command, err error) error {
	return &exit.Error{Code: exit.Usage, Err: err, Hint: []string{fmt.Sprintf("see `%s --help`", cmd.CommandPath())}}
}

// output is the value of --output where a result is printed.
type output string

func (o *output) String() string { return string(*o) }
func (o *output) Type() string   { return "text|json" }
func (o *output) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("must be text or json")
	}
	*o = output(s)
	return nil
}

func addOutput(cmd *cobra.Command, o *output) {
	*o = "text"
	cmd.Flags().VarP(o, "output", "o", "how to print the result")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// printJSON prints a result as one JSON document.
func (p *program) printJSON(result any) error {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(result); err != nil {
		return err
	}
	_, err := p.stdout.Write(sanitize.JSON(b.Bytes()))
	return err
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
