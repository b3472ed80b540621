package launch_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/stage"
	"tee-launcher/pkg/status"
)

func halfFull(string) (free, all int64, err error) { return 50e9, 100e9, nil }

// stagingWorld is one with a list of one digest and staging, which waits for nothing but the next look.
func stagingWorld(t *testing.T, o options) *world {
	t.Helper()
	w := newWorld(t, o)
	w.stage, w.disk = stage.Settings{Mode: stage.Auto}, halfFull
	w.approve(w.Digests[0])
	return w
}

// idle waits until staging has looked and done what was to be done.
func (l *watched) idle() {
	l.w.t.Helper()
	asleep := func() bool {
		looks := 0
		for _, d := range l.sleeps() {
			if d == time.Minute {
				looks++
			}
		}
		return looks > l.minutes
	}
	require.True(l.w.t, await(l.ended, asleep), "it doesn't come to its end: %q", l.messages())
}

// minute waits until staging is idle, lets a minute pass and has it look again. It may still be at it.
func (l *watched) minute() {
	l.w.t.Helper()
	l.idle()
	minute := func() bool {
		select {
		case d := <-l.naps:
			if d != time.Minute {
				return false // between two looks at the disk
			}
			l.w.clock.mu.Lock()
			l.w.clock.elapsed += d
			l.w.clock.mu.Unlock()
			return true
		default:
			return false
		}
	}
	require.True(l.w.t, await(l.ended, minute), "it doesn't look: %q", l.messages())
	l.minutes++
}

// approve writes the list while nobody reads it.
func (l *watched) approve(digests ...digest.Digest) {
	l.w.t.Helper()
	l.idle()
	l.w.approve(digests...)
}

// passes lets time pass, of which only the last minute is looked at.
func (l *watched) passes(d time.Duration) {
	l.w.t.Helper()
	l.w.clock.mu.Lock()
	l.w.clock.elapsed += d - time.Minute
	l.w.clock.mu.Unlock()
	l.minute()
}

func (w *world) staged() launch.StagedReport {
	report, err := w.tryReport()
	if err != nil || report.Staged == nil {
		return launch.StagedReport{}
	}
	return *report.Staged
}

// stages waits for a state.
func (w *world) stages(state stage.State, of digest.Digest) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("it is %q: %v", state, w.staged()), func() bool {
		s := w.staged()
		return s.State == state && (s.Digest == nil && of.IsZero() || s.Digest != nil && *s.Digest == of)
	})
}

// nothingStaged waits until nothing is to be staged.
func (w *world) nothingStaged() {
	w.t.Helper()
	w.eventually("nothing is to be staged", func() bool {
		report, err := w.tryReport()
		return err == nil && report.Staged == nil
	})
}

func (w *world) container(name string) *launchtest.ContainerInfo {
	for _, c := range w.Engine.Containers() {
		if c.Name == name {
			return &c
		}
	}
	return nil
}

// loads is how often an engine was asked to load.
func (w *world) loads() (n int) {
	for _, r := range w.Engine.Requests() {
		if strings.HasPrefix(r, "POST /images/load") {
			n++
		}
	}
	return n
}

// only requires that the engine has so many images, and none of our containers but these.
func (w *world) only(images int, containers ...string) {
	w.t.Helper()
	assert.Len(w.t, w.Engine.Images(), images)
	var names []string
	for _, c := range w.Engine.Containers() {
		if strings.HasPrefix(c.Name, compose.Staged) {
			names = append(names, c.Name)
		}
	}
	assert.ElementsMatch(w.t, containers, names)
}

// prune is what dstack does at boot.
func (w *world) prune() {
	w.t.Helper()
	w.does(http.MethodPost, `/images/prune?filters={"dangling":["false"]}`)
	w.does(http.MethodPost, "/volumes/prune")
}

// stageNext boots the first image, has the second approved and waits until that is staged.
func (w *world) stageNext() *watched {
	w.t.Helper()
	l := w.watch()
	l.approve(w.Digests[1], w.Digests[0])
	l.minute()
	w.stages(stage.Staged, w.Digests[1])
	return l
}

