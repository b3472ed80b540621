package launch_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// attempts has something happen while the launcher waits after a failed attempt, which is told by its
// number, and waits until it supervises or ends.
func (w *world) attempts(then func(failed int)) *watched {
	w.t.Helper()
	w.onLine = w.afterFailures(then)
	l := w.watch()
	w.onLine = nil
	return l
}

func (w *world) afterFailures(then func(failed int)) func(string) {
	n := 0
	return func(message string) {
		if strings.HasPrefix(message, launchtest.TriesAgain) {
			n++
			then(n)
		}
	}
}

func (w *world) images(f launchtest.RegistryFault) {
	f.Times = -1
	w.Registry.Fail(f)
}

// layer returns the digest of the first layer of the first image.
func (w *world) layer() v1.Hash { return w.layerOf(w.Digests[0]) }

func (w *world) layerOf(h digest.Digest) v1.Hash {
	w.t.Helper()
	ref, err := name.NewDigest(fmt.Sprintf("%s/%s@%s", w.Registry.Host(), launchtest.Repository, h))
	require.NoError(w.t, err)
	v, err := new(registry.Client).Source(ref).Resolve(w.t.Context())
	require.NoError(w.t, err)
	return image.Hash(v.Layers()[0].Digest)
}

// around asserts that a wait was so long, give or take its jitter.
func around(t *testing.T, want time.Duration, f failed) {
	t.Helper()
	assert.InDelta(t, want.Seconds(), f.In.Seconds(), 0.2*want.Seconds()+1, "%v", f)
}

// TestKeepsTrying: nobody is there to reboot a CVM because something was away for a while.
func TestKeepsTrying(t *testing.T) {
	t.Parallel()
	const rest = time.Hour
	for what, c := range map[string]struct {
		code        exit.Code
		step        admission.Step
		arrange     func(w *world)
		heal        func(w *world)
		first, next time.Duration // waits
	}{
		"a registry that is away": {
			exit.Unavailable, admission.AtPull,
			func(w *world) { require.NoError(w.t, w.Registry.Stop()) },
			func(w *world) { require.NoError(w.t, w.Registry.Start()) },
			30 * time.Second, time.Minute,
		},
		"a digest that is pushed late": {
			exit.Refused, admission.AtPull,
			func(w *world) {
				w.images(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 404, On: launchtest.RequestManifest})
			},
			func(w *world) { w.Registry.Heal() },
			30 * time.Second, time.Minute,
		},
		"layers that lie": {
			exit.Mismatch, admission.AtLoad,
			func(w *world) {
				w.images(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: w.layer()})
			},
			func(w *world) { w.Registry.Heal() },
			rest, 2 * rest,
		},
		"an engine that can't load": {
			exit.Engine, admission.AtLoad,
			func(w *world) {
				w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadDiskFull})
			},
			func(w *world) { w.Engine.Heal() },
			rest, 2 * rest,
		},
		// The image is there by then, so that another attempt costs nothing.
		"an engine that can't create": {
			exit.Engine, admission.AtCreate,
			func(w *world) {
				w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/create", Times: -1, Status: 500})
			},
			func(w *world) { w.Engine.Heal() },
			rest, 30 * time.Second,
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w, j := judgedWorld(t)
			c.arrange(w)
			l := w.attempts(func(failed int) {
				report := w.report()
				assert.Nil(t, report.ExitCode, "it isn't the end")
				assert.Nil(t, report.FinishedAt)
				i := slices.IndexFunc(report.Steps, func(s launch.StepReport) bool { return s.Name == string(c.step) })
				assert.Equal(t, launch.Status("failed"), report.Steps[i].Status)
				for _, later := range report.Steps[i+1:] {
					assert.Equal(t, launch.Status("pending"), later.Status, "%s", later.Name)
				}
				if assert.NotNil(t, report.Error) {
					assert.True(t, strings.HasPrefix(*report.Error, string(c.step)+": "), "%s", *report.Error)
				}
				assert.Equal(t, failed, report.Attempt)
				assert.Zero(t, w.Agent.Emits())
				if failed == 2 {
					c.heal(w)
				}
			})
			failures := l.failures()
			require.Len(t, failures, 2, "%q", l.messages())
			for i, f := range failures {
				assert.Equal(t, i+1, f.Attempt)
				assert.Equal(t, c.code, f.ExitCode)
				assert.Equal(t, c.step, f.Step)
				assert.NotEmpty(t, f.Hints)
			}
			around(t, c.first, failures[0])
			around(t, c.next, failures[1])
			w.accepted(w.Digests[0])
			assert.Equal(t, 1, w.Agent.Emits())
			assert.Equal(t, 1, w.workload().Starts)
			report := w.report()
			assert.Equal(t, launch.ReportVersion, report.Version)
			assert.Equal(t, 3, report.Attempt)
			assert.Nil(t, report.Error)
			assert.Equal(t, "running", string(report.Steps[len(report.Steps)-1].Status))
			w.sound(j)
		})
	}
}

