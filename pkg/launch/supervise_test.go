package launch_test

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
)

func (w *world) stepStatus(step string) launch.Status {
	w.t.Helper()
	return statusOf(w.report(), step)
}

func statusOf(report launch.Report, step string) launch.Status {
	for _, s := range report.Steps {
		if s.Name == step {
			return s.Status
		}
	}
	return ""
}

// does has somebody else call the engine, as docker does.
func (w *world) does(method, target string) {
	w.t.Helper()
	_, err := w.Engine.Call(method, target, nil)
	require.NoError(w.t, err)
}

func (w *world) status() string { return w.workload().Status }

func TestAWorkloadThatFailsIsStartedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{
		OnStart: func(c launchtest.ContainerInfo) (int, bool) { return 3, c.Starts > 9 },
	}}})
	l := w.watch()
	const s = time.Second
	for _, delay := range []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s, 60 * s} {
		l.nap(delay)
	}
	w.eventually("it runs", func() bool { return w.workload().Starts == 10 && w.report().Workload.Status == "running" })
	assert.Len(t, l.sleeps(), 9)

	report := w.report()
	assert.Equal(t, 9, report.Workload.Restarts)
	require.NotNil(t, report.Workload.LastExitCode)
	assert.Equal(t, 3, *report.Workload.LastExitCode)
	assert.Nil(t, report.FinishedAt, "it runs")
	assert.Nil(t, report.ExitCode)
	assert.Len(t, report.Steps, 10)
	assert.Equal(t, launch.Status("running"), w.stepStatus("supervise"))
	w.accepted(w.Digests[0])

	// Ten good minutes, and the next restart is as quick as the first.
	w.Engine.Fail(launchtest.EngineFault{Match: "GET /containers/*/json", Times: -1, Edit: func(body []byte) []byte {
		var c map[string]any
		if json.Unmarshal(body, &c) != nil {
			return body
		}
		c["State"].(map[string]any)["StartedAt"] = time.Now().Add(-10*time.Minute - time.Second).UTC().Format(time.RFC3339Nano)
		body, _ = json.Marshal(c)
		return body
	}})
	require.NoError(t, w.Engine.Exit("mpc-node", 1))
	l.nap(s)
	w.eventually("that is counted", func() bool { return w.report().Workload.Restarts == 10 })
	assert.Equal(t, 11, w.workload().Starts)

	assert.NoError(t, l.terminate(), "an orderly end")
	assert.Equal(t, "exited", w.status())
	report = w.report()
	require.NotNil(t, report.ExitCode)
	assert.Equal(t, exit.OK, *report.ExitCode)
	assert.NotNil(t, report.FinishedAt)
	assert.Equal(t, launch.Status("done"), w.stepStatus("supervise"))
	assert.Equal(t, 1, w.Agent.Emits())
}

func TestAStopOnPurposeIsRespected(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		how string
		end int // its exit code
	}{
		"docker stop":                   {"/containers/mpc-node/stop", 143},
		"docker stop, and it ends well": {"/containers/mpc-node/stop", 0},
		"docker stop, and it is killed": {"/containers/mpc-node/stop", 137},
		"docker kill":                   {"/containers/mpc-node/kill", 137},
		"docker kill -s TERM":           {"/containers/mpc-node/kill?signal=SIGTERM", 143},
		"docker kill -s INT":            {"/containers/mpc-node/kill?signal=2", 130},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{
				OnStop: func(launchtest.ContainerInfo) int { return c.end },
			}}})
			l := w.watch()
			w.does("POST", c.how)
			w.eventually("the end is understood", func() bool { return l.said("stopped on purpose") == 1 })
			assert.Equal(t, "exited", w.report().Workload.Status)
			assert.Equal(t, 1, w.workload().Starts)
			assert.Empty(t, l.sleeps())
			assert.Nil(t, w.report().FinishedAt)

			w.does("POST", "/containers/mpc-node/start")
			w.eventually("the start is seen", func() bool { return w.report().Workload.Status == "running" })
			require.NoError(t, w.Engine.Exit("mpc-node", 5))
			l.nap(time.Second)
			w.eventually("it is looked after again", func() bool { return w.report().Workload.Restarts == 1 })
			assert.Equal(t, 3, w.workload().Starts)

			w.does("POST", "/containers/mpc-node/restart")
			w.eventually("that was somebody else", func() bool { return w.workload().Starts == 4 && w.report().Workload.Status == "running" })
			assert.Len(t, l.sleeps(), 1)
			assert.NoError(t, l.terminate())
		})
	}
}