// TestStagesAhead: the next boot runs the new image without a registry, however the machine went
// down and whatever was pruned.
func TestStagesAhead(t *testing.T) {
	t.Parallel()
	for _, containerd := range []bool{false, true} {
		for _, orderly := range []bool{false, true} {
			t.Run(fmt.Sprintf("containerd %v, orderly %v", containerd, orderly), func(t *testing.T) {
				t.Parallel()
				engine := launchtest.EngineOptions{Containerd: containerd}
				if containerd {
					engine.APIVersion = "1.51"
				}
				w := stagingWorld(t, options{machine: launchtest.MachineOptions{
					Engine: engine, Config: v1.Config{
						Volumes: map[string]struct{}{"/data": {}, "/more": {}},
						// It would like to pass for the workload.
						Labels: map[string]string{compose.ProjectLabel: compose.Name, compose.ServiceLabel: compose.Name},
					},
				}})
				l := w.watch()
				l.minute()
				w.nothingStaged()
				before, volumes := w.seen(), w.Engine.Volumes()
				workload := w.workload()

				l.approve(w.Digests[1], w.Digests[0])
				l.minute()
				w.stages(stage.Staged, w.Digests[1])
				w.eventually("it is said", func() bool { return l.said("the image for the next boot is staged") == 1 })
				var effects []string
				for _, e := range w.seen()[len(before):] {
					if !strings.HasPrefix(e, "delete-image") {
						effects = append(effects, e)
					}
				}
				assert.Equal(t, []string{
					"create mpc-node-staged-pending", "load", "create mpc-node-staged", "remove mpc-node-staged-pending",
				}, slices.Compact(effects))
				c := w.container(compose.Staged)
				require.NotNil(t, c)
				assert.Equal(t, "created", c.Status)
				assert.Zero(t, c.Starts)
				assert.Contains(t, []string{"", "no"}, c.RestartPolicy)
				assert.Empty(t, c.Mounts)
				data, err := w.Engine.Call(http.MethodGet, "/containers/"+compose.Staged+"/json", nil)
				require.NoError(t, err)
				var made struct {
					HostConfig struct {
						Tmpfs       map[string]string
						NetworkMode string
					}
				}
				require.NoError(t, json.Unmarshal(data, &made))
				assert.Equal(t, map[string]string{"/data": "", "/more": ""}, made.HostConfig.Tmpfs)
				assert.Equal(t, "none", made.HostConfig.NetworkMode)
				assert.Equal(t, volumes, w.Engine.Volumes(), "a volume was made for it")
				assert.Equal(t, workload, w.workload(), "the workload was touched")
				assert.Equal(t, 1, w.Agent.Emits())

				for range 3 {
					w.prune()
					l.minute()
				}
				w.stages(stage.Staged, w.Digests[1])
				if orderly {
					require.NoError(t, l.terminate())
					require.NoError(t, w.Engine.Restart(true))
					w.Agent.Reboot()
					w.bootID += "-next"
				} else {
					w.reboot()
					l.signal()
					_ = l.end()
				}
				w.prune()
				require.NoError(t, w.Registry.Stop())
				requests := len(w.Registry.Requests())
				l = w.watch()
				w.accepted(w.Digests[1])
				report := w.report()
				assert.Equal(t, "engine", report.Pull.Source)
				assert.Zero(t, report.Pull.Requests)
				assert.Len(t, w.Registry.Requests(), requests)
				assert.Nil(t, w.container(compose.Staged), "it has done its duty")
				l.minute()
				w.nothingStaged()
				assert.Len(t, w.Engine.Images(), 1+1, "the old one's image is the prune's")
				require.NoError(t, l.terminate())
			})
		}
	}
}