// TestAnEngineThatGoesAwayUnderCompose is what has to come back: it isn't Compose that is broken.
func TestAnEngineThatGoesAwayUnderCompose(t *testing.T) {
	t.Parallel()
	w, j := judgedWorld(t)
	gone := make(chan struct{})
	w.Engine.Fail(launchtest.EngineFault{
		Match: "POST /containers/create", Skip: 1, Hang: true, // the first one is the holder
		Before: func() {
			go func() {
				defer close(gone)
				assert.NoError(t, w.Engine.Stop(true))
			}()
		},
	})
	l := w.attempts(func(int) {
		<-gone
		assert.NoError(t, w.Engine.Start())
	})
	failures := l.failures()
	require.Len(t, failures, 1, "%q", l.messages())
	assert.Equal(t, admission.AtCreate, failures[0].Step)
	assert.Equal(t, exit.Engine, failures[0].ExitCode, "%s", failures[0].Error)
	around(t, 30*time.Second, failures[0])
	w.accepted(w.Digests[0])
	assert.Equal(t, 1, w.Engine.Loads(), "what is there isn't fetched again")
	w.sound(j)
}

// TestAnEngineThatGoesAwayAtTheStart isn't a workload that fails, and the next run goes on from there.
func TestAnEngineThatGoesAwayAtTheStart(t *testing.T) {
	t.Parallel()
	for _, request := range []string{"POST /containers/*/start", "GET /containers/*/json"} {
		w, j := judgedWorld(t)
		w.onLine = func(message string) {
			if message == "step started start" {
				w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", Close: strings.HasPrefix(request, "POST")})
				w.Engine.Fail(launchtest.EngineFault{Match: "GET /containers/*/json", Skip: 1, Times: -1, Close: true})
			}
		}
		l := w.begin("")
		err := l.end()
		assert.Equal(t, exit.Engine, exit.Of(err), "%s: %v", request, err)
		assert.ErrorContains(t, err, "start: ")
		w.onLine = nil
		w.Engine.Heal()
		w.mustBoot()
		w.accepted(w.Digests[0])
		assert.Equal(t, 1, w.Agent.Emits())
		assert.Equal(t, 1, w.workload().Starts)
		w.sound(j)
	}
}

// TestWaitsGrow up to a bound, and a costly attempt is followed by longer ones.
func TestWaitsGrow(t *testing.T) {
	t.Parallel()
	for rest, want := range map[bool][]time.Duration{
		false: {30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 5 * time.Minute, 5 * time.Minute},
		true:  {time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour, 6 * time.Hour},
	} {
		for before, d := range want {
			assert.Equal(t, d, launch.Pause(before, rest))
		}
		assert.Equal(t, want[len(want)-1], launch.Pause(1_000_000, rest))
	}
	assert.True(t, launch.Costly(exit.Engine, 101, 1000))
	assert.True(t, launch.Costly(exit.Mismatch, 101, 1000))
	assert.False(t, launch.Costly(exit.Mismatch, 100, 1000))
	assert.False(t, launch.Costly(exit.Unavailable, 1000, 1000))
	assert.False(t, launch.Costly(exit.Refused, 1000, 1000))
}

// TestOnlyWhoSupervisesTriesAgain.
func TestOnlyWhoSupervisesTriesAgain(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]struct {
		platform  config.Platform
		supervise admission.Supervise
		tries     int
	}{
		"TEE, unsupervised":         {config.TEE, admission.SuperviseOff, 1},
		"outside a CVM":             {config.NONTEE, admission.SuperviseAuto, 1},
		"outside a CVM, supervised": {config.NONTEE, admission.SuperviseOn, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{platform: o.platform})
			w.settings.Supervise = o.supervise
			require.NoError(t, w.Registry.Stop())
			var l *watched
			w.onLine = w.afterFailures(func(int) { assert.NoError(t, w.Registry.Start()) })
			l = w.begin("")
			if o.tries == 1 {
				assert.Equal(t, exit.Unavailable, exit.Of(l.end()))
				assert.Empty(t, l.failures())
				return
			}
			w.eventually("it supervises", func() bool { return l.said("supervising") > 0 })
			assert.Len(t, l.failures(), 1)
			assert.Empty(t, w.Agent.Requests())
		})
	}
}

