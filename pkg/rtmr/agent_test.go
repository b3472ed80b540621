package rtmr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

const (
	// bound is how long anything may take on the busiest of machines.
	bound = time.Minute
	// tick is how often a double is asked whether something has happened to it.
	tick = time.Millisecond
)

// clock passes only where somebody sleeps, and where a call waits for an agent that hangs.
type clock struct {
	mu      sync.Mutex
	elapsed time.Duration
	naps    int
	onNap   func(nap int)   // called while it sleeps, from 1 on
	hung    func() int      // how many requests an agent let hang
	bounds  []time.Duration // of the calls
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(1e9, 0).Add(c.elapsed)
}

func (c *clock) sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	c.elapsed += d
	c.naps++
	nap := c.naps
	c.mu.Unlock()
	if c.onNap != nil {
		c.onNap(nap)
	}
	return context.Cause(ctx)
}

// withTimeout ends a call when the agent lets it hang, and not before: what is slow isn't late.
func (c *clock) withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	c.mu.Lock()
	c.bounds = append(c.bounds, d)
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, bound)
	if hung := c.hung; hung != nil {
		before := hung()
		go func() {
			if until(ctx, func() bool { return hung() > before }) {
				cancel()
			}
		}()
	}
	return ctx, cancel
}

// until waits until the condition holds, and returns false where the context ends before.
func until(ctx context.Context, holds func() bool) bool {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// hangs returns how many requests the agent has let hang.
func hangs(double *launchtest.Agent) func() int {
	return func() int {
		return double.Hits(launchtest.AgentHangs) + double.Hits(launchtest.AgentHangsDone) + double.Hits(launchtest.EmitLate)
	}
}

// socket returns a path that is short enough for one.
func socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rtmr")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "dstack.sock")
}

// agents starts a double and returns a client whose time passes at once.
func agents(t testing.TB, o launchtest.AgentOptions) (*launchtest.Agent, *rtmr.Agent, *clock) {
	t.Helper()
	double, err := launchtest.NewAgent(socket(t), o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, double.Close()) })
	c := &clock{hung: hangs(double)}
	return double, client(double.Socket(), c), c
}

func client(socket string, c *clock) *rtmr.Agent {
	return &rtmr.Agent{Socket: socket, Now: c.now, Sleep: c.sleep, WithTimeout: c.withTimeout}
}

// serve answers every request on a socket with a handler of the test's, for what the real agent
// never does.
func serve(t *testing.T, handler http.HandlerFunc) (agent *rtmr.Agent, connections *atomic.Int32) {
	t.Helper()
	path := socket(t)
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	connections = new(atomic.Int32)
	server := &http.Server{Handler: handler, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}}
	go server.Serve(listener)
	t.Cleanup(func() { assert.NoError(t, server.Close()) })
	return client(path, &clock{}), connections
}

func failed(t *testing.T, err error, fault rtmr.Fault, what string) *rtmr.AgentError {
	t.Helper()
	var e *rtmr.AgentError
	require.ErrorAs(t, err, &e, what)
	assert.Equal(t, fault, e.Fault, "%s: %v", what, err)
	assert.Equal(t, exit.Measurement, exit.Of(err), what)
	return e
}

func TestLogOfEveryRelease(t *testing.T) {
	t.Parallel()
	for _, release := range []string{"0.5.0", "0.5.8", "0.5.11", "0.6.0"} {
		double, agent, _ := agents(t, launchtest.AgentOptions{Release: release, AppCompose: goodAppCompose(t)})
		double.Emit(rtmr.EventName, unhex(t, measuredHex))
		log, err := agent.Log(t.Context())
		require.NoError(t, err, release)
		accepted(t, log, release)
		reported, ok := log.Reported()
		assert.True(t, ok, release)
		assert.Equal(t, double.RTMR3(), reported.String(), release)
		info, err := agent.Info(t.Context())
		assert.NoError(t, err, release)
		assert.Equal(t, goodAppCompose(t), info.AppCompose, release)
		assert.Equal(t, []string{"Info", "Info"}, double.Requests(), release)
		assert.Empty(t, double.Unexpected(), release)
	}
}

