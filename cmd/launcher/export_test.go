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
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/preflight"
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
	return map[string]string{"settings": settings.String(), "exit codes": codes.String(), "verify codes": findings.String()}
}

// ReportText is what verify prints for a report.
func ReportText(r *preflight.Report, colour bool) string { return reportText(r, colour) }

// Colourful reports whether verify would print colours.
func Colourful(stdout io.Writer, environ []string) bool {
	return (&program{stdout: stdout, environ: environ}).colourful()
}

// Pty returns the end of a pseudo-terminal that a program sees.
func Pty(t testing.TB) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	return slave
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

// NewProgress returns the progress that a setting asks for, drawn on w, and the screen that log lines share with it.
func NewProgress(setting string, terminal bool, w io.Writer) (launch.Progress, io.Writer) {
	s := &screen{w: w}
	p := newProgress(setting, terminal, s, slog.New(slog.NewTextHandler(s, nil)))
	if shown, ok := p.(*progress); ok {
		shown.interval = 0
	}
	return p, s
}