// TestAConfigThatIsBeingSaved ends the boot that finds it so, and not one that waits.
func TestAConfigThatIsBeingSaved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	require.NoError(t, os.WriteFile(w.ConfigFile, []byte("[launcher_config]\nimage"), 0o600))
	l := w.begin("")
	assert.Equal(t, exit.Config, exit.Of(l.end()))
	assert.Empty(t, l.failures(), "nobody has changed it")

	w.configure("")
	w.approve(w.Digests[1], w.Digests[0])
	w.images(launchtest.RegistryFault{
		Kind: launchtest.FaultStatus, Status: 404, On: launchtest.RequestManifest, Digest: image.Hash(w.Digests[1]),
	})
	l = w.attempts(func(failed int) {
		switch failed {
		case 1:
			assert.NoError(t, os.WriteFile(w.ConfigFile, []byte("[launcher_config]\nimage"), 0o600))
		case 2:
			assert.NoError(t, os.Remove(w.ConfigFile))
		case 3:
			w.configure(fmt.Sprintf("mpc_hash_override = %q", digest.Of(nil)))
		case 4:
			w.configure(fmt.Sprintf("mpc_hash_override = %q", w.Digests[0]))
		}
	})
	var codes []exit.Code
	for _, f := range l.failures() {
		codes = append(codes, f.ExitCode)
	}
	assert.Equal(t, []exit.Code{exit.Refused, exit.Config, exit.Config, exit.Config}, codes)
	w.accepted(w.Digests[0])
	assert.Equal(t, "override", w.report().Image.Reason)
}

// TestARestIsCutShort by whatever may make the next attempt end otherwise.
func TestARestIsCutShort(t *testing.T) {
	t.Parallel()
	big := func(w *world) string { return w.Shared("../root/big") }
	for name, c := range map[string]struct {
		change func(w *world)
		said   string // empty: nothing has changed
	}{
		"the user config": {func(w *world) { w.configure("pull_retry_interval_secs = 7") }, "user config or approved list"},
		"the list":        {func(w *world) { w.approve(w.Digests[0], w.Digests[1]) }, "user config or approved list"},
		"the engine": {func(w *world) {
			w.Engine.Fail(launchtest.EngineFault{Match: "GET /info", Status: 500, Times: 1})
		}, "engine"},
		"room": {func(w *world) { require.NoError(w.t, os.Remove(big(w))) }, "free space"},
		"the time of a file": {func(w *world) {
			now := time.Now().Add(time.Hour)
			require.NoError(w.t, os.Chtimes(w.ConfigFile, now, now))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var root string
			if name == "room" {
				root = t.TempDir()
			}
			w := newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{Root: root}}})
			if root != "" {
				big = func(*world) string { return root + "/big" }
				require.NoError(t, os.WriteFile(big(w), make([]byte, 64<<20), 0o600))
			}
			w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadDiskFull})
			failures, naps := 0, 0
			w.onLine = w.afterFailures(func(n int) { failures = n })
			w.onNap = func() {
				if failures == 0 {
					return
				}
				if naps++; naps == 3 {
					w.Engine.Heal()
					c.change(w)
				}
			}
			l := w.watch()
			changed := l.said("trying again at once")
			if c.said == "" {
				assert.Zero(t, changed)
				assert.GreaterOrEqual(t, naps, 90, "an hour, less jitter")
				return
			}
			require.Positive(t, changed, "%q", l.messages())
			assert.Contains(t, string(l.line("trying again at once")), `"changed":"`+c.said+`"`)
			assert.Less(t, naps, 90)
		})
	}
}