// TestASignalToTheWorkloadIsNoStop: many take SIGHUP as the word to read their configuration again.
func TestASignalToTheWorkloadIsNoStop(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	l := w.watch()
	w.does("POST", "/containers/mpc-node/kill?signal=HUP")
	w.does("POST", "/containers/mpc-node/pause")
	w.eventually("that is seen", func() bool { return w.report().Workload.Status == "paused" })
	w.does("POST", "/containers/mpc-node/unpause")
	require.NoError(t, w.Engine.Exit("mpc-node", 1))
	l.nap(time.Second)
	w.eventually("it is started again", func() bool { return w.workload().Starts == 2 })
}

// TestAStopThatItSurvivedIsForgotten: what ends ten minutes after it was asked to ended for another reason.
func TestAStopThatItSurvivedIsForgotten(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		since time.Duration // between the signal and the end
		back  time.Duration // by which the clock is set back after the end
		again bool
	}{
		"it took its time":                  {since: 9 * time.Minute},
		"it survived that by far":           {since: 10*time.Minute + time.Second, again: true},
		"by far, and the clock is set back": {since: 10*time.Minute + time.Second, back: time.Hour, again: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{machine: launchtest.MachineOptions{
				Config: v1.Config{StopSignal: "SIGHUP"}, // which the double survives
			}})
			l := w.watch()
			w.Engine.Fail(launchtest.EngineFault{Match: "GET /containers/*/json", Times: -1, Edit: func(body []byte) []byte {
				var all map[string]any
				require.NoError(t, json.Unmarshal(body, &all))
				state := all["State"].(map[string]any)
				for _, key := range []string{"StartedAt", "FinishedAt"} {
					if at, err := time.Parse(time.RFC3339Nano, state[key].(string)); err == nil && at.Year() > 2000 {
						state[key] = at.Add(c.back).Format(time.RFC3339Nano)
					}
				}
				body, err := json.Marshal(all)
				require.NoError(t, err)
				return body
			}})
			w.does("POST", "/containers/mpc-node/kill?signal=HUP")
			w.Engine.Age(c.since)
			require.NoError(t, w.Engine.Exit("mpc-node", 1))
			if c.again {
				l.nap(time.Second)
				w.eventually("it is started again", func() bool { return w.workload().Starts == 2 })
			} else {
				w.eventually("the end is understood", func() bool { return l.said("stopped on purpose") == 1 })
				assert.Equal(t, 1, w.workload().Starts)
				assert.Empty(t, l.sleeps())
			}
			assert.NoError(t, l.terminate())
		})
	}
}

func TestAWorkloadThatEndsWellEndsTheLauncher(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	l := w.watch()
	require.NoError(t, w.Engine.Exit("mpc-node", 0))
	assert.NoError(t, l.end())
	assert.Equal(t, 1, w.workload().Starts)
	report := w.report()
	assert.Equal(t, exit.OK, *report.ExitCode)
	assert.Equal(t, "exited", report.Workload.Status)
	assert.Equal(t, launch.Status("done"), w.stepStatus("supervise"))
}