// TestStagingWaits: for a choice that lasts, for its turn, and for an hour after the one before.
func TestStagingWaits(t *testing.T) {
	t.Parallel()
	w := stagingWorld(t, options{machine: launchtest.MachineOptions{Images: 3}})
	w.stage.After = 10 * time.Minute
	l := w.watch()
	l.minute()
	l.approve(w.Digests[1], w.Digests[0])
	l.minute()
	w.stages(stage.Waiting, w.Digests[1])
	l.approve(w.Digests[2], w.Digests[1], w.Digests[0])
	l.passes(9 * time.Minute)
	w.stages(stage.Waiting, w.Digests[2])
	l.passes(9 * time.Minute)
	l.minute()
	w.stages(stage.Staged, w.Digests[2])
	began := w.clock.Now()

	// Three versions in a row: one at most is there, and a new one is begun after an hour.
	for _, next := range []int{1, 2} {
		l.approve(w.Digests[next], w.Digests[0])
		l.minute()
		w.stages(stage.Waiting, w.Digests[next])
		assert.NotNil(t, w.container(compose.Staged), "the list may go back in a moment")
		l.passes(11 * time.Minute)
		l.minute()
		w.eventually("the old one goes", func() bool { return w.container(compose.Staged) == nil })
		w.stages(stage.Waiting, w.Digests[next])
		for w.clock.Now().Sub(began) < 57*time.Minute {
			l.minute()
		}
		w.only(1)
		l.passes(4 * time.Minute)
		l.minute()
		w.stages(stage.Staged, w.Digests[next])
		began = w.clock.Now()
		w.only(2, compose.Staged)
	}
	// The present one can boot without a registry too.
	require.NoError(t, w.Registry.Stop())
	l.approve(w.Digests[0])
	w.reboot()
	l.signal()
	_ = l.end()
	w.mustBoot()
	w.accepted(w.Digests[0])
}

// TestTheListGoesBack to what runs, and nothing of the other image stays.
func TestTheListGoesBack(t *testing.T) {
	t.Parallel()
	w := stagingWorld(t, options{})
	l := w.stageNext()
	l.approve(w.Digests[0])
	l.minute()
	l.minute()
	w.nothingStaged()
	l.passes(12 * time.Minute)
	l.minute()
	w.only(1)
	assert.Equal(t, "running", w.status())
}

// TestStagingRemovesOnlyWhatItLoaded: not what was there before, nor what another container has.
func TestStagingRemovesOnlyWhatItLoaded(t *testing.T) {
	t.Parallel()
	t.Run("there before", func(t *testing.T) {
		t.Parallel()
		w := stagingWorld(t, options{})
		w.approve(w.Digests[1])
		w.mustBoot() // loads the second
		w.reboot()
		w.approve(w.Digests[0])
		l := w.watch()
		l.approve(w.Digests[1], w.Digests[0])
		l.minute()
		w.stages(stage.Staged, w.Digests[1])
		l.approve(w.Digests[0])
		l.minute()
		l.minute()
		w.nothingStaged()
		w.only(2)
	})
	t.Run("in use", func(t *testing.T) {
		t.Parallel()
		w := stagingWorld(t, options{})
		l := w.stageNext()
		_, err := w.Engine.Call(http.MethodPost, "/containers/create?name=mine",
			map[string]any{"Image": w.container(compose.Staged).Image, "Cmd": []string{"x"}})
		require.NoError(t, err)
		l.approve(w.Digests[0])
		l.minute()
		l.minute()
		w.nothingStaged()
		l.passes(12 * time.Minute)
		l.minute()
		w.only(2)
	})
}

// TestWhatCannotBeStagedIsKnownAhead, and the workload runs on.
func TestWhatCannotBeStagedIsKnownAhead(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		spoil func(w *world)
		error string
		of    bool // the digest is known
	}{
		"no such image": {func(w *world) {
			w.images(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 404, On: launchtest.RequestManifest})
			w.approve(w.Digests[1], w.Digests[0])
		}, "404", true},
		"a layer that lies": {func(w *world) {
			w.images(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob})
			w.approve(w.Digests[1], w.Digests[0])
		}, "sha256:", true},
		"a list that can't be read": {func(w *world) {
			assert.NoError(w.t, os.WriteFile(w.Shared(approval.File), []byte("{"), 0o600))
		}, approval.File, false},
		"an override that nobody approved": {func(w *world) {
			w.configure(fmt.Sprintf("mpc_hash_override = %q", w.Digests[1]))
		}, "override", false},
		"a config with a reserved key": {func(w *world) {
			assert.NoError(w.t, w.Configure("", "tee = 1"))
		}, "tee", false},
		"an engine that can't load": {func(w *world) {
			w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadDiskFull})
			w.approve(w.Digests[1], w.Digests[0])
		}, "no space left", true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := stagingWorld(t, options{})
			l := w.watch()
			l.idle()
			c.spoil(w)
			l.minute()
			w.eventually("it fails", func() bool { return w.staged().State == stage.Failed })
			s := w.staged()
			require.NotNil(t, s.Error)
			assert.Contains(t, *s.Error, c.error)
			assert.Equal(t, c.of, s.Digest != nil, "%v", s.Digest)
			told := l.lastTold().Staged
			require.NotNil(t, told, "the status line says so")
			assert.Equal(t, status.Staged{Digest: s.Digest, State: string(s.State), Error: s.Error, At: s.At}, *told)
			for range 3 {
				l.minute()
			}
			assert.Equal(t, 1, l.said("can't be staged"), "a line per change: %q", l.messages())
			l.passes(12 * time.Minute)
			l.minute()
			w.only(1)
			assert.Equal(t, "running", w.status())

			w.Registry.Heal()
			w.Engine.Heal()
			l.idle()
			w.configure("")
			l.approve(w.Digests[1], w.Digests[0])
			l.passes(time.Hour)
			l.minute()
			w.stages(stage.Staged, w.Digests[1])
			assert.Nil(t, w.staged().Error)
		})
	}
}

