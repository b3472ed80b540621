//go:build e2e

package main_test

import (
	"bytes"
	"context"
	"fmt"
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
	"testing"
	"time"

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

// behave changes what the workload does from its next start on, as if its own config said so.
func (m *machine) behave(lines string) {
	m.t.Helper()
	path := filepath.Join(m.shared, compose.NodeConfig)
	data, err := os.ReadFile(path)
	require.NoError(m.t, err)
	data = regexp.MustCompile(`(?m)^(exit_|ignore_).*\n`).ReplaceAll(data, nil)
	data = bytes.Replace(data, []byte("[tee]"), []byte(lines+"\n[tee]"), 1)
	require.NoError(m.t, os.WriteFile(path, data, 0o644))
}

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

func (m *machine) eventually(what string, holds func() bool) {
	m.t.Helper()
	require.Eventually(m.t, holds, 30*time.Second, 50*time.Millisecond, "%s", what)
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
	m := newMachine(t, "TEE")
	m.node = "exit_code = 3\nexit_after_ms = 4000" // after the grace
	m.configure("")
	p := m.start()
	o := p.settle()
	require.True(t, o.stays, "%s", o.stderr)
	id := m.workload().ID

	m.eventually("it is started again", func() bool { return p.workloadReport().Restarts == 1 })
	m.behave("")
	m.eventually("and once more", func() bool { return p.workloadReport().Restarts == 2 })
	c := m.workload()
	assert.Equal(t, id, c.ID, "the same container")
	report := p.workloadReport()
	require.NotNil(t, report.LastExitCode)
	assert.Equal(t, 3, *report.LastExitCode)
	assert.Equal(t, 2, strings.Count(p.stderr.String(), "is started again"))

	for _, how := range []string{"stop", "kill", "kill?signal=TERM"} {
		m.docker(how)
		m.eventually("the end is seen", func() bool { return strings.Contains(p.workloadReport().Status, "exited") })
		time.Sleep(2 * time.Second)
		assert.Equal(t, "exited", m.workload().Status, "%s is respected", how)
		m.docker("start")
		m.eventually("the start is seen", func() bool { return p.workloadReport().Status == "running" })
	}
	m.docker("restart")
	m.eventually("a restart is somebody's purpose", func() bool { return strings.Contains(m.log(), "start 7") })
	time.Sleep(time.Second)
	assert.Equal(t, 2, p.workloadReport().Restarts)
	m.measured(m.digests[0])
	assert.Equal(t, 1, m.agent.Emits())

	assert.Equal(t, exit.Busy, m.start().settle().code, "the lock is held")
	assert.LessOrEqual(t, residentKiB(t, p.cmd.Process.Pid), 20<<10, "resident while waiting")

	m.behave("exit_code = 0\nexit_after_ms = 500")
	m.docker("restart")
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		require.Fail(t, "the workload ended with 0, and the launcher didn't")
	}
	o = p.settle()
	assert.Equal(t, exit.OK, o.code, "%s", o.stderr)
	assert.Equal(t, launch.Status("done"), o.status("supervise"))

	// A further run in the same boot starts it again, and a stubborn one is killed in time.
	m.behave("ignore_term = true")
	p = m.start()
	o = p.settle()
	require.True(t, o.stays, "%s", o.stderr)
	began := time.Now()
	o = p.terminate()
	assert.Equal(t, exit.OK, o.code, "%s", o.stderr)
	assert.Less(t, time.Since(began), 8*time.Second)
	assert.Equal(t, "exited", m.workload().Status)
	assert.Equal(t, 1, m.agent.Emits())
}