func TestCanEmit(t *testing.T) {
	t.Parallel()
	for _, release := range []string{"0.5.0", "0.5.8", "0.5.11"} {
		double, agent, _ := agents(t, launchtest.AgentOptions{Release: release})
		before := double.RTMR3()
		assert.NoError(t, agent.CanEmit(t.Context()), release)
		assert.Equal(t, before, double.RTMR3(), "%s: the probe measures nothing", release)
		assert.Zero(t, double.Emits(), release)
		assert.Equal(t, []string{"EmitEvent launcher-probe"}, double.Requests(), release)
		assert.Empty(t, double.Unexpected(), release)
	}

	double, agent, _ := agents(t, launchtest.AgentOptions{Release: "0.6.0"})
	e := failed(t, agent.CanEmit(t.Context()), rtmr.Missing, "0.6")
	assert.Contains(t, e.Message, "Service not found")
	assert.NotEmpty(t, exit.Hints(e))
	assert.Empty(t, double.Unexpected())
}

func TestCanEmitRefusesOtherAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		fault  rtmr.Fault
	}{
		"yes":                       {200, "null", rtmr.Malformed},
		"yes, empty":                {200, "", rtmr.Malformed},
		"400 in somebody's words":   {400, "<h1>Bad Request</h1>", rtmr.Malformed},
		"400 without words":         {400, "", rtmr.Malformed},
		"400 with an empty error":   {400, `{"error":""}`, rtmr.Malformed},
		"400 with another error":    {400, `{"error":{"code":1}}`, rtmr.Malformed},
		"404":                       {404, `{"error":"Service not found: EmitEvent"}`, rtmr.Malformed},
		"500":                       {500, `{"error":"panic"}`, rtmr.Malformed},
		"307":                       {307, "", rtmr.Malformed},
		"no such method":            {400, `{"error":"Service not found: EmitEvent"}`, rtmr.Missing},
		"no such method, protobuf?": {400, "\x0a\x1cService not found: EmitEvent", rtmr.Malformed},
		"endless words":             {400, `{"error":"` + strings.Repeat("x", 1<<20) + `"}`, rtmr.Malformed},
	} {
		agent, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://localhost/elsewhere")
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		})
		e := failed(t, agent.CanEmit(t.Context()), c.fault, name)
		assert.Equal(t, c.status, e.Status, name)
		assert.Less(t, len(e.Error()), 1000, "%s: the message stays short", name)
	}
}

func TestRequestsAsTheAgentWantsThem(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []string
	agent, connections := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprintf("%s %s %s close=%v %s", r.Method, r.URL, r.Header.Get("Content-Type"), r.Close, body))
		w.WriteHeader(400)
		io.WriteString(w, `{"error":"no"}`)
	})
	agent.Patience = time.Second
	assert.NoError(t, agent.CanEmit(t.Context()))
	_, err := agent.Log(t.Context())
	failed(t, err, rtmr.Refused, "Info")
	assert.Equal(t, []string{
		`POST /EmitEvent application/json close=true {"event":"launcher-probe","payload":"not hex"}`,
		`POST /Info application/json close=true {}`,
		`POST /Info application/json close=true {}`,
	}, seen)
	assert.EqualValues(t, 3, connections.Load(), "every request has a connection of its own")
}

func TestFaultsOfACall(t *testing.T) {
	t.Parallel()
	for kind, want := range map[launchtest.AgentFaultKind]rtmr.Fault{
		launchtest.AgentRefuses: rtmr.Refused, launchtest.AgentBreaks: rtmr.Malformed,
		launchtest.AgentDrops: rtmr.Lost, launchtest.AgentHangs: rtmr.Lost,
		launchtest.AgentLoses: rtmr.Lost, launchtest.AgentHangsDone: rtmr.Lost, launchtest.AgentGarbles: rtmr.Malformed,
		launchtest.AgentFloods: rtmr.Malformed, launchtest.QuoteFails: rtmr.Refused,
	} {
		for _, release := range []string{"0.5.8", "0.6.0"} {
			double, agent, c := agents(t, launchtest.AgentOptions{Release: release})
			agent.Patience = time.Second
			what := fmt.Sprintf("%s, %s", kind, release)
			double.Fail(launchtest.AgentFault{Kind: kind, Match: "Info", Times: -1})
			_, err := agent.Log(t.Context())
			e := failed(t, err, want, what)
			assert.Equal(t, "Info", e.Method, what)
			assert.Equal(t, kind == launchtest.QuoteFails && release == "0.5.8", errors.Is(err, rtmr.ErrUnknown), what)
			// Read again only where that can help, and for a bounded time.
			again := want == rtmr.Refused || want == rtmr.Lost
			assert.Equal(t, again, len(double.Requests()) == 2, "%s: %v", what, double.Requests())
			assert.Equal(t, again, c.elapsed == time.Second, "%s: slept %v", what, c.elapsed)
		}
	}
}

