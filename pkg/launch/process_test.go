package launch_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
)

// TestMain lets the test binary play Compose, which the launcher runs as a process, and the launcher, which some tests kill.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "compose-double" {
		syscall.Exit(launchtest.ComposeMain(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == "launcher" {
		syscall.Exit(launcherMain())
	}
	os.Exit(m.Run())
}

// order is what a launcher that runs as a process of its own is told, on its standard input.
type order struct {
	Settings launch.Settings
	Grace    time.Duration
	Patience time.Duration
	BootID   string
	SelfID   string
	// Halt is the number of the log line at which it stands still, after printing it; 0: never. HaltStep is the step before which it
	// does so until it gets SIGUSR1.
	Halt     int
	HaltStep string
}

// launcherMain is the launcher. Its log goes to standard output as JSON, the error to standard error.
func launcherMain() int {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, "order:", err)
		return 125
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		cancel(&exit.Error{Code: exit.Terminated, Err: errors.New("ended by signal")})
	}()
	resume := make(chan os.Signal, 1)
	signal.Notify(resume, syscall.SIGUSR1)
	log := slog.New(slog.NewJSONHandler(&halting{w: os.Stdout, at: o.Halt, step: o.HaltStep, resume: resume}, nil))
	l := launch.Launcher{Settings: o.Settings, Log: log, Output: os.Stderr, Grace: o.Grace, Patience: o.Patience, BootID: o.BootID, SelfID: o.SelfID}
	err := l.Run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		for _, hint := range exit.Hints(err) {
			fmt.Fprintln(os.Stderr, "hint:", hint)
		}
	}
	return int(exit.Of(err))
}

// halting stands still after a line: everybody who logs there waits to be killed.
type halting struct {
	w      io.Writer
	at     int
	step   string
	resume <-chan os.Signal
	mu     sync.Mutex
	lines  int
}

func (h *halting) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.w.Write(p)
	if h.lines++; h.lines == h.at {
		select {}
	}
	if h.step != "" && bytes.Contains(p, fmt.Appendf(nil, `"msg":"step started","step":%q`, h.step)) {
		<-h.resume
	}
	return n, err
}

// process is a launcher that runs.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}

	mu      sync.Mutex
	log     []string // messages
	changed chan struct{}
}

// start starts a launcher on the machine that stands still at a line of its log; 0: at none.
func (w *world) start(halt int) *process { return w.startWith(halt, "") }

func (w *world) startWith(halt int, step string) *process {
	w.t.Helper()
	data, err := json.Marshal(order{w.settings, 10 * time.Millisecond, w.patience, w.bootID, w.selfID, halt, step})
	require.NoError(w.t, err)
	p := &process{t: w.t, cmd: exec.Command(os.Args[0], "launcher"), ended: make(chan struct{}), changed: make(chan struct{}, 1)}
	p.cmd.Stdin, p.cmd.Stderr = bytes.NewReader(data), &p.stderr
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(w.t, err)
	require.NoError(w.t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var line struct{ Msg, Step string }
			if json.Unmarshal(lines.Bytes(), &line) != nil {
				line.Msg = "not JSON: " + lines.Text()
			}
			p.mu.Lock()
			p.log = append(p.log, strings.TrimSpace(line.Msg+" "+line.Step))
			p.mu.Unlock()
			select {
			case p.changed <- struct{}{}:
			default:
			}
		}
		_ = p.cmd.Wait()
	}()
	w.t.Cleanup(p.kill)
	return p
}

func (p *process) messages() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

// until waits until the condition holds or the launcher has ended, and tells which.
func (p *process) until(holds func() bool) bool {
	p.t.Helper()
	deadline := time.After(time.Minute)
	for !holds() {
		select {
		case <-p.ended:
			return holds()
		case <-p.changed:
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			p.kill()
			require.Fail(p.t, "the launcher takes too long", "%v\n%s", p.messages(), &p.stderr)
		}
	}
	return true
}

// supervises waits until the launcher supervises, or has ended.
func (p *process) supervises() bool {
	p.t.Helper()
	return p.until(func() bool { return slices.Contains(p.messages(), "supervising") })
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// end waits for the launcher's own end.
func (p *process) end() exit.Code {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		p.kill()
		require.Fail(p.t, "the launcher doesn't end", "%v\n%s", p.messages(), &p.stderr)
	}
	return exit.Code(p.cmd.ProcessState.ExitCode())
}

func (p *process) terminate() exit.Code {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	return p.end()
}

// boot runs a launcher until it ends or, killed then, supervises, which is as good as the end with 0 without supervision.
func (w *world) boot() exit.Code {
	w.t.Helper()
	p := w.start(0)
	if p.supervises() {
		p.kill()
		w.stderr = ""
		return exit.OK
	}
	w.stderr = p.stderr.String()
	return exit.Code(p.cmd.ProcessState.ExitCode())
}

func (w *world) mustBoot() {
	w.t.Helper()
	require.Equal(w.t, exit.OK, w.boot(), "%s", w.stderr)
}

// workload returns the workload's container on the double.
func (w *world) workload() launchtest.ContainerInfo {
	w.t.Helper()
	for _, c := range w.Engine.Containers() {
		if c.Name == "mpc-node" {
			return c
		}
	}
	assert.Fail(w.t, "there is no container mpc-node")
	return launchtest.ContainerInfo{}
}