// TestE2EPrunedAllTheTime does what dstack does at boot, without end: whatever no container uses is removed.
func TestE2EPrunedAllTheTime(t *testing.T) {
	m := newMachine(t, "TEE")
	m.mustBoot()
	// The launcher's own container, which this test has not, holds the shared volume.
	m.call("POST", "/containers/create?name=mpc-node-launcher-stand-in", map[string]any{
		"Image": m.workload().Image, "Cmd": []string{"/x"}, "HostConfig": map[string]any{"Binds": []string{"shared-volume:/mnt/shared"}},
	}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var pruning sync.WaitGroup
	prunes := 0
	pruning.Go(func() {
		for ctx.Err() == nil {
			m.call("POST", "/volumes/prune", nil, nil)
			m.call("POST", "/images/prune?filters="+url.QueryEscape(`{"dangling":["false"]}`), nil, nil)
			prunes++
			time.Sleep(30 * time.Millisecond)
		}
	})
	defer pruning.Wait()
	defer cancel()

	booted := 1
	for i := range 6 {
		m.reboot()
		digest := m.digests[(i+1)%2]
		m.approve(digest)
		o := m.boot()
		if o.code != exit.OK {
			// An image can still go between the last look and the creation by Compose.
			assert.Contains(t, []exit.Code{exit.Engine, exit.Workload}, o.code, "%s", o.stderr)
			m.unmeasured()
			m.nothingRuns()
			continue
		}
		booted++
		m.measured(digest)
		assert.Equal(t, "running", m.workload().Status)
		assert.Equal(t, o.report.Image.ImageID, m.workload().Image)
		assert.Contains(t, m.log(), fmt.Sprintf("start %d,", booted), "the data volume is another one")
	}
	cancel()
	pruning.Wait()
	assert.Greater(t, prunes, 50)
	assert.GreaterOrEqual(t, booted, 5, "what is pruned away is loaded again")
	_, err := m.engine.Volume(t.Context(), compose.DataVolume)
	assert.NoError(t, err)
}

// relay stands between a launcher and the engine and can hold a request up: before the engine gets it, or after it was done.
type relay struct {
	host string

	mu    sync.Mutex
	match *regexp.Regexp // of "METHOD /path"; nil: none
	done  bool
	held  chan struct{} // closed once one is held
}

func newRelay(t *testing.T, engine string) *relay {
	t.Helper()
	dir, err := os.MkdirTemp("", "relay")
	require.NoError(t, err)
	r := &relay{host: "unix://" + dir + "/docker.sock"}
	listener, err := net.Listen("unix", dir+"/docker.sock")
	require.NoError(t, err)
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(engine, "unix://"))
	}}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host = "http", "docker" },
		Transport:     transport,
		FlushInterval: -1,
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		held, done := r.hold(request)
		if held == nil {
			proxy.ServeHTTP(w, request)
			return
		}
		if done {
			proxy.ServeHTTP(discarded{http.Header{}}, request)
		}
		close(held)
		<-request.Context().Done()
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close(); os.RemoveAll(dir) })
	return r
}

// discarded is an answer that nobody gets.
type discarded struct{ header http.Header }

func (d discarded) Header() http.Header         { return d.header }
func (d discarded) Write(p []byte) (int, error) { return len(p), nil }
func (d discarded) WriteHeader(int)             {}

func (r *relay) hold(request *http.Request) (held chan struct{}, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	path := regexp.MustCompile(`^/v[0-9.]+/`).ReplaceAllString(request.URL.Path, "/")
	if r.match == nil || !r.match.MatchString(request.Method+" "+path+"?"+request.URL.RawQuery) {
		return nil, false
	}
	r.match = nil
	return r.held, r.done
}

func (r *relay) holdUp(match string, done bool) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.match, r.done, r.held = regexp.MustCompile(match), done, make(chan struct{})
	return r.held
}

// TestE2EKilled kills the launcher where it matters most, starts it again in the same boot, and then in a new one.
func TestE2EKilled(t *testing.T) {
	m := newMachine(t, "TEE")
	m.mustBoot()
	direct := m.host
	r := newRelay(t, direct)
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
			m.host = r.host
			var held <-chan struct{}
			if c.agent != "" {
				m.agent.Fail(launchtest.AgentFault{Kind: c.agent, Match: "EmitEvent mpc"})
			} else {
				held = r.holdUp(c.match, c.done)
			}
			p := m.start()
			if held != nil {
				select {
				case <-held:
				case <-p.ended:
					require.Fail(t, "the launcher came past it", "%s", &p.stderr)
				case <-time.After(time.Minute):
					require.Fail(t, "the launcher didn't come to it", "%s", &p.stderr)
				}
			} else {
				m.eventually("it emits", func() bool { return m.agent.Hits(c.agent) > 0 })
			}
			p.kill()
			m.host = direct
			sound(digest)

			again := m.start()
			if c.refused {
				// A short look is enough here; that it gives up by itself after half a minute is proved elsewhere.
				m.eventually("it reads the log", func() bool { return strings.Contains(again.stderr.String(), "may be measuring still") })
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