// TestWhatComesWhileItWaits is met as at a boot.
func TestWhatComesWhileItWaits(t *testing.T) {
	t.Parallel()
	socket := func(w *world) []string { return []string{w.AgentSocket + ":/var/run/dstack.sock"} }
	for name, c := range map[string]struct {
		comes func(w *world)
		says  string // empty: it is coped with
	}{
		"an event of somebody's": {func(w *world) { w.emitAsSomebody(0) }, "not by a launcher"},
		"the same, and no record": {func(w *world) {
			w.emitAsSomebody(0)
			assert.NoError(w.t, os.RemoveAll(w.Shared("launcher")))
		}, "not by a launcher"},
		"another image's event":   {func(w *world) { w.emitAsSomebody(1) }, "not by a launcher"},
		"a holder of the socket":  {func(w *world) { w.make(stranger{name: "stranger", mounts: socket(w)}) }, "holds the guest agent's socket"},
		"an agent that went away": {func(w *world) { assert.NoError(w.t, w.Agent.Stop()) }, "agent"},
		"an old workload":         {func(w *world) { w.make(stranger{name: "old", project: "mpc-node", mounts: socket(w)}) }, ""},
		"an impostor":             {func(w *world) { w.make(stranger{name: "mpc-node", policy: "always", mounts: socket(w)}) }, ""},
		"an impostor that emitted": {func(w *world) {
			w.make(stranger{name: "mpc-node", policy: "always", mounts: socket(w)})
			w.emitAsSomebody(0)
			assert.NoError(w.t, os.RemoveAll(w.Shared("launcher")))
		}, "measured"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := impostorWorld(t)
			i.reboot()
			i.does("DELETE", "/containers/mpc-node")
			require.NoError(t, i.Registry.Stop())
			emits := 0
			l := i.attempts(func(int) {
				i.judge.look(false)
				c.comes(i.world)
				i.judge.look(true)
				emits = i.Agent.Emits()
				assert.NoError(t, i.Registry.Start())
			})
			if c.says != "" {
				err := l.end()
				assert.Equal(t, exit.Measurement, exit.Of(err), "%v", err)
				assert.ErrorContains(t, err, c.says)
				assert.Equal(t, emits, i.Agent.Emits())
				for _, held := range i.Engine.Containers() {
					assert.True(t, held.Name == "stranger" || held.Status != "running", held.Name)
				}
				return
			}
			i.accepted(i.Digests[1])
			for _, other := range i.Engine.Containers() {
				assert.True(t, other.Name == "mpc-node" || other.Status != "running", other.Name)
			}
			assert.Empty(t, i.judge.verdict())
		})
	}
}

// TestNobodyWaitsBesideAnImpostor that can't be ended, or an engine that can't be asked for one.
func TestNobodyWaitsBesideAnImpostor(t *testing.T) {
	t.Parallel()
	for _, f := range []launchtest.EngineFault{
		{Match: "POST /containers/*/stop", Status: 304}, {Match: "GET /containers/json", Status: 500, Message: "no"},
	} {
		i := impostorWorld(t)
		i.reboot()
		i.does("DELETE", "/containers/mpc-node")
		require.NoError(t, i.Registry.Stop())
		f.Times = -1
		l := i.attempts(func(int) {
			i.judge.look(false)
			i.make(stranger{name: "mpc-node", policy: "always"})
			i.judge.look(true)
			i.Engine.Fail(f)
			assert.NoError(t, i.Registry.Start())
		})
		err := l.end()
		assert.Equal(t, exit.Engine, exit.Of(err), "%v", err)
		assert.ErrorContains(t, err, "probe: ")
		assert.Len(t, l.failures(), 1, "%q", l.messages())
	}
}

// TestADiskThatIsFreed: the load waits for it, and what was recorded before needs no room again.
func TestADiskThatIsFreed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadDiskFull})
	full := []string{".measurement.json.tmp/x", ".measurement.json.tmp.aside/x", "measurement.json.tmp.aside/x"}
	l := w.attempts(func(failed int) {
		switch failed {
		case 1:
			for _, path := range full {
				assert.NoError(t, os.MkdirAll(w.Shared("launcher/"+path), 0o755))
			}
		case 2:
			for _, path := range full {
				assert.NoError(t, os.RemoveAll(filepath.Dir(w.Shared("launcher/"+path))))
			}
			w.Engine.Heal()
		}
	})
	for _, f := range l.failures() {
		assert.Equal(t, admission.AtLoad, f.Step)
		assert.Equal(t, exit.Engine, f.ExitCode)
	}
	assert.Len(t, l.failures(), 2)
	w.accepted(w.Digests[0])
}

