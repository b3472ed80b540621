package launch_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/status"
)

// told returns the statuses that a launcher printed until it ended.
func (l *watched) told() (all []status.Status) {
	l.w.t.Helper()
	for line := range strings.Lines(l.output.String()) {
		object, ok := strings.CutPrefix(line, status.Prefix)
		if !ok {
			continue
		}
		s, err := status.Parse([]byte(object))
		require.NoError(l.w.t, err, "%s", line)
		if len(all) > 0 {
			assert.NotEqual(l.w.t, all[len(all)-1].Line(), s.Line(), "something has changed")
		}
		all = append(all, s)
	}
	return all
}

// lastTold is the last of them.
func (l *watched) lastTold() status.Status {
	l.w.t.Helper()
	all := l.told()
	require.NotEmpty(l.w.t, all)
	return all[len(all)-1]
}

// phases are those of the statuses, each as often as it began.
func phases(all []status.Status) (names []string) {
	for i, s := range all {
		if i == 0 || all[i-1].Phase != s.Phase {
			names = append(names, s.Phase)
		}
	}
	return names
}

func steps() (names []string) {
	for _, s := range admission.Steps() {
		names = append(names, string(s))
	}
	return names
}

// TestWhatIsSeenFromOutside of a boot, of a workload that fails once, and of the end.
func TestWhatIsSeenFromOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.approve(w.Digests[1], w.Digests[0])
	w.configure(`mpc_hash_override = "` + w.Digests[0].String() + `"`)
	w.temporary = t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.listen = free.Addr().String()
	require.NoError(t, free.Close())
	l := w.watch()

	self := func() status.Status {
		s, err := status.Self(t.Context(), w.temporary)
		require.NoError(t, err)
		return s
	}
	health := func() int {
		t.Helper()
		response, err := http.Get("http://" + w.listen + "/healthz")
		require.NoError(t, err)
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode
	}
	metrics := func() string {
		data, err := os.ReadFile(w.Shared("launcher/metrics.prom"))
		require.NoError(t, err)
		return string(data)
	}
	assert.True(t, self().Healthy())
	assert.Equal(t, 200, health())
	assert.Contains(t, metrics(), "\nlauncher_healthy 1\n")
	assert.Contains(t, metrics(), "\nlauncher_approved_place 1\n")
	assert.Equal(t, exit.Busy, exit.Of(w.second()))
	assert.True(t, self().Healthy(), "a second launcher doesn't speak for the first")

	require.NoError(t, w.Engine.Exit("mpc-node", 3))
	w.eventually("that is seen", func() bool { return self().Error != nil })
	assert.Equal(t, 503, health())
	l.nap(time.Second)
	w.eventually("it runs again", func() bool { return self().Healthy() })
	assert.Equal(t, 200, health())
	// The workload may do what it likes with its volume.
	require.NoError(t, os.RemoveAll(w.Shared("launcher")))
	require.NoError(t, l.terminate())
	assert.Contains(t, metrics(), "\nlauncher_healthy 0\n")
	_, err = status.Self(t.Context(), w.temporary)
	assert.Error(t, err)

	all := l.told()
	assert.Equal(t, steps(), phases(all))
	for i, s := range all {
		assert.Equal(t, w.bootID, s.BootID)
		assert.Equal(t, "v1.2.3", s.Launcher)
		assert.False(t, s.Since.IsZero())
		moves := s.Phase == string(admission.AtPull) || s.Phase == string(admission.AtLoad)
		assert.Equal(t, moves, s.Percent != nil, s.Phase)
		if i > 0 {
			assert.False(t, s.Since.Before(all[i-1].Since))
		}
	}
	last := all[len(all)-1]
	require.NotNil(t, last.Measured)
	assert.True(t, *last.Measured)
	assert.Equal(t, w.Digests[0], *last.Digest)
	assert.Equal(t, "override", last.Reason)
	assert.Equal(t, w.report().Measurement.RTMR3, last.RTMR3)
	assert.Equal(t, 1, *last.Approved)
	assert.NotNil(t, last.ApprovedSince)
	assert.Equal(t, 1, last.Restarts)
	assert.Equal(t, exit.Workload, last.Code(), "it was stopped")
	var failed []string
	for _, s := range all {
		if s.Error != nil {
			assert.Equal(t, exit.Workload, s.Error.Code)
			failed = append(failed, s.Error.Message)
		}
	}
	assert.Equal(t, []string{"the workload is exited, exit code 3", "the workload is exited, exit code 0"}, slices.Compact(failed))
}

