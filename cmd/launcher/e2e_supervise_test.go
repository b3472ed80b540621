//go:build e2e

package main_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

func (m *machine) docker(action string) {
	m.t.Helper()
	m.call("POST", "/containers/"+compose.Name+"/"+action, nil, nil)
}

// workloadReport is what the launch report says of the workload right now.
func (p *process) workloadReport() launch.WorkloadReport {
	if report, ok := p.report(); ok && report.Workload != nil {
		return *report.Workload
	}
	return launch.WorkloadReport{}
}

// residentKiB is what a process holds in memory, its program included.
func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	t.Logf("%s", regexp.MustCompile(`(?m)^(VmRSS|RssAnon|RssFile|VmHWM):.*$`).FindAll(status, -1))
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, match)
	n, err := strconv.Atoi(string(match[1]))
	require.NoError(t, err)
	return n
}

func TestE2ESupervision(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "TEE")
	p := m.start()
	o := p.settle()
	require.True(t, o.stays, "%s", o.stderr)
	id := m.workload().ID

	for restarts := range 2 {
		m.answers(restarts+1, "exit 3")
		p.until("it is started again", func() bool {
			return p.workloadReport().Restarts == restarts+1
		})
	}
	m.answers(3, "")
	assert.Equal(t, id, m.workload().ID, "the same container")
	report := p.workloadReport()
	require.NotNil(t, report.LastExitCode)
	assert.Equal(t, 3, *report.LastExitCode)

	for i, how := range []string{"stop", "kill", "kill?signal=TERM"} {
		m.docker(how)
		p.says("was stopped on purpose", i+1)
		assert.Equal(t, "exited", m.workload().Status, "%s is respected", how)
		m.docker("start")
		p.says("the workload runs", i+1)
		m.answers(4+i, "")
	}
	m.docker("restart") // somebody's purpose, too
	m.answers(7, "")
	m.measured(m.digests[0])
	assert.Equal(t, 1, m.agent.Emits())

	assert.Equal(t, exit.Busy, m.start().settle().code, "the lock is held")
	assert.LessOrEqual(t, residentKiB(t, p.cmd.Process.Pid), 20<<10, "resident while waiting")

	m.answers(7, "exit 0")
	p.until("the launcher ends as the workload does", p.hasEnded)
	o = p.settle()
	assert.Equal(t, exit.OK, o.code, "%s", o.stderr)
	assert.Equal(t, launch.Status("done"), o.status("supervise"))
	assert.Equal(t, 2, strings.Count(o.stderr, "is started again"), "what was done on purpose stood")
	assert.Equal(t, 2, o.report.Workload.Restarts)

	// A further run in the same boot starts it again, and a stubborn one is killed in time.
	m.node = "ignore_term = true"
	m.configure("")
	r := newRelay(t, m.host)
	m.relay = r.host
	p = m.start()
	o = p.settle()
	require.True(t, o.stays, "%s", o.stderr)
	m.answers(8, "")
	asked := r.before(`^POST /containers/[^/]*/stop\?t=5$`, func() {})
	o = p.terminate()
	assert.Equal(t, exit.OK, o.code, "%s", o.stderr)
	assert.True(t, closed(asked), "it may take 5 s to end by itself")
	c := m.workload()
	assert.Equal(t, "exited", c.Status)
	assert.Equal(t, 128+int(syscall.SIGKILL), c.ExitCode)
	assert.Equal(t, 1, m.agent.Emits())
}

// TestE2EPrunedAllTheTime does what dstack does at boot, without end: whatever no container uses is
// removed, before every seventh request to the engine, and at one point of each boot where it
// matters most.
func TestE2EPrunedAllTheTime(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "TEE")
	m.mustBoot()
	m.says("start 1,")
	// The launcher's own container, which this test has not, holds the shared volume.
	m.call("POST", "/containers/create?name=mpc-node-launcher-stand-in", map[string]any{
		"Image": m.workload().Image, "Cmd": []string{"/x"}, "HostConfig": map[string]any{"Binds": []string{"shared-volume:/mnt/shared"}},
	}, nil)
	var one sync.Mutex // the engine refuses a second one
	prune := func() {
		one.Lock()
		defer one.Unlock()
		m.call("POST", "/volumes/prune", nil, nil)
		m.call("POST", "/images/prune?filters="+url.QueryEscape(`{"dangling":["false"]}`), nil, nil)
	}
	r := newRelay(t, m.host)
	m.relay = r.host
	requests, prunes := atomic.Int64{}, atomic.Int64{}
	r.each = func() {
		if requests.Add(1)%7 == 0 {
			prune()
			prunes.Add(1)
		}
	}
	for i, point := range []struct {
		when  func(match string, do func()) <-chan struct{}
		match string
	}{
		{r.during, `^POST /images/load`},
		{r.before, `^POST /containers/create.*holder`},
		{r.before, `^GET /images/[^/]*/json`},
		{r.before, `^POST /containers/create\?name=mpc-node$`},
		{r.before, `^DELETE /containers/`},
		{r.before, `^POST /containers/[^/]*/start`},
	} {
		m.reboot()
		digest := m.digests[(i+1)%2]
		m.approve(digest)
		pruned, before := point.when(point.match, prune), prunes.Load()
		var o outcome
		eventually(t, "it boots", func() bool {
			if o = m.boot(); o.code == exit.OK {
				return true
			}
			// An image can still go between the last look and the creation by Compose.
			assert.Contains(t, []exit.Code{exit.Engine, exit.Workload}, o.code, "%s", o.stderr)
			m.unmeasured()
			m.nothingRuns()
			return false
		})
		assert.True(t, closed(pruned), "it did without %s", point.match)
		assert.Greater(t, prunes.Load(), before+1)
		m.measured(digest)
		assert.Equal(t, "running", m.workload().Status)
		assert.Equal(t, o.report.Image.ImageID, m.workload().Image)
		m.says(fmt.Sprintf("start %d,", i+2)) // or the data volume is another one
	}
	_, err := m.engine.Volume(t.Context(), compose.DataVolume)
	assert.NoError(t, err)
}