// TestStagingLeavesRoom: a tenth of the disk before and while it loads, a twentieth after that.
func TestStagingLeavesRoom(t *testing.T) {
	t.Parallel()
	disk := func(w *world) *atomic.Int64 {
		free := new(atomic.Int64)
		free.Store(50e9)
		w.disk = func(string) (int64, int64, error) { return free.Load(), 100e9, nil }
		return free
	}
	t.Run("before", func(t *testing.T) {
		t.Parallel()
		w := stagingWorld(t, options{})
		free := disk(w)
		l := w.watch()
		free.Store(10e9 + 50_000) // the image has more
		l.approve(w.Digests[1], w.Digests[0])
		l.minute()
		w.stages(stage.Failed, w.Digests[1])
		assert.Contains(t, *w.staged().Error, "less than a tenth of the engine's disk would be left")
		assert.Equal(t, 1, w.Engine.Loads())
		w.only(1)
	})
	t.Run("meanwhile", func(t *testing.T) {
		t.Parallel()
		w := stagingWorld(t, options{})
		free := disk(w)
		l := w.watch()
		l.idle()
		w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Hang: true, Times: -1})
		l.approve(w.Digests[1], w.Digests[0])
		loads := w.loads()
		l.minute()
		w.eventually("it loads", func() bool { return w.loads() > loads })
		w.clock.mu.Lock()
		w.clock.elapsed += time.Hour // an image takes long to come at a low rate
		w.clock.mu.Unlock()
		free.Store(10e9 - 1)
		l.nap(2 * time.Second)
		w.stages(stage.Failed, w.Digests[1])
		assert.Contains(t, *w.staged().Error, "too little room")
		l.minute()
		l.idle()
		assert.NotNil(t, w.container(compose.Staged+"-pending"), "the engine may still be at it")
		w.Engine.Heal()
		l.passes(12 * time.Minute)
		l.minute()
		w.only(1)
	})
	t.Run("faster than it is looked", func(t *testing.T) {
		t.Parallel()
		w := stagingWorld(t, options{})
		free := disk(w)
		w.disk = func(string) (int64, int64, error) {
			if len(w.Engine.Images()) > 1 { // it has unpacked to more than it came as
				return 10e9 - 1, 100e9, nil
			}
			return free.Load(), 100e9, nil
		}
		l := w.watch()
		l.approve(w.Digests[1], w.Digests[0])
		l.minute()
		w.stages(stage.Failed, w.Digests[1])
		assert.Contains(t, *w.staged().Error, "too little room")
		l.passes(12 * time.Minute)
		l.minute()
		w.only(1)
		assert.Equal(t, "running", w.status())
		loads := w.loads()
		for range 3 {
			l.passes(2 * time.Hour)
		}
		l.idle()
		assert.Equal(t, loads, w.loads(), "it is fetched again, and would not fit again")
		w.stages(stage.Failed, w.Digests[1])
		free.Store(60e9)
		l.passes(2 * time.Hour)
		l.idle()
		assert.Equal(t, loads+1, w.loads(), "there may be room now")
	})
	t.Run("after", func(t *testing.T) {
		t.Parallel()
		w := stagingWorld(t, options{})
		free := disk(w)
		l := w.stageNext()
		free.Store(5e9)
		l.minute()
		l.minute()
		w.only(2, compose.Staged)
		free.Store(5e9 - 1)
		l.minute()
		w.stages(stage.Failed, w.Digests[1])
		assert.Contains(t, *w.staged().Error, "less than a twentieth")
		l.passes(12 * time.Minute)
		l.minute()
		w.only(1)
		assert.Equal(t, "running", w.status())
	})
	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		w := stagingWorld(t, options{})
		w.disk = func(string) (int64, int64, error) { return 0, 0, errors.New("not here") }
		l := w.watch()
		l.approve(w.Digests[1], w.Digests[0])
		for range 3 {
			l.minute()
		}
		w.stages(stage.Disabled, digest.Digest{})
		assert.Contains(t, *w.staged().Error, "can't be seen")
		assert.Equal(t, 1, l.said("staging is off"))
		assert.Equal(t, 1, w.Engine.Loads())
	})
}