// TestAConfigThatIsBeingSavedWhereAnImageIsMeasured is read by the probe, and waited for as well.
func TestAConfigThatIsBeingSavedWhereAnImageIsMeasured(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	require.NoError(t, w.watch().terminate())
	w.does("DELETE", "/containers/mpc-node")
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/create", Times: -1, Status: 500})
	config, err := os.ReadFile(w.ConfigFile)
	require.NoError(t, err)
	l := w.attempts(func(failed int) {
		switch failed {
		case 1:
			w.Engine.Heal()
			assert.NoError(t, os.WriteFile(w.ConfigFile, config[:30], 0o600))
		case 2:
			assert.NoError(t, os.WriteFile(w.ConfigFile, config, 0o600))
		}
	})
	failures := l.failures()
	require.Len(t, failures, 2, "%q", l.messages())
	assert.Equal(t, exit.Config, failures[1].ExitCode)
	assert.Equal(t, 1, w.Agent.Emits())
}

// TestASignalEndsAWait, and nothing is left of it.
func TestASignalEndsAWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	require.NoError(t, w.Registry.Stop())
	var l *watched
	ready := make(chan struct{})
	w.onLine = w.afterFailures(func(failed int) {
		if <-ready; failed == 3 {
			l.signal()
		}
	})
	l = w.begin("")
	close(ready)
	err := l.end()
	assert.Equal(t, exit.Terminated, exit.Of(err), "%v", err)
	assert.Len(t, l.failures(), 3)
	assert.Empty(t, w.Engine.Containers())
	assert.Empty(t, w.seen())
	report := w.report()
	require.NotNil(t, report.ExitCode)
	assert.Equal(t, exit.Terminated, *report.ExitCode)
	require.NoError(t, w.Registry.Start())
	w.onLine = nil
	w.mustBoot()
}

// TestWhatIsMeasuredStaysWhileItWaits, whatever list and override become; what the list doesn't hold any more is the end.
func TestWhatIsMeasuredStaysWhileItWaits(t *testing.T) {
	t.Parallel()
	for _, revoked := range []bool{false, true} {
		t.Run(fmt.Sprintf("revoked %v", revoked), func(t *testing.T) {
			t.Parallel()
			w, j := judgedWorld(t)
			w.settings.FallbackAfter = time.Nanosecond // and no fallback either
			w.approve(w.Digests[0])
			w.mustBoot()
			image := w.workload().Image
			for _, c := range w.Engine.Containers() {
				w.does("DELETE", "/containers/"+c.ID+"?force=1")
			}
			w.does("DELETE", "/images/"+image+"?force=1")
			require.NoError(t, w.Registry.Stop())
			l := w.attempts(func(failed int) {
				switch failed {
				case 1:
					w.approve(w.Digests[1], w.Digests[0])
				case 2:
					w.configure(fmt.Sprintf("mpc_hash_override = %q", w.Digests[1]))
				case 3:
					w.configure("")
					if revoked {
						w.approve(w.Digests[1])
					}
				case 4:
					assert.NoError(t, w.Registry.Start())
				}
			})
			for _, f := range l.failures() {
				assert.Contains(t, f.Error, w.Digests[0].String())
			}
			w.accepted(w.Digests[0])
			assert.Equal(t, 1, w.Agent.Emits())
			assert.Empty(t, j.verdict())
			if revoked {
				assert.Len(t, l.failures(), 3)
				assert.Equal(t, exit.Measurement, exit.Of(l.end()))
				assert.Empty(t, w.Engine.Containers())
				return
			}
			assert.Len(t, l.failures(), 4)
			assert.Equal(t, "measured", w.report().Image.Reason)
			assert.Equal(t, "running", w.status())
		})
	}
}