// relay stands between a launcher and the engine and can do something before a request gets there,
// or hold it up.
type relay struct {
	host string
	each func() // before every request; nil: nothing

	mu    sync.Mutex
	match *regexp.Regexp // of "METHOD /path?query"; nil: none
	act   func(w http.ResponseWriter, request *http.Request)
	proxy *httputil.ReverseProxy
}

func newRelay(t *testing.T, engine string) *relay {
	t.Helper()
	dir, err := os.MkdirTemp("", "relay")
	require.NoError(t, err)
	r := &relay{host: "unix://" + dir + "/docker.sock"}
	listener, err := net.Listen("unix", dir+"/docker.sock")
	require.NoError(t, err)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(engine, "unix://"))
	}
	r.proxy = &httputil.ReverseProxy{
		Rewrite:       func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host = "http", "docker" },
		Transport:     &http.Transport{DisableCompression: true, DialContext: dial},
		FlushInterval: -1,
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if r.each != nil {
			r.each()
		}
		if act := r.matching(request); act != nil {
			act(w, request)
		} else {
			r.proxy.ServeHTTP(w, request)
		}
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close(); os.RemoveAll(dir) })
	return r
}

// matching returns what is to be done with a request, once.
func (r *relay) matching(request *http.Request) func(http.ResponseWriter, *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	path := regexp.MustCompile(`^/v[0-9.]+/`).ReplaceAllString(request.URL.Path, "/")
	asked := request.Method + " " + path
	if request.URL.RawQuery != "" {
		asked += "?" + request.URL.RawQuery
	}
	if r.match == nil || !r.match.MatchString(asked) {
		return nil
	}
	r.match = nil
	return r.act
}

func (r *relay) at(match string, act func(http.ResponseWriter, *http.Request)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.match, r.act = regexp.MustCompile(match), act
}

// before does something before the next such request gets to the engine, and closes what it
// returns.
func (r *relay) before(match string, do func()) <-chan struct{} {
	did := make(chan struct{})
	r.at(match, func(w http.ResponseWriter, request *http.Request) {
		do()
		close(did)
		r.proxy.ServeHTTP(w, request)
	})
	return did
}

// during does something while the body of the next such request is on its way, and closes what it
// returns.
func (r *relay) during(match string, do func()) <-chan struct{} {
	did := make(chan struct{})
	r.at(match, func(w http.ResponseWriter, request *http.Request) {
		request.Body = &firstRead{ReadCloser: request.Body, do: func() { do(); close(did) }}
		r.proxy.ServeHTTP(w, request)
	})
	return did
}

// firstRead does something when somebody begins to read.
type firstRead struct {
	io.ReadCloser
	once sync.Once
	do   func()
}

func (f *firstRead) Read(p []byte) (int, error) {
	f.once.Do(f.do)
	return f.ReadCloser.Read(p)
}

// holdUp lets nobody see an answer to the next such request, which the engine gets only if it is to
// be done. It closes what it returns once it is held.
func (r *relay) holdUp(match string, done bool) <-chan struct{} {
	held := make(chan struct{})
	r.at(match, func(_ http.ResponseWriter, request *http.Request) {
		if done {
			r.proxy.ServeHTTP(discarded{http.Header{}}, request)
		}
		close(held)
		<-request.Context().Done()
	})
	return held
}

// discarded is an answer that nobody gets.
type discarded struct{ header http.Header }