// TestStagingEndsWithASignal: while it waits for a registry, and while it loads.
func TestStagingEndsWithASignal(t *testing.T) {
	t.Parallel()
	for what, hang := range map[string]func(w *world) (reached func() bool){
		"at the registry": func(w *world) func() bool {
			w.images(launchtest.RegistryFault{Kind: launchtest.FaultNoHeader, On: launchtest.RequestBlob})
			before := w.Registry.Count(launchtest.RequestBlob)
			return func() bool { return w.Registry.Count(launchtest.RequestBlob) > before }
		},
		"at the engine": func(w *world) func() bool {
			before := w.loads()
			w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Hang: true, Times: -1})
			return func() bool { return w.loads() > before }
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := stagingWorld(t, options{})
			l := w.watch()
			l.idle()
			reached := hang(w)
			l.approve(w.Digests[1], w.Digests[0])
			l.minute()
			w.eventually("it fetches", reached)
			w.stages(stage.Fetching, w.Digests[1])
			require.NoError(t, l.terminate(), "an orderly end")
			report := w.report()
			assert.Equal(t, exit.OK, *report.ExitCode)
			assert.Equal(t, "exited", report.Workload.Status)
			assert.Zero(t, l.said("can't be staged"), "that isn't why")
		})
	}
}

// TestStagingOff stages nothing, and clears what was.
func TestStagingOff(t *testing.T) {
	t.Parallel()
	w := stagingWorld(t, options{})
	l := w.stageNext()
	w.reboot()
	l.signal()
	_ = l.end()
	l.approve(w.Digests[0]) // what is staged isn't what this boot runs
	w.stage.Mode = stage.Off
	l = w.watch()
	w.stages(stage.Disabled, digest.Digest{})
	assert.Nil(t, w.staged().Error)
	require.NotNil(t, l.lastTold().Staged)
	assert.Equal(t, status.StagingOff, l.lastTold().Staged.State)
	w.only(1)
	assert.Empty(t, l.sleeps(), "nobody looks")
}