// TestASignalAtAnyPoint of a run whose first attempt failed ends it, without another wait, and leaves nothing that the next run
// doesn't cope with.
func TestASignalAtAnyPoint(t *testing.T) {
	t.Parallel()
	failing := func(t *testing.T) (*world, *judge) {
		w, j := judgedWorld(t)
		w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestManifest, Times: 3})
		return w, j
	}
	reference, _ := failing(t)
	lines := reference.watch().messages()
	last := slices.Index(lines, "step started start")
	require.Greater(t, last, 20, "%q", lines)
	for i := 0; i <= last; i += stride {
		t.Run(fmt.Sprintf("%d %s", i+1, lines[i]), func(t *testing.T) {
			t.Parallel()
			w, j := failing(t)
			var l *watched
			ready, seen, naps := make(chan struct{}), -1, 0
			w.onLine = func(string) {
				<-ready
				if seen++; seen == i {
					l.signal()
				}
			}
			w.onNap = func() {
				if seen >= i {
					naps++
				}
			}
			l = w.begin("")
			close(ready)
			err := l.end()
			assert.Equal(t, exit.Terminated, exit.Of(err), "%v", err)
			assert.LessOrEqual(t, naps, 1, "what it would have slept is cut short")
			assert.Zero(t, w.starts())
			w.sound(j)
			w.onLine, w.onNap = nil, nil
			w.Registry.Heal()
			w.mustBoot()
			w.accepted(w.Digests[0])
			w.sound(j)
			assert.Equal(t, 1, w.Agent.Emits())
			assert.Len(t, w.Engine.Containers(), 2, "the workload and its holder")
		})
	}
}

// starts returns how often a workload was started.
func (w *world) starts() (n int) {
	for _, c := range w.Engine.Containers() {
		n += c.Starts
	}
	return n
}

// TestAThousandAttempts cost neither memory nor files nor bytes. It is alone, because it counts what the whole process has.
func TestAThousandAttempts(t *testing.T) {
	const many = 1000 / stride
	w := newWorld(t, options{})
	w.missing(w.Digests[0])
	w.settings.Report = admission.NoReport // a disk is slow
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	used := func() (heap uint64, goroutines, files int) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		open, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return m.HeapAlloc, runtime.NumGoroutine(), len(open)
	}
	failed, begun := 0, w.clock.Now()
	var heap uint64
	var goroutines, files int
	l := launch.Launcher{Settings: w.settings, BootID: w.bootID, Now: w.clock.Now, Sleep: func(ctx context.Context, d time.Duration) error {
		if d < launch.Pause(0, false)/2 {
			return w.clock.Sleep(ctx, d) // between two requests
		}
		switch failed++; failed {
		case many / 10:
			heap, goroutines, files = used()
		case many:
			heapNow, goroutinesNow, filesNow := used()
			t.Logf("after %d attempts %d bytes, %d goroutines, %d files; after %d %d, %d, %d",
				many/10, heap, goroutines, files, many, heapNow, goroutinesNow, filesNow)
			// The doubles write down every request.
			assert.Less(t, int64(heapNow)-int64(heap), int64(many*4<<10))
			assert.LessOrEqual(t, goroutinesNow, goroutines+10)
			assert.LessOrEqual(t, filesNow, files+10)
			cancel(&exit.Error{Code: exit.Terminated, Err: errors.New("enough")})
		}
		return w.clock.Sleep(ctx, d)
	}}
	assert.Equal(t, exit.Terminated, exit.Of(l.Run(ctx)))
	assert.Equal(t, many, failed)
	assert.Zero(t, w.Registry.BlobBytes())
	assert.Empty(t, w.seen())
	assert.Greater(t, w.clock.Now().Sub(begun), (many-10)*4*time.Minute, "it takes days")
}

// TestCostlyAttemptsAreRare: the bytes that are fetched in vain grow by an image in hours.
func TestCostlyAttemptsAreRare(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadDiskFull, LoadBytes: 60_000})
	const hours = 3
	l := w.attempts(func(failed int) {
		if failed == hours {
			w.Engine.Heal()
		}
	})
	failures := l.failures()
	require.Len(t, failures, hours)
	for i, f := range failures {
		around(t, launch.Pause(i, true), f)
	}
	assert.LessOrEqual(t, w.Registry.BlobBytes(), int64((hours+1)*100_000))
}

// TestManyAttempts use up nothing: what isn't there is asked for, and what is there isn't touched.
func TestManyAttempts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/create", Times: -1, Status: 500})
	var fetched int64
	l := w.attempts(func(failed int) {
		switch failed {
		case 1:
			fetched = w.Registry.BlobBytes()
		case 10:
			w.Engine.Heal()
		}
	})
	assert.Len(t, l.failures(), 10)
	assert.Equal(t, fetched, w.Registry.BlobBytes(), "what is proved and loaded was fetched again")
	assert.Equal(t, 1, w.Engine.Loads())
	var names []string
	for _, c := range w.Engine.Containers() {
		names = append(names, strings.TrimRight(c.Name, "0123456789."))
	}
	slices.Sort(names)
	assert.Equal(t, []string{"mpc-node", "mpc-node-holder-"}, names)
}