// TestAWaitIsSeenFromOutside with what it is for.
func TestAWaitIsSeenFromOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	require.NoError(t, w.Registry.Stop())
	l := w.attempts(func(int) { assert.NoError(t, w.Registry.Start()) })
	require.NoError(t, l.terminate())
	all := l.told()
	want := append(append(steps()[:5:5], status.Waiting), steps()[1:]...)
	assert.Equal(t, want, phases(all))
	for _, s := range all {
		if s.Phase == status.Waiting {
			assert.Equal(t, exit.Unavailable, s.Code())
			assert.Contains(t, s.Error.Message, ", in pull")
			assert.Equal(t, w.Digests[0], *s.Digest)
		} else if s.Phase != status.Supervise {
			assert.Nil(t, s.Error, s.Phase)
		}
	}
}

// TestAnEndIsSeenFromOutside with its code.
func TestAnEndIsSeenFromOutside(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		platform config.Platform
		arrange  func(w *world)
		phase    admission.Step
		code     exit.Code
	}{
		"no agent":      {config.TEE, func(w *world) { w.settings.AgentSocket += ".none" }, admission.AtProbe, exit.Measurement},
		"no engine":     {config.TEE, func(w *world) { w.settings.DockerHost += ".none" }, admission.AtSettings, exit.Engine},
		"no config":     {config.NONTEE, func(w *world) { w.settings.ConfigFile += ".none" }, admission.AtConfig, exit.Config},
		"outside a CVM": {config.NONTEE, func(*world) {}, admission.AtSupervise, exit.OK},
		"a list that's wrong": {config.TEE, func(w *world) {
			require.NoError(w.t, os.WriteFile(w.Shared("image-digest.bin"), []byte("{}"), 0o600))
		}, admission.AtConfig, exit.Config},
		"a workload that doesn't stay": {config.NONTEE, func(w *world) {
			w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", Status: 500})
		}, admission.AtStart, exit.Workload},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{platform: c.platform})
			c.arrange(w)
			l := w.begin("")
			if name == "outside a CVM" {
				require.NoError(t, l.end())
			} else {
				assert.Equal(t, c.code, exit.Of(l.end()))
			}
			all := l.told()
			last := all[len(all)-1]
			assert.Equal(t, string(c.phase), last.Phase)
			assert.Equal(t, c.code, last.Code())
			assert.Equal(t, c.platform == config.TEE, last.Measured != nil, "outside a CVM nothing can be")
			if report, err := w.tryReport(); err == nil && c.code != exit.OK {
				assert.Equal(t, *report.Error, last.Error.Message)
			}
		})
	}
}

// TestWhatCannotBeSaidEndsNoBoot: no node should be down for it.
func TestWhatCannotBeSaidEndsNoBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	w.listen, w.temporary = taken.Addr().String(), w.Shared("nowhere")
	require.NoError(t, os.MkdirAll(w.Shared("launcher/metrics.prom/x"), 0o755))
	require.NoError(t, os.MkdirAll(w.Shared("launcher/metrics.prom.aside"), 0o755))
	l := w.watch()
	w.accepted(w.Digests[0])
	for _, what := range []string{"metrics can't be served", "health checks can't be served", "the metrics can't be written"} {
		assert.Equal(t, 1, l.said(what), what)
	}
	// The list is looked at whenever something is told.
	require.NoError(t, os.WriteFile(w.Shared("image-digest.bin"), []byte("{}"), 0o600))
	require.NoError(t, w.Engine.Exit("mpc-node", 3))
	l.nap(time.Second)
	w.eventually("it runs again", func() bool { return w.workload().Starts == 2 })
	require.NoError(t, l.terminate())
	assert.Equal(t, 1, l.said("the approved list can't be read"))
	all := l.told()
	assert.Equal(t, status.NotListed, *all[len(all)-1].Approved)
}
