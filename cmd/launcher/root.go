package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/sanitize"
)

// program is one invocation and all that it may touch of the process.
type program struct {
	args    []string
	environ []string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer

	// The clock; nil, as everywhere but in tests: the machine's.
	now   func() time.Time
	sleep func(context.Context, time.Duration) error
	// patience is how long nothing may be said while something is waited for; 0: 5 s.
	patience time.Duration
	goos     string // the operating system; empty: this one

	introduced atomic.Bool // the log says which launcher this is
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
	p.tell(err)
	return exit.Of(err)
}

// tell prints an error.
func (p *program) tell(err error) {
	reasons, attachment := exit.Tell(err)
	if p.jsonErrors() {
		var failed *launch.StepError
		attributes := []any{"code", exit.Of(err).Name(), "exit_code", int(exit.Of(err))}
		if errors.As(err, &failed) {
			attributes = append(attributes, "step", failed.Step)
		}
		attributes = append(attributes, "hints", clean(exit.Hints(err)))
		if len(reasons) > 1 {
			attributes = append(attributes, "reasons", clean(reasons))
		}
		if attachment != "" {
			attributes = append(attributes, "attachment", sanitize.Lines(attachment, sanitize.MaxLine))
		}
		p.logger(p.stderr, true, slog.LevelError).Error(strings.Join(clean(reasons), "; "), attributes...)
		return
	}
	for _, reason := range reasons {
		fmt.Fprintf(p.stderr, "error: %s\n", sanitize.Line(reason, sanitize.MaxLine))
	}
	if attachment != "" {
		fmt.Fprintf(p.stderr, "\n%s\n\n", strings.TrimRight(attachment, "\n"))
	}
	for _, hint := range exit.Hints(err) {
		fmt.Fprintf(p.stderr, "hint: %s\n", sanitize.Line(hint, sanitize.MaxLine))
	}
}

func clean(lines []string) []string {
	cleaned := make([]string, 0, len(lines))
	for _, line := range lines {
		cleaned = append(cleaned, sanitize.Line(line, sanitize.MaxLine))
	}
	return cleaned
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
		Example: `  # in a compose file that is measured: what it says is all that is needed
  PLATFORM=TEE DOCKER_CONTENT_TRUST=1 DEFAULT_IMAGE_DIGEST=sha256:… launcher
  # would it succeed?
  PLATFORM=TEE DOCKER_CONTENT_TRUST=1 DEFAULT_IMAGE_DIGEST=sha256:… \
      launcher verify`,
		Args:          noArguments,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	// Cobra's own flag would link text/template, and with it whatever a template could call: 2.5 MB.
	showVersion := root.Flags().Bool("version", false, "print the version, as `launcher version` does")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *showVersion {
			_, err := io.WriteString(p.stdout, thisBuild().line())
			return err
		}
		return o.runRun(cmd, args)
	}
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(p.printHelp)
	root.AddCommand(o.newCmd(), p.newPullCmd(), p.newVerifyCmd(), p.newDigestCmd(), p.newRenderCmd(), p.newRTMR3Cmd(), p.newStatusCmd(), p.newVersionCmd())
	addSettings(root)
	for _, cmd := range root.Commands() {
		if slices.ContainsFunc(table(), func(row setting) bool { return row.usedBy(cmd) }) {
			addSettings(cmd)
		}
	}
	// Cobra's own says nothing of a command that there isn't.
	root.SetHelpCommand(&cobra.Command{
		Use: "help [command]", Short: "Print the help of a command",
		RunE: func(_ *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			if err == nil {
				err = noArguments(about, rest)
			}
			if err != nil {
				return err
			}
			return about.Help()
		},
	})
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args, cmd.RunE = noArguments, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			for _, shell := range cmd.Commands() {
				shell.Args = noArguments // cobra's own mistake has no exit code
			}
		}
	}
	return root
}

// needsLinux is why what acts doesn't on another system: there is no CVM, and no engine that runs
// natively.
func (p *program) needsLinux(cmd *cobra.Command) error {
	if cmp.Or(p.goos, runtime.GOOS) == "linux" {
		return nil
	}
	return &exit.Error{
		Code: exit.Usage, Err: fmt.Errorf("`%s` needs Linux", cmd.CommandPath()),
		Hint: []string{"on this machine `launcher verify --skip agent,engine,compose,host`, " +
			"`launcher render`, `launcher digest`, `launcher status` and `launcher rtmr3 --event-log` work"},
	}
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command or argument %.100q", args[0])
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	if name, near := config.Near(args[0], names...); near {
		return usageError(cmd, err, fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), name))
	}
	return usageError(cmd, err)
}

// flagError is a mistake in a flag.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return usageError(cmd, err)
	}
	name := unknown.GetSpecifiedName()
	for _, row := range table() {
		if row.flag == name {
			return usageError(cmd, err, fmt.Sprintf("--%s belongs to %s", name, strings.Join(row.commands, ", ")))
		}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if nearest, near := config.Near(name, names...); near {
		return usageError(cmd, err, fmt.Sprintf("did you mean --%s?", nearest))
	}
	return usageError(cmd, err)
}

// usageError is a mistake on the command line or in the environment.
func usageError(cmd *cobra.Command, err error, hints ...string) error {
	return &exit.Error{Code: exit.Usage, Err: err, Hint: append(hints, fmt.Sprintf("see `%s --help`", cmd.CommandPath()))}
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
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}
