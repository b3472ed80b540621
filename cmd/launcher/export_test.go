package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/status"
)

// Run is the whole program for tests, without a process.
func Run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) exit.Code {
	var c clock
	p := program{
		args: args, environ: environ, stdin: stdin, stdout: stdout, stderr: stderr,
		now: c.now, sleep: c.sleep,
	}
	return p.run(ctx)
}

// RunOn is Run on another operating system.
func RunOn(ctx context.Context, goos string, args []string, stdout, stderr io.Writer) exit.Code {
	p := program{
		args: args, stdin: strings.NewReader(""), stdout: stdout, stderr: stderr, goos: goos,
	}
	return p.run(ctx)
}

// clock passes where the program sleeps, and at once: what it waits for is others' to test.
type clock struct{ slept atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.slept.Load())) }

func (c *clock) sleep(ctx context.Context, d time.Duration) error {
	c.slept.Add(int64(d))
	return context.Cause(ctx)
}

// Generated returns the sections of the README that come from tables.
func Generated() map[string]string {
	var settings, codes strings.Builder
	settings.WriteString("| flag | environment | default | |\n|---|---|---|---|\n")
	for _, row := range table() {
		fallback := "none"
		if row.required {
			fallback = "required"
		} else if row.fallback != "" {
			fallback = "`" + row.fallback + "`"
		}
		fmt.Fprintf(&settings, "| `--%s` | `%s` | %s | %s |\n", row.flag, row.env, fallback, row.usage())
	}
	codes.WriteString("| code | name | meaning | what helps |\n|---|---|---|---|\n")
	for _, c := range exit.Classes() {
		fmt.Fprintf(&codes, "| %d | %s | %s | %s |\n", c.Code, c.Name, c.Meaning, c.Helps)
	}
	var findings strings.Builder
	findings.WriteString("| code | means |\n|---|---|\n")
	for _, c := range preflight.Codes() {
		fmt.Fprintf(&findings, "| `%s` | %s |\n", c.Code, c.Meaning)
	}
	var metrics strings.Builder
	metrics.WriteString("| metric | type | |\n|---|---|---|\n")
	for _, m := range status.AllMetrics() {
		fmt.Fprintf(&metrics, "| `%s` | %s | %s |\n", m.Name, m.Type, m.Help)
	}
	return map[string]string{
		"settings": settings.String(), "exit codes": codes.String(), "verify codes": findings.String(),
		"metrics": metrics.String(),
	}
}

// ReportText is what verify prints for a report.
func ReportText(r *preflight.Report, colour bool) string { return reportText(r, colour) }

// Colourful reports whether verify would print colours.
func Colourful(stdout io.Writer, environ []string) bool {
	return (&program{stdout: stdout, environ: environ}).colourful()
}

// Pty is a pseudo-terminal: what a program sees of it, and its other end.
type Pty struct{ Terminal, Master *os.File }

// NewPty opens a pseudo-terminal.
func NewPty(t testing.TB) Pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { terminal.Close() })
	return Pty{terminal, master}
}

// Resize gives it so many columns.
func (p Pty) Resize(t testing.TB, columns int) {
	t.Helper()
	require.NoError(t, unix.IoctlSetWinsize(int(p.Master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(columns)}))
}

// Setting names a row of the table.
type Setting struct{ Flag, Env string }

// Settings returns the rows of the table.
func Settings() []Setting {
	var rows []Setting
	for _, row := range table() {
		rows = append(rows, Setting{row.flag, row.env})
	}
	return rows
}

// Impatient is Run for a program that says soon what it waits for, and whose clock is the machine's.
func Impatient(ctx context.Context, patience time.Duration, args, environ []string, stdout, stderr io.Writer) exit.Code {
	p := program{
		args: args, environ: environ, stdin: strings.NewReader(""), stdout: stdout, stderr: stderr, patience: patience,
	}
	return p.run(ctx)
}

// Console is a console with its log, at a step.
type Console struct {
	*console
	Context context.Context
	Over    func()
}

// NewConsole returns the console that a program with this standard error, environment and command
// line has.
func NewConsole(t testing.TB, stderr io.Writer, environ []string, args ...string) Console {
	t.Helper()
	p := &program{stderr: stderr, environ: environ}
	cmd, rest, err := p.newRootCmd().Find(args)
	require.NoError(t, err)
	require.NoError(t, cmd.ParseFlags(rest))
	cmd.SetContext(t.Context())
	s, err := p.read(cmd)
	require.NoError(t, err)
	ctx, c, over := p.attend(cmd, s)
	return Console{c, ctx, over}
}

// Log is the console's.
func (c Console) Log() *slog.Logger { return c.log }

// Main is what a process of its own does.
func Main() { main() }

// Line is what would be drawn on a terminal now.
func (c Console) Line() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	what, since := c.wait()
	return c.line(time.Now(), what, since)
}

// Tick has the console look what there is to say.
func (c Console) Tick() { c.tick() }

// Commands returns the names of the commands, completion's included.
func Commands() []string {
	var names []string
	for _, c := range new(program).newRootCmd().Commands() {
		names = append(names, c.Name())
	}
	return names
}

// HelpExamples returns the examples of a command; of the launcher without one, where it is empty.
func HelpExamples(command string) string {
	cmd, _, err := new(program).newRootCmd().Find(strings.Fields(command))
	if err != nil {
		panic(err)
	}
	return cmd.Example
}

// ParseSize is for tests.
func ParseSize(text string) (int64, error) { return parseSize(text) }

// ParseWait is for tests.
func ParseWait(text string) (time.Duration, error) { return parseWait(text) }

// Results returns what commands print with -o json, as Go has it, by their names.
func Results() map[string]any {
	return map[string]any{digests: described{}, rtmr3: replay{}, "version": build{}}
}

// Watching is Run with a sleep of the test's.
func Watching(ctx context.Context, args []string, stdout io.Writer, sleep func(context.Context, time.Duration) error) exit.Code {
	p := program{args: args, stdin: strings.NewReader(""), stdout: stdout, stderr: io.Discard, sleep: sleep}
	return p.run(ctx)
}