// TestAnEngineThatEndsIsWaitedFor: whatever an ending engine did to the workload was nobody's purpose.
func TestAnEngineThatEndsIsWaitedFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		orderly bool
		code    int
	}{"a crash": {}, "an orderly end": {true, 143}, "an orderly end, and the workload ends well": {true, 0}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{
				OnStop: func(launchtest.ContainerInfo) int { return c.code },
			}}})
			l := w.watch()
			require.NoError(t, w.Engine.Stop(c.orderly))
			w.eventually("that is noticed", func() bool { return l.said("the engine doesn't answer") == 1 })
			require.NoError(t, w.Engine.Start())
			assert.Equal(t, 1, w.workload().Starts, "the engine itself starts nothing")
			l.nap(time.Second) // before it tries to connect
			l.nap(time.Second) // before the restart
			w.eventually("it is started again", func() bool { return w.report().Workload.Restarts == 1 && w.report().Workload.Status == "running" })
			assert.Equal(t, 2, w.workload().Starts)

			// What was stopped before the engine went away stays so.
			w.does("POST", "/containers/mpc-node/stop")
			w.eventually("the stop is understood", func() bool { return l.said("stopped on purpose") == 1 })
			before := len(w.Engine.Requests())
			require.NoError(t, w.Engine.Restart(false))
			l.nap(time.Second)
			w.eventually("it was looked at", func() bool {
				return slices.ContainsFunc(w.Engine.Requests()[before:], func(r string) bool { return strings.HasSuffix(r, "/json") })
			})
			assert.Equal(t, 2, w.workload().Starts)
			w.does("POST", "/containers/mpc-node/start") // what this does to it is seen after all that went before
			w.eventually("the start is seen", func() bool { return w.report().Workload.Status == "running" })
			assert.Equal(t, 1, l.said("is started again"))
			assert.Len(t, l.sleeps(), 3)
			assert.Equal(t, 3, w.workload().Starts)
			assert.NoError(t, l.terminate())
			w.accepted(w.Digests[0])
		})
	}
}

// TestAStopBeforeARestartDoesNothing: the engine does nothing then and tells nobody, which the log says before each.
func TestAStopBeforeARestartDoesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{
		OnStart: func(c launchtest.ContainerInfo) (int, bool) { return 3, c.Starts > 2 },
	}}})
	l := w.watch()
	w.eventually("it ended", func() bool { return l.said("the workload ended and is started again") == 1 })
	l.mu.Lock()
	told := string(l.lines[len(l.lines)-1])
	l.mu.Unlock()
	assert.Contains(t, told, "until then docker stop does nothing")
	assert.Contains(t, told, "stop the launcher")
	_, err := w.Engine.Call("POST", "/containers/mpc-node/stop", nil)
	assert.Error(t, err, "there is nothing to stop")
	l.nap(time.Second)
	l.nap(2 * time.Second)
	w.eventually("it runs", func() bool { return w.workload().Starts == 3 && w.status() == "running" })
	assert.NoError(t, l.terminate())
}

// TestAStartWhoseAnswerIsLostCounts, if it happened.
func TestAStartWhoseAnswerIsLostCounts(t *testing.T) {
	t.Parallel()
	for _, happened := range []bool{true, false} {
		w := newWorld(t, options{})
		l := w.watch()
		w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", After: happened, Close: true})
		require.NoError(t, w.Engine.Exit("mpc-node", 3))
		l.nap(time.Second)
		l.nap(time.Second) // for the engine
		if !happened {
			l.nap(2 * time.Second)
		}
		w.eventually("it runs", func() bool { return w.report().Workload.Status == "running" && w.workload().Starts == 2 })
		require.NoError(t, w.Engine.Exit("mpc-node", 3))
		w.eventually("the next end is seen", func() bool { return l.said("started again") >= 2 })
		assert.Equal(t, 1, w.report().Workload.Restarts, "happened: %v", happened)
	}
}