func (d discarded) Header() http.Header         { return d.header }
func (d discarded) Write(p []byte) (int, error) { return len(p), nil }
func (d discarded) WriteHeader(int)             {}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestE2EKilled kills the launcher where it matters most, starts it again in the same boot, and then in a new one.
func TestE2EKilled(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "TEE")
	m.mustBoot()
	r := newRelay(t, m.host)
	booted := 0
	images := func() int {
		n := 0
		for _, e := range m.agent.Events() {
			if e.Name == rtmr.EventName {
				n++
			}
		}
		return n
	}
	// sound is what has to hold at any time.
	sound := func(digest v1.Hash) {
		t.Helper()
		assert.LessOrEqual(t, images(), 1, "a duplicate event")
		if c, err := m.engine.Container(t.Context(), compose.Name); err == nil && c.Live() {
			m.measured(digest)
			assert.Equal(t, digest.String(), c.Labels["tee-launcher.manifest-digest"])
		}
	}
	for _, c := range []struct {
		name    string
		match   string // of the request to the engine
		done    bool
		agent   launchtest.AgentFaultKind // or what happens to the emit
		refused bool
	}{
		{name: "while it loads", match: `^POST /images/load`},
		{name: "with the volumes held", match: `^POST /containers/create.*holder`, done: true},
		{name: "with the old container gone", match: `^DELETE /containers/`, done: true},
		{name: "with the new one created by Compose", match: `^POST /containers/create\?name=mpc-node$`, done: true},
		{name: "before the emit is done", agent: launchtest.AgentHangs, refused: true},
		{name: "after the emit is done", agent: launchtest.AgentHangsDone},
		{name: "before the start", match: `^POST /containers/[^/]*/start`},
		{name: "after the start", match: `^POST /containers/[^/]*/start`, done: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			booted++
			digest := m.digests[booted%2]
			m.reboot()
			m.approve(digest)
			if strings.Contains(c.match, "load") {
				m.call("POST", "/images/prune?filters="+url.QueryEscape(`{"dangling":["false"]}`), nil, nil)
			}
			m.relay = r.host
			var held <-chan struct{}
			if c.agent != "" {
				m.agent.Fail(launchtest.AgentFault{Kind: c.agent, Match: "EmitEvent mpc"})
			} else {
				held = r.holdUp(c.match, c.done)
			}
			p := m.start()
			if held != nil {
				p.until("the launcher comes to it", func() bool { return closed(held) || p.hasEnded() })
				require.True(t, closed(held), "the launcher came past it: %s", &p.stderr)
			} else {
				p.until("it emits", func() bool { return m.agent.Hits(c.agent) > 0 })
			}
			p.kill()
			m.relay = ""
			sound(digest)

			again := m.start()
			if c.refused {
				// A short look is enough here; that it gives up by itself after half a minute is proved elsewhere.
				again.says("may still be measuring", 1)
				again.kill()
				m.agent.Heal()
				sound(digest)
				m.nothingRuns()
				m.reboot()
				// The kernel knows of no reboot, and this is of the boot before.
				require.NoError(t, os.Remove(filepath.Join(m.shared, state.Name, "measurement.json")))
				again = m.start()
			}
			o := again.settle()
			require.True(t, o.stays, "%s", o.stderr)
			again.kill()
			m.measured(digest)
			sound(digest)
			assert.Equal(t, "running", m.workload().Status)
			assert.Equal(t, o.report.Image.ImageID, m.workload().Image)
		})
	}
}

// TestE2EKeepsTrying: the registry is away when the machine boots, and nobody does anything but bring it
// back.
func TestE2EKeepsTrying(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "TEE")
	m.configure("pull_max_retries = 0")
	require.NoError(t, m.registry.Stop())
	p := m.start()
	p.says("the attempt failed, trying again", 1)
	report, ours := p.report()
	require.True(t, ours)
	assert.Nil(t, report.ExitCode)
	require.NotNil(t, report.Error)
	m.unmeasured()
	m.nothingRuns()
	require.NoError(t, m.registry.Start())
	p.says("supervising", 1)
	m.measured(m.digests[0])
	assert.Equal(t, 1, m.agent.Emits())
	m.answers(1, "")
	report, _ = p.report()
	assert.Equal(t, 2, report.Attempt)
	assert.Nil(t, report.Error)
}

// TestE2EFallback: the newest approved image was never pushed. The older one runs after a second attempt at it, is what is measured, and
// stays for the rest of the boot.
func TestE2EFallback(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "TEE")
	m.configure("pull_max_retries = 0")
	missing := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
	m.approve(missing, m.digests[0])
	p := m.start("--fallback=unpullable", "--fallback-after=1s")
	p.says("an older approved image may run than the newest", 1)
	p.says("the attempt failed, trying again", 2)
	p.says("supervising", 1)
	p.says("this is not the newest approved image", 1)
	m.measured(m.digests[0])
	m.answers(1, "")
	report, ours := p.report()
	require.True(t, ours)
	assert.Equal(t, 3, report.Attempt)
	require.NotNil(t, report.Image.FallbackFrom)
	assert.Equal(t, missing.String(), report.Image.FallbackFrom.String())
	assert.Contains(t, report.Image.Reason, "fallback: "+missing.String())
	p.kill()
	again := m.mustBoot()
	assert.Equal(t, "measured", again.report.Image.Reason)
	assert.Equal(t, 1, m.agent.Emits())
}
