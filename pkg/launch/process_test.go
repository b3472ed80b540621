package launch_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/stage"
)

// TestMain lets the test binary play Compose, which the launcher runs as a process, and the
// launcher, which some tests kill.
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
	Settings admission.Settings
	Stage    stage.Settings
	Look     bool // at the engine's disk, which is half full
	BootID   string
	Proc     string
	Halt     int // the number of the log line at which it stands still, after printing it; 0: never
	Waits    int // between attempts that pass at once
}

// launcherMain is the launcher. Its log goes to standard output as JSON, the error to standard
// error. It stands still where it would sleep for a second or more: whoever wants to see what comes
// then runs it in the test's own process.
func launcherMain() int {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, "order:", err)
		return 125
	}
	var c clock
	log := slog.New(slog.NewJSONHandler(&halting{w: os.Stdout, at: o.Halt}, nil))
	l := launch.Launcher{
		Settings: o.Settings, Stage: o.Stage, Log: log, Output: os.Stderr, BootID: o.BootID, Proc: o.Proc,
		Now: c.Now,
		Sleep: func(ctx context.Context, d time.Duration) error {
			if d >= launch.Pause(0, false)/2 && o.Waits > 0 {
				o.Waits--
			} else if d >= time.Second {
				<-ctx.Done()
			}
			return c.Sleep(ctx, d)
		},
	}
	if o.Look {
		l.Disk = halfFull
	}
	err := l.Run(context.Background())
	complain(os.Stderr, err)
	return int(exit.Of(err))
}

// complain prints an error as the command does.
func complain(w io.Writer, err error) {
	if err == nil {
		return
	}
	fmt.Fprintln(w, "error:", err)
	for _, hint := range exit.Hints(err) {
		fmt.Fprintln(w, "hint:", hint)
	}
}

// halting stands still after a line: everybody who logs there waits to be killed.
type halting struct {
	w     io.Writer
	at    int
	mu    sync.Mutex
	lines int
}

func (h *halting) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.w.Write(p)
	if h.lines++; h.lines == h.at {
		select {}
	}
	return n, err
}

// message returns what a line of the JSON log says, and of which step.
func message(line []byte) string {
	var l struct{ Msg, Step string }
	if json.Unmarshal(line, &l) != nil {
		return "not JSON: " + string(line)
	}
	return strings.TrimSpace(l.Msg + " " + l.Step)
}

// process is a launcher that runs.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}

	mu  sync.Mutex
	log []string // messages
}

// start starts a launcher on the machine that stands still at a line of its log; 0: at none.
func (w *world) start(halt int) *process {
	w.t.Helper()
	data, err := json.Marshal(order{w.settings, w.stage, w.disk != nil, w.bootID, w.proc, halt, w.waits})
	require.NoError(w.t, err)
	p := &process{t: w.t, cmd: exec.Command(os.Args[0], "launcher"), ended: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stderr = bytes.NewReader(data), &p.stderr
	// What is killed leaves something there.
	p.cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(w.AgentSocket))
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(w.t, err)
	require.NoError(w.t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.mu.Lock()
			p.log = append(p.log, message(lines.Bytes()))
			p.mu.Unlock()
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
	if !await(p.ended, holds) {
		p.kill()
		require.Fail(p.t, "the launcher takes too long", "%v\n%s", p.messages(), &p.stderr)
	}
	return holds()
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