// TestTheDataVolumeIsHeldWithoutTheWorkload, and without a launcher.
func TestTheDataVolumeIsHeldWithoutTheWorkload(t *testing.T) {
	t.Parallel()
	for _, platform := range []config.Platform{config.TEE, config.NONTEE} {
		w := newWorld(t, options{platform: platform})
		w.mustBoot()
		w.does("DELETE", "/containers/mpc-node?force=1")
		w.does("POST", "/volumes/prune")
		assert.Contains(t, w.Engine.Volumes(), "mpc-data")
		w.mustBoot()
		assert.Equal(t, "running", w.status())
		holders := 0
		for _, c := range w.Engine.Containers() {
			if c.Name != "mpc-node" {
				holders++
			}
		}
		assert.Equal(t, 1, holders, "they don't pile up")
	}
}

func TestWhatChangedIsNotStartedAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*world)
		want   string
	}{
		"another name": {change: func(w *world) { w.does("POST", "/containers/mpc-node/rename?name=other") }, want: "Name"},
		"gone":         {change: func(w *world) { w.does("DELETE", "/containers/mpc-node?force=1") }, want: "was removed"},
		"another container of that name": {change: func(w *world) {
			w.does("DELETE", "/containers/mpc-node?force=1")
			_, err := w.Engine.Call("POST", "/containers/create?name=mpc-node", map[string]any{"Image": w.workloadImage, "Cmd": []string{"/evil"}})
			require.NoError(w.t, err)
			w.does("POST", "/containers/mpc-node/start")
		}, want: "was removed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			l := w.watch()
			w.workloadImage = w.workload().Image
			id := w.workload().ID
			c.change(w)
			for _, other := range w.Engine.Containers() {
				if other.ID == id && other.Status == "running" {
					require.NoError(t, w.Engine.Exit(id, 1))
					l.nap(time.Second)
				}
			}
			err := l.end()
			assert.Equal(t, exit.Workload, exit.Of(err), "%v", err)
			require.Error(t, err)
			assert.Contains(t, err.Error(), c.want)
			assert.Equal(t, 1, strings.Count(strings.Join(w.seen(), "\n"), "start mpc-node"))
			held := slices.ContainsFunc(w.Engine.Containers(), func(c launchtest.ContainerInfo) bool {
				return slices.ContainsFunc(c.Mounts, func(m launchtest.ContainerMount) bool { return m.Name == "mpc-data" })
			})
			assert.True(t, held, "nothing references the data volume")
		})
	}
}

func TestASignalWhileSupervising(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		arrange func(*world)
		naps    []time.Duration // after the signal
		status  string
		code    exit.Code
	}{
		"it runs":            {arrange: func(*world) {}, status: "exited"},
		"it was stopped":     {arrange: func(w *world) { w.does("POST", "/containers/mpc-node/stop") }, status: "exited"},
		"it is paused":       {arrange: func(w *world) { w.does("POST", "/containers/mpc-node/pause") }, status: "exited"},
		"the engine is away": {arrange: func(w *world) { require.NoError(w.t, w.Engine.Stop(true)) }, status: "exited"},
		"it can't be stopped": {arrange: func(w *world) {
			w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/stop", Status: 500, Message: "no"})
		}, status: "running", code: exit.Engine},
		// Docker kills whom it stops after ten seconds, us included.
		"the stop hangs": {arrange: func(w *world) {
			w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/stop", Hang: true})
		}, naps: []time.Duration{8 * time.Second}, status: "running"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			l := w.watch()
			c.arrange(w)
			l.signal()
			for _, d := range c.naps {
				l.nap(d)
			}
			// Without any further nap, and so before its own bound.
			assert.Equal(t, c.code, exit.Of(l.end()), "%v", l.err)
			assert.Equal(t, c.status, w.status())
			report := w.report()
			require.NotNil(t, report.ExitCode)
			assert.Equal(t, c.code, *report.ExitCode)
			assert.NotNil(t, report.FinishedAt)
			if name != "the engine is away" {
				assert.True(t, w.asked("POST /containers/"+w.workload().ID+"/stop?t=5"), "%q", w.Engine.Requests())
			}
		})
	}
}