// TestAStagedImageIsTrustedByNobody: the holder is no proof, and no workload.
func TestAStagedImageIsTrustedByNobody(t *testing.T) {
	t.Parallel()
	w := stagingWorld(t, options{})
	l := w.stageNext()
	w.reboot()
	l.signal()
	_ = l.end()
	// The workload had the shared volume until now.
	file := w.Shared("launcher/image-" + w.Digests[1].Hex() + ".json")
	require.FileExists(t, file)
	other, err := os.ReadFile(w.Shared("launcher/image-" + w.Digests[0].Hex() + ".json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, other, 0o600))
	before := w.Registry.Count(launchtest.RequestManifest)
	w.mustBoot()
	w.accepted(w.Digests[1])
	assert.Greater(t, w.Registry.Count(launchtest.RequestManifest), before, "the manifest is proved anew")
}

// TestTheWorkloadTakesTheManifest, and what is staged is made whole again.
func TestTheWorkloadTakesTheManifest(t *testing.T) {
	t.Parallel()
	w := stagingWorld(t, options{})
	l := w.stageNext()
	loads := w.Engine.Loads()
	l.idle()
	require.NoError(t, os.RemoveAll(w.Shared("launcher")))
	l.passes(time.Hour)
	l.minute()
	w.stages(stage.Staged, w.Digests[1])
	assert.FileExists(t, filepath.Join(w.Shared("launcher"), "image-"+w.Digests[1].Hex()+".json"))
	assert.Equal(t, loads, w.Engine.Loads())
	w.only(2, compose.Staged)
}

// TestKilledWhileItStages, at every request to the engine and to the registry, and while it takes away
// what it staged: a launcher of the same boot stages it, or leaves nothing of it, and the next boot runs
// what it should.
func TestKilledWhileItStages(t *testing.T) {
	t.Parallel()
	aftermaths := map[string]func(w *world){
		"the list goes back": func(w *world) {
			w.approve(w.Digests[0])
			l := w.watch()
			for range 3 {
				l.passes(12 * time.Minute)
			}
			l.idle()
			w.only(1)
			assert.Equal(w.t, "running", w.status())
			l.signal()
			_ = l.end()
		},
		"it is wanted as before": func(w *world) {
			w.approve(w.Digests[1], w.Digests[0])
			l := w.watch()
			w.stages(stage.Staged, w.Digests[1])
			for range 2 {
				l.passes(12 * time.Minute)
			}
			l.idle()
			w.only(2, compose.Staged)
			w.reboot()
			l.signal()
			_ = l.end()
			w.prune()
			require.NoError(w.t, w.Registry.Stop())
			w.mustBoot()
			w.accepted(w.Digests[1])
			w.only(1 + 1)
		},
		"a reboot": func(w *world) {
			w.approve(w.Digests[1], w.Digests[0])
			w.reboot()
			w.prune()
			w.mustBoot()
			w.accepted(w.Digests[1])
			w.prune()
			w.only(1)
		},
	}
	for what, prepare := range map[string]func(w *world){
		"it fetches": func(w *world) {
			w.mustBoot()
			w.approve(w.Digests[1], w.Digests[0])
		},
		"it clears": func(w *world) {
			l := w.stageNext()
			l.idle()
			w.once = true
			l.signal() // the workload ends with it; the next run starts it again
			_ = l.end()
			w.once = false
			w.approve(w.Digests[0])
		},
	} {
		reference := stagingWorld(t, options{})
		prepare(reference)
		before := len(reference.Engine.Requests())
		p := reference.start(0)
		require.True(t, p.until(func() bool {
			// It sleeps where nothing is asked any more.
			return slices.ContainsFunc(reference.Engine.Requests()[before:], func(r string) bool { return strings.HasPrefix(r, "GET /events") }) &&
				(what == "it fetches" && reference.staged().State == stage.Staged ||
					what == "it clears" && len(reference.Engine.Images()) == 1 && len(reference.Engine.Containers()) == 2)
		}), "%s", &p.stderr)
		p.kill()
		requests := reference.Engine.Requests()[before:]
		first := slices.IndexFunc(requests, func(r string) bool { return strings.Contains(r, "mpc-node-staged-pending") })
		require.Positive(t, first, "%q", requests)

		for i := first; i < len(requests); i += stride {
			for _, done := range []bool{false, true} {
				if strings.HasPrefix(requests[i], "GET ") && done {
					continue
				}
				for then, aftermath := range aftermaths {
					if strings.HasPrefix(requests[i], "GET ") && then != "the list goes back" {
						continue // what only reads leaves what the request before it left
					}
					t.Run(fmt.Sprintf("%s, %d %.50s, done %v, %s", what, i+1, requests[i], done, then), func(t *testing.T) {
						t.Parallel()
						w := stagingWorld(t, options{})
						prepare(w)
						w.killAtRequest(i, done)
						aftermath(w)
					})
				}
			}
		}
	}
	for i := 0; i < 5; i += stride { // manifest, config, three layers
		for then, aftermath := range aftermaths {
			t.Run(fmt.Sprintf("request %d to the registry, %s", i+1, then), func(t *testing.T) {
				t.Parallel()
				w := stagingWorld(t, options{})
				w.mustBoot()
				w.approve(w.Digests[1], w.Digests[0])
				before := len(w.Registry.Requests())
				w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultNoHeader, Skip: i, Times: -1})
				p := w.start(0)
				require.True(t, p.until(func() bool { return len(w.Registry.Requests()) > before+i }), "%s", &p.stderr)
				p.kill()
				w.Registry.Heal()
				aftermath(w)
			})
		}
	}
}

