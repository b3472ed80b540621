package launch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
)

const (
	// bound is how long anything may take on the busiest of machines.
	bound = 4 * time.Minute
	// tick is how often a double is asked whether something has happened to it.
	tick = 2 * time.Millisecond
)

// await waits until the condition holds or the channel is closed, and returns false where neither
// happens.
func await(ended <-chan struct{}, holds func() bool) bool {
	ticker, late := time.NewTicker(tick), time.NewTimer(bound)
	defer ticker.Stop()
	defer late.Stop()
	for !holds() {
		select {
		case <-ended:
			return true
		case <-ticker.C:
		case <-late.C:
			return false
		}
	}
	return true
}

func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	require.True(w.t, await(nil, holds), "%s", what)
}

// asked reports whether the engine was asked for what begins so.
func (w *world) asked(request string) bool {
	return slices.ContainsFunc(w.Engine.Requests(), func(r string) bool {
		return strings.HasPrefix(r, request)
	})
}

// clock passes where the launcher sleeps and nowhere else, at once and by ten seconds at least, so
// that nothing is looked at more often than it has to be.
type clock struct {
	mu      sync.Mutex
	elapsed time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.elapsed)
}

func (c *clock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	c.elapsed += max(d, 10*time.Second)
	c.mu.Unlock()
	return context.Cause(ctx)
}

// watched is a launcher that runs in this process, so that its clock can be moved.
type watched struct {
	w       *world
	last    string               // the message at which it ends as if it were killed; empty: none
	once    bool                 // an attempt that fails is its end, with what it says of that
	onLine  func(message string) // called when it logs, before it goes on; nil: nothing is
	cancel  context.CancelCauseFunc
	naps    chan time.Duration
	minutes int // that passed
	ended   chan struct{}
	err     error        // once it ended
	output  bytes.Buffer // what it shows, and the error; once it ended

	mu    sync.Mutex
	log   []string        // messages
	lines [][]byte        // the same as they were written
	slept []time.Duration // since it supervises
}

// begin runs a launcher, as far as to that message where one is named.
func (w *world) begin(last string) *watched {
	ctx, cancel := context.WithCancelCause(w.t.Context())
	l := &watched{w: w, last: last, once: w.once, onLine: w.onLine, cancel: cancel}
	l.naps, l.ended = make(chan time.Duration), make(chan struct{})
	w.t.Cleanup(func() { cancel(nil); <-l.ended })
	launcher := launch.Launcher{
		Settings: w.settings, Stage: w.stage, Disk: w.disk, BootID: w.bootID, Proc: w.proc, Output: &l.output,
		Log: slog.New(l.handler()), Now: w.clock.Now, Sleep: l.sleep,
		Version: "v1.2.3", Temporary: w.temporary, MetricsListen: w.listen,
	}
	go func() {
		defer close(l.ended)
		l.err = launcher.Run(ctx)
		complain(&l.output, l.err)
	}()
	return l
}

// boot runs a launcher until it ends by itself, waits to try again, or is about to supervise, which is
// as good as the end with 0 without supervision. There it ends as if it were killed, though not without giving up
// its lock.
func (w *world) boot() exit.Code {
	w.t.Helper()
	last := ""
	if w.settings.Supervise != admission.SuperviseOff && w.settings.Platform == config.TEE {
		last = "step started supervise"
	}
	w.once = true
	l := w.begin(last)
	w.once = false
	err := l.end()
	w.stderr = l.output.String()
	return exit.Of(err)
}

func (w *world) mustBoot() {
	w.t.Helper()
	require.Equal(w.t, exit.OK, w.boot(), "%s", w.stderr)
}

// watch boots and waits until the workload is supervised, or the launcher has ended. What it sleeps
// from then on waits for nap.
func (w *world) watch() *watched {
	w.t.Helper()
	l := w.begin("")
	supervises := func() bool { return l.said("supervising") > 0 }
	require.True(w.t, await(l.ended, supervises), "it doesn't supervise: %q", l.messages())
	return l
}

// second is another launcher, which is told that the first one holds the lock.
func (w *world) second() error {
	var c clock
	l := launch.Launcher{Settings: w.settings, BootID: w.bootID, Now: c.Now, Sleep: c.Sleep}
	return l.Run(w.t.Context())
}

// Write takes the launcher's log.
func (l *watched) Write(p []byte) (int, error) {
	line := message(p)
	l.mu.Lock()
	l.log, l.lines = append(l.log, line), append(l.lines, bytes.Clone(p))
	l.mu.Unlock()
	if l.onLine != nil {
		l.onLine(line)
	}
	if line == l.last {
		runtime.Goexit()
	}
	return len(p), nil
}

// handler is that of its log, and its end where the first attempt that fails is.
func (l *watched) handler() slog.Handler {
	text := slog.NewJSONHandler(l, nil)
	if !l.once {
		return text
	}
	return &launchtest.Ender{Cancel: l.cancel, Next: text, Stays: true}
}

// failed is what that line says.
type failed struct {
	Attempt  int
	Step     admission.Step
	ExitCode exit.Code `json:"exit_code"`
	Error    string
	Hints    []string
	In       time.Duration
}

func (l *watched) failures() (all []failed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.HasPrefix(message(line), launchtest.TriesAgain) {
			var f failed
			assert.NoError(l.w.t, json.Unmarshal(line, &f))
			all = append(all, f)
		}
	}
	return all
}

func (l *watched) messages() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.log)
}

// line returns the first line whose message begins so, as it was written.
func (l *watched) line(text string) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.log, func(m string) bool { return strings.HasPrefix(m, text) })
	require.GreaterOrEqual(l.w.t, i, 0, "%q", text)
	return l.lines[i]
}

// said returns how many messages contain the text.
func (l *watched) said(text string) int {
	n := 0
	for _, m := range l.messages() {
		if strings.Contains(m, text) {
			n++
		}
	}
	return n
}

func (l *watched) sleep(ctx context.Context, d time.Duration) error {
	switch {
	case d < 100*time.Millisecond:
		// For the lock, which another process has to give up, whose time is the real one.
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
		return context.Cause(ctx)
	case l.said("supervising") == 0:
		if l.w.onNap != nil {
			l.w.onNap()
		}
		return l.w.clock.Sleep(ctx, d)
	}
	if l.w.stage.Mode != "" && d < 2*time.Second {
		return context.Cause(ctx) // of a pull that is tried again
	}
	l.mu.Lock()
	l.slept = append(l.slept, d)
	l.mu.Unlock()
	select {
	case l.naps <- d:
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

// nap waits until the launcher sleeps, for so long, and wakes it.
func (l *watched) nap(want time.Duration) {
	l.w.t.Helper()
	var got time.Duration
	woken := func() bool {
		select {
		case got = <-l.naps:
			return true
		default:
			return false
		}
	}
	require.True(l.w.t, await(l.ended, woken), "the launcher doesn't sleep: %q", l.messages())
	assert.Equal(l.w.t, want, got)
}

func (l *watched) sleeps() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.slept)
}

// end waits for the launcher's own end.
func (l *watched) end() error {
	l.w.t.Helper()
	never := func() bool { return false }
	require.True(l.w.t, await(l.ended, never), "the launcher doesn't end: %q", l.messages())
	return l.err
}

func (l *watched) terminate() error {
	l.w.t.Helper()
	l.signal()
	return l.end()
}

func (l *watched) signal() {
	l.cancel(&exit.Error{Code: exit.Terminated, Err: errors.New("ended by signal")})
}