// TestASignalDuringARestart: a start that hangs gets two more seconds.
func TestASignalDuringARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	l := w.watch()
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", After: true, Hang: true})
	require.NoError(t, w.Engine.Exit("mpc-node", 1))
	l.nap(time.Second)
	w.eventually("it is started", func() bool { return w.workload().Starts == 2 })
	l.signal()
	l.nap(2 * time.Second)
	assert.NoError(t, l.end())
	assert.Equal(t, "exited", w.status())
}

// TestTheNextRunTakesOver: a launcher that was killed left a workload that runs.
func TestTheNextRunTakesOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.mustBoot()
	before := w.seen()
	l := w.watch()
	assert.Equal(t, before, w.seen(), "something was done twice")
	assert.Equal(t, launch.Status("skipped"), w.stepStatus("start"))
	require.NoError(t, w.Engine.Exit("mpc-node", 1))
	l.nap(time.Second)
	w.eventually("it is started again", func() bool { return w.workload().Starts == 2 })
	assert.Equal(t, exit.Busy, exit.Of((&launch.Launcher{Settings: w.settings}).Run(t.Context())), "the lock is held")
	assert.NoError(t, l.terminate())
}

func TestWithoutSupervision(t *testing.T) {
	t.Parallel()
	for _, platform := range []config.Platform{config.TEE, config.NONTEE} {
		w := newWorld(t, options{platform: platform})
		w.settings.Supervise = admission.SuperviseOff
		l := w.watch()
		require.NoError(t, l.end())
		assert.Equal(t, launch.Status("skipped"), w.stepStatus("supervise"))
		assert.Equal(t, "on-failure", w.workload().RestartPolicy)
		assert.Equal(t, "running", w.status())
		assert.Equal(t, exit.OK, *w.report().ExitCode)
	}
}

// TestSignalsAndTheCommitPoint: once the intent is written a signal waits until the log was read back, and what is measured then
// isn't started.
func TestSignalsAndTheCommitPoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Agent.Fail(launchtest.AgentFault{Kind: launchtest.EmitSettles, Match: "EmitEvent mpc"})
	naps, signalled := make(chan struct{}), make(chan struct{})
	w.onNap = sync.OnceFunc(func() { close(naps); <-signalled })
	l := w.begin("")
	<-naps // until the register fits the log
	l.signal()
	w.Agent.Release()
	close(signalled)
	err := l.end()
	assert.Equal(t, exit.Terminated, exit.Of(err), "%v", err)
	assert.Equal(t, 1, w.Agent.Emits())
	w.accepted(w.Digests[0])
	assert.Equal(t, "created", w.status(), "not started")
	assert.Equal(t, launch.Status("done"), w.stepStatus("measure"))

	w.mustBoot()
	assert.Equal(t, "running", w.status())
	w.accepted(w.Digests[0])
}

// TestALaunchIsCalledOneOnceTheWorkloadStays: whoever waits for that line takes it for a node that
// runs.
func TestALaunchIsCalledOneOnceTheWorkloadStays(t *testing.T) {
	t.Parallel()
	for _, stays := range []bool{true, false} {
		w := newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{
			OnStart: func(c launchtest.ContainerInfo) (int, bool) { return 3, stays && c.Starts > 1 },
		}}})
		l := w.watch()
		l.nap(time.Second)
		if stays {
			w.eventually("it runs, and not for the first time", func() bool {
				workload := w.report().Workload
				return workload.Status == "running" && workload.Restarts == 1
			})
			require.NoError(t, w.clock.Sleep(t.Context(), 10*time.Second))
			look := func() {
				w.does("POST", "/containers/mpc-node/pause")
				w.does("POST", "/containers/mpc-node/unpause")
			}
			look()
			w.eventually("it stays", func() bool { return l.said("the workload stays now") == 1 })
			look()
		} else {
			l.nap(2 * time.Second)
		}
		require.NoError(t, l.terminate())
		want := 0
		if stays {
			want = 1
		}
		assert.Equal(t, want, strings.Count(l.output.String(), launch.Launched+"\n"), "%s", l.output.String())
	}
}