// TestStagingClearsHalfAnImage: a load in several parts leaves nameless images where it is killed.
func TestStagingClearsHalfAnImage(t *testing.T) {
	t.Parallel()
	w := stagingWorld(t, options{})
	w.mustBoot()
	for _, of := range []digest.Digest{w.Digests[1], digest.Of([]byte("somebody else's"))} {
		layer, err := launchtest.RandomLayer(99, 100)
		require.NoError(t, err)
		img, err := launchtest.Image(launchtest.ImageOptions{
			Layers: [][]byte{layer}, Config: v1.Config{Labels: map[string]string{"tee-launcher.prefix-of": of.String()}},
		})
		require.NoError(t, err)
		_, err = w.Engine.AddImage(img, "")
		require.NoError(t, err)
	}
	_, err := w.Engine.Call(http.MethodPost, "/containers/create?name="+compose.Staged+"-pending", map[string]any{
		"Image": w.workload().Image, "Cmd": []string{"x"},
		"Labels": map[string]string{"tee-launcher.staged": w.Digests[1].String(), "tee-launcher.staged-image": digest.Of(nil).String()},
	})
	require.NoError(t, err)
	w.only(3, compose.Staged+"-pending")
	l := w.watch()
	l.idle()
	w.only(2, compose.Staged+"-pending")
	l.passes(12 * time.Minute)
	l.idle()
	w.only(2)
}

// TestStagingTouchesNothingOfOthers: a name alone makes no container ours, and one that runs isn't.
func TestStagingTouchesNothingOfOthers(t *testing.T) {
	t.Parallel()
	const pending = compose.Staged + "-pending"
	for what, c := range map[string]struct {
		name   string
		labels map[string]string
		start  bool
	}{
		"no label":          {name: compose.Staged},
		"no label, pending": {name: pending},
		"it runs":           {compose.Staged, map[string]string{"tee-launcher.staged": digest.Of(nil).String()}, true},
		"no digest":         {compose.Staged, map[string]string{"tee-launcher.staged": "x"}, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := stagingWorld(t, options{})
			l := w.watch()
			_, err := w.Engine.Call(http.MethodPost, "/containers/create?name="+c.name,
				map[string]any{"Image": w.workload().Image, "Cmd": []string{"x"}, "Labels": c.labels})
			require.NoError(t, err)
			if c.start {
				w.does(http.MethodPost, "/containers/"+c.name+"/start")
			}
			before := w.container(c.name)
			l.approve(w.Digests[1], w.Digests[0])
			l.minute()
			w.stages(stage.Failed, w.Digests[1])
			assert.Contains(t, *w.staged().Error, c.name)
			assert.Equal(t, before, w.container(c.name))
			l.passes(12 * time.Minute)
			l.idle()
			assert.Len(t, w.Engine.Images(), 1)
			assert.Equal(t, 1, w.Engine.Loads(), "nothing is loaded in vain")
		})
	}
}

// TestStagingTakesNothingOfTheWorkloads: a layout below the shared directory, is no source for
// it, another one is.
func TestStagingTakesNothingOfTheWorkloads(t *testing.T) {
	t.Parallel()
	for _, below := range []bool{false, true} {
		t.Run(fmt.Sprintf("below: %t", below), func(t *testing.T) {
			t.Parallel()
			tmp, err := filepath.EvalSymlinks(os.TempDir())
			require.NoError(t, err)
			w := stagingWorld(t, options{machine: launchtest.MachineOptions{Dir: tmp}}) // a layout can't be below /dev
			dir := filepath.Join(filepath.Dir(w.SharedDir), "images")
			if below {
				dir = w.Shared("images")
			}
			w.layout(dir, w.Digests[1])
			l := w.watch()
			l.idle()
			w.configure(fmt.Sprintf("[[launcher_config.sources]]\nlayout = %q\n", dir))
			before := w.Registry.Count(launchtest.RequestBlob)
			l.approve(w.Digests[1], w.Digests[0])
			l.minute()
			w.stages(stage.Staged, w.Digests[1])
			assert.Equal(t, below, w.Registry.Count(launchtest.RequestBlob) > before, "the registry is asked")
		})
	}
}