func TestUnreachableAgent(t *testing.T) {
	t.Parallel()
	double, agent, c := agents(t, launchtest.AgentOptions{})
	file := socket(t)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, double.Stop())
	for name, a := range map[string]*rtmr.Agent{
		"nobody listens": agent, "no socket": client(socket(t), c), "a plain file": client(file, c), "no path": client("", c),
	} {
		_, err := a.Log(t.Context())
		e := failed(t, err, rtmr.Unreachable, name)
		assert.Len(t, exit.Hints(e), 1, name)
		failed(t, a.CanEmit(t.Context()), rtmr.Unreachable, name)
	}
	assert.Zero(t, c.naps, "nobody waits for an agent that isn't there")
}

func TestLogWaitsForAQuote(t *testing.T) {
	t.Parallel()
	double, agent, c := agents(t, launchtest.AgentOptions{})
	double.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails, Times: 3})
	log, err := agent.Log(t.Context())
	require.NoError(t, err)
	assert.NoError(t, log.Replays())
	assert.Len(t, double.Requests(), 4)
	assert.Equal(t, 7*time.Second, c.elapsed, "1 + 2 + 4 s")

	double.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails, Times: -1})
	_, err = agent.Log(t.Context())
	assert.ErrorIs(t, err, rtmr.ErrUnknown)
	assert.Equal(t, exit.Measurement, exit.Of(err), "not a file that can't be read")
	assert.NotEmpty(t, exit.Hints(err))
	assert.Equal(t, 37*time.Second, c.elapsed, "30 s more")
	assert.LessOrEqual(t, len(double.Requests()), 4+7, "each one makes a quote")
}

func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	double, agent, c := agents(t, launchtest.AgentOptions{})
	double.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails, Times: -1})
	why := errors.New("told to stop")

	ctx, cancel := context.WithCancelCause(t.Context())
	c.onNap = func(nap int) {
		if nap == 2 {
			cancel(why)
		}
	}
	_, err := agent.Log(ctx)
	assert.ErrorIs(t, err, why, "while it waits")
	assert.Len(t, double.Requests(), 2)
	_, err = agent.Log(ctx)
	assert.ErrorIs(t, err, why, "before it begins")
	assert.ErrorIs(t, agent.CanEmit(ctx), why)
	assert.Len(t, double.Requests(), 2)

	double.Heal()
	double.Fail(launchtest.AgentFault{Kind: launchtest.AgentHangs})
	ctx, cancel = context.WithCancelCause(t.Context())
	c.hung = nil
	go func() {
		if until(ctx, func() bool { return double.Hits(launchtest.AgentHangs) == 1 }) {
			cancel(why)
		}
	}()
	_, err = agent.Log(ctx)
	assert.ErrorIs(t, err, why, "during the call")
}

// TestRealTime is about the clock that is used where nobody gives another: with an agent that isn't
// there, so that nothing but time is waited for.
func TestRealTime(t *testing.T) {
	t.Parallel()
	missing := socket(t)
	synctest.Test(t, func(t *testing.T) {
		agent := &rtmr.Agent{Socket: missing}
		began := time.Now()
		_, err := agent.Await(t.Context())
		failed(t, err, rtmr.Unreachable, "nobody listens")
		assert.Equal(t, 30*time.Second, time.Since(began), "patience")

		agent.Patience = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		began = time.Now()
		_, err = agent.Await(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 10*time.Minute, time.Since(began))
	})
}

// TestACallIsBounded, whoever calls.
func TestACallIsBounded(t *testing.T) {
	t.Parallel()
	_, agent, c := agents(t, launchtest.AgentOptions{})
	_, err := agent.Log(t.Context())
	require.NoError(t, err)
	require.NoError(t, agent.CanEmit(t.Context()))
	assert.Equal(t, []time.Duration{15 * time.Second, 10 * time.Second}, c.bounds)
}
