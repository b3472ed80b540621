package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// impostor is an old workload that the engine starts by itself. It wants to pass for the image that is chosen now: it emits its digest, takes the lock
// of the shared directory until it ends, and puts a file where ours belong.
type impostor struct {
	*world
	judge *judge
	mu    sync.Mutex
	lock  *os.File
}

func impostorWorld(t *testing.T) *impostor {
	t.Helper()
	i := &impostor{judge: &judge{}}
	i.world = newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{
		OnStart: i.judge.start,
		OnStop:  func(c launchtest.ContainerInfo) int { i.release(); return 137 },
	}}})
	i.judge.agent = i.Agent
	t.Cleanup(i.release)
	require.NoError(t, i.watch().terminate())
	i.workloadImage = i.workload().Image
	i.approve(i.Digests[1], i.Digests[0])
	return i
}

// free is the impostor without the lock and without its file.
func (i *impostor) free() {
	i.t.Helper()
	i.release()
	require.NoError(i.t, os.RemoveAll(i.Shared("launcher")))
}

// release is what the kernel does with the lock of a process that ends.
func (i *impostor) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.lock != nil {
		// A child that is being started has a copy of the descriptor until its exec.
		_ = unix.Flock(int(i.lock.Fd()), unix.LOCK_UN)
		i.lock.Close()
		i.lock = nil
	}
}

// strikes is a new boot in which the engine has started the old workload already.
func (i *impostor) strikes(s stranger) {
	i.t.Helper()
	i.judge.look(false)
	if slices.ContainsFunc(i.Engine.Containers(), func(c launchtest.ContainerInfo) bool { return c.Name == "mpc-node" }) {
		i.does("DELETE", "/containers/mpc-node?force=1")
	}
	s.mounts = []string{"/var/run/dstack.sock:/var/run/dstack.sock", "mpc-data:/data"}
	i.make(s)
	i.reboot()
	require.Equal(i.t, "running", i.statusOf(s.name), "as the engine starts it")
	i.judge.look(true)
	i.emitAsSomebody(1)
	dir, err := os.Open(i.SharedDir)
	require.NoError(i.t, err)
	require.NoError(i.t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
	i.mu.Lock()
	i.lock = dir
	i.mu.Unlock()
	i.litter()
}

func (i *impostor) litter() {
	i.t.Helper()
	require.NoError(i.t, os.RemoveAll(i.Shared("launcher")))
	require.NoError(i.t, os.WriteFile(i.Shared("launcher"), nil, 0o600))
}

// refused boots once more, which has to end because of the impostor, and leave nothing that runs or could.
func (i *impostor) refused() {
	i.t.Helper()
	emits := i.Agent.Emits()
	assert.Equal(i.t, exit.Measurement, i.boot(), "%s", i.stderr)
	assert.Contains(i.t, i.stderr, "ran before in this boot and may have measured it")
	assert.Contains(i.t, i.stderr, "hint: reboot the CVM")
	assert.Equal(i.t, emits, i.Agent.Emits())
	i.nothingRuns()
}

func (i *impostor) nothingRuns() {
	i.t.Helper()
	assert.Empty(i.t, i.judge.verdict())
	for _, c := range i.Engine.Containers() {
		assert.Contains(i.t, []string{"exited", "created"}, c.Status, c.Name)
		assert.Contains(i.t, []string{"", "no"}, c.RestartPolicy, c.Name)
	}
}

// TestAnImpostorIsEnded, whatever the run ends with, and the runs after it know that it ran.
func TestAnImpostorIsEnded(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]stranger{
		"of no project":      {name: "mpc-node", policy: "on-failure"},
		"of another project": {name: "mpc-node", project: "tee-launcher", policy: "always"},
		"of another name":    {name: "mpc-node-mpc-node-1", project: "mpc-node", service: "mpc-node", policy: "unless-stopped"},
		"of an earlier end":  {name: "mpc-node-impostor-boot-0-0123456789ab", policy: "always"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := impostorWorld(t)
			for range 2 {
				i.strikes(s)
				i.refused()
				i.litter()
				i.refused()
				require.NoError(t, os.WriteFile(i.settings.ConfigFile, []byte("x"), 0o600), "nor does another refusal come first")
				i.refused()
				i.configure("")
				i.settings.Supervise = admission.SuperviseOff
				i.refused()
				i.settings.Supervise = admission.SuperviseAuto
			}
			i.rebootJudged(i.judge)
			i.nothingRuns()
			i.mustBoot()
			i.accepted(i.Digests[1])
			assert.Empty(t, i.judge.verdict())
			for _, c := range i.Engine.Containers() {
				assert.NotContains(t, c.Name, "impostor", "gone before the emit")
			}
			i.mustBoot()
		})
	}
}

// TestAnImpostorIsEndedBeforeEveryOtherRefusal: whichever it is.
func TestAnImpostorIsEndedBeforeEveryOtherRefusal(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		arrange func(i *impostor)
		code    exit.Code
	}{
		"no shared directory": {func(i *impostor) { i.settings.SharedDir += "-missing" }, exit.Config},
		"no agent":            {func(i *impostor) { require.NoError(i.t, i.Agent.Stop()) }, exit.Measurement},
		"another launcher": {func(i *impostor) {
			i.release()
			dir, err := os.Open(i.SharedDir)
			require.NoError(i.t, err)
			i.t.Cleanup(func() { dir.Close() })
			require.NoError(i.t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
		}, exit.Busy},
		"a volume that can't be asked for": {func(i *impostor) {
			i.make(stranger{name: "other", mounts: []string{"some:/x"}, state: "created"})
			i.Engine.Fail(launchtest.EngineFault{Match: "GET /volumes/some", Status: 500, Message: "no plugin", Times: -1})
			i.free()
		}, exit.Engine},
		"an engine that doesn't say what it is": {func(i *impostor) {
			i.Engine.Fail(launchtest.EngineFault{Match: "GET /info", Status: 500, Message: "no", Times: -1})
		}, exit.Engine},
		"another container that can't be asked for": {func(i *impostor) {
			other := i.make(stranger{name: "other", state: "created"})
			i.Engine.Fail(launchtest.EngineFault{Match: "GET /containers/" + other + "/json", Status: 500, Message: "no", Times: -1})
		}, exit.Engine},
		"a boot without a name": {func(i *impostor) {
			i.bootID, i.proc = "", i.t.TempDir()
		}, exit.Measurement},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := impostorWorld(t)
			i.strikes(stranger{name: "mpc-node", policy: "on-failure"})
			c.arrange(i)
			assert.Equal(t, c.code, i.boot(), "%s", i.stderr)
			i.nothingRuns()
			i.Engine.Heal()
			i.bootID, i.proc = "boot-2", ""
			assert.True(t, slices.ContainsFunc(i.Engine.Containers(), func(c launchtest.ContainerInfo) bool {
				return strings.HasPrefix(c.Name, "mpc-node-impostor-")
			}))
		})
	}
}

// TestAnImpostorOfABootWithoutAName is evidence in whichever boot there is an image event: it may be that one.
func TestAnImpostorOfABootWithoutAName(t *testing.T) {
	t.Parallel()
	i := impostorWorld(t)
	i.strikes(stranger{name: "mpc-node", policy: "on-failure"})
	named := i.bootID
	i.bootID, i.proc = "", t.TempDir()
	assert.Equal(t, exit.Measurement, i.boot())
	assert.Contains(t, i.stderr, "boot ID")
	i.bootID, i.proc = named, ""
	i.litter()
	i.refused()
	i.rebootJudged(i.judge)
	i.mustBoot()
	i.accepted(i.Digests[1])

	i.bootID, i.proc = "", t.TempDir()
	before := i.seen()
	assert.Equal(t, exit.Measurement, i.boot())
	assert.Equal(t, before, i.seen(), "one that a supervising launcher made is left alone")
	assert.Equal(t, "running", i.status())
}

// TestAContainerThatNeverRanIsNoEvidence: the engine may not start it any more, and an image event is another's.
func TestAContainerThatNeverRanIsNoEvidence(t *testing.T) {
	t.Parallel()
	for _, starts := range []bool{false, true} {
		w := loaded(t)
		w.mustBoot()
		id := w.make(stranger{name: "somebodys", project: "mpc-node", service: "mpc-node", policy: "on-failure", state: "created"})
		code := exit.OK
		if starts { // by hand, between the list and the change of its policy
			code = exit.Measurement
			w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/" + id + "/rename", Edit: func(body []byte) []byte {
				w.does("POST", "/containers/"+id+"/start")
				return body
			}})
		}
		assert.Equal(t, code, w.boot(), "%s", w.stderr)
		for _, c := range w.Engine.Containers() {
			if c.ID == id {
				assert.Equal(t, "no", c.RestartPolicy)
				assert.NotEqual(t, "running", c.Status)
			}
		}
		assert.Equal(t, code, w.boot(), "%s", w.stderr)
	}
}

// TestAnImpostorThatMeasuredNothingIsAnOldContainer like any.
func TestAnImpostorThatMeasuredNothingIsAnOldContainer(t *testing.T) {
	t.Parallel()
	w := loaded(t)
	w.make(stranger{name: "mpc-node", policy: "on-failure"})
	before := len(w.seen())
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Equal(t, []string{
		"rename mpc-node mpc-node-impostor", "update mpc-node-impostor restart=no", "stop mpc-node-impostor",
		"create mpc-node-holder", "remove mpc-node-holder", "remove mpc-node-impostor", "create mpc-node", "emit mpc-image-digest", "start mpc-node",
	}, w.seen()[before:])
	w.mustBoot()
	assert.Equal(t, "start mpc-node", w.seen()[len(w.seen())-1])
}

// TestAnImpostorThatCannotBeEnded is exit code 7, and nothing else is done.
func TestAnImpostorThatCannotBeEnded(t *testing.T) {
	t.Parallel()
	for _, f := range []launchtest.EngineFault{
		{Match: "POST /containers/*/rename", Status: 500, Message: "no"}, {Match: "POST /containers/*/update", Status: 500, Message: "no"}, {Match: "POST /containers/*/stop", Status: 500, Message: "no"},
		{Match: "POST /containers/*/stop", Status: 304}, {Match: "GET /containers/json", Status: 500, Message: "no"},
	} {
		t.Run(f.Match+fmt.Sprint(f.Status), func(t *testing.T) {
			t.Parallel()
			i := impostorWorld(t)
			i.strikes(stranger{name: "mpc-node", policy: "on-failure"})
			f.Times = -1
			i.Engine.Fail(f)
			assert.Equal(t, exit.Engine, i.boot(), "%s", i.stderr)
			i.Engine.Heal()
			for _, c := range i.Engine.Containers() {
				switch f.Match {
				case "POST /containers/*/update":
					assert.NotEqual(t, "running", c.Status, "what takes no policy is stopped all the same")
				case "POST /containers/*/rename":
					i.nothingRuns()
				}
			}
			i.litter()
			i.refused()
		})
	}
}

// TestAnImpostorWithoutItsNameIsEvidence: whoever can't be renamed is ended all the same, and known by
// what it is: a workload of no launcher of this boot, left beside an image event.
func TestAnImpostorWithoutItsNameIsEvidence(t *testing.T) {
	t.Parallel()
	for _, times := range []int{1, -1} {
		i := impostorWorld(t)
		i.strikes(stranger{name: "mpc-node", policy: "always"})
		i.Engine.Fail(launchtest.EngineFault{
			Match: "POST /containers/*/rename", Status: 500, Message: "no", Times: times,
		})
		if times == 1 { // the second time, when it doesn't run any more, it is done
			i.refused()
			assert.Equal(t, "gone", i.statusOf("mpc-node"))
			continue
		}
		assert.Equal(t, exit.Engine, i.boot(), "%s", i.stderr)
		i.nothingRuns()
		assert.Equal(t, "exited", i.statusOf("mpc-node"))
		for _, supervise := range []admission.Supervise{admission.SuperviseOff, admission.SuperviseAuto} {
			i.settings.Supervise = supervise
			i.litter()
			i.refused()
		}
		i.Engine.Heal()
		i.rebootJudged(i.judge)
		i.mustBoot()
		i.accepted(i.Digests[1])
	}
}

// TestImpostorsAreEndedBeforeOneIsRefused: one that can't be ended doesn't save another that shows late.
func TestImpostorsAreEndedBeforeOneIsRefused(t *testing.T) {
	t.Parallel()
	i := impostorWorld(t)
	i.strikes(stranger{name: "mpc-node", policy: "on-failure"})
	var stuck string
	for _, c := range i.Engine.Containers() {
		if c.Name == "mpc-node" {
			stuck = c.ID
		}
	}
	i.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/" + stuck + "/rename", Edit: func(body []byte) []byte {
		i.judge.look(false)
		i.make(stranger{name: "late", project: "mpc-node", service: "mpc-node", policy: "always"})
		i.judge.look(true)
		return body
	}})
	i.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/" + stuck + "/stop", Status: 304, Times: -1})
	assert.Equal(t, exit.Engine, i.boot(), "%s", i.stderr)
	assert.Contains(t, i.stderr, "can't be ended")
	for _, c := range i.Engine.Containers() {
		assert.True(t, c.ID == stuck || c.Status != "running" && c.RestartPolicy != "always", "%s", c.Name)
		assert.NotEqual(t, "late", c.Name)
	}
	i.Engine.Heal()
	i.refused()
}

// TestWhatCannotBeSeenIsAskedForAgain: a container of which the engine can't tell may be an impostor.
func TestWhatCannotBeSeenIsAskedForAgain(t *testing.T) {
	t.Parallel()
	for _, match := range []string{"GET /containers/*/json", "GET /containers/json"} {
		i := impostorWorld(t)
		i.strikes(stranger{name: "mpc-node", policy: "on-failure"})
		i.Engine.Fail(launchtest.EngineFault{Match: match, Status: 500, Message: "no", Times: 2})
		i.refused()
		i.nothingRuns()
	}
}

// TestAnEngineMayRefuseAPolicyForAMoment: 20.10 does, to a container that it is about to start again.
func TestAnEngineMayRefuseAPolicyForAMoment(t *testing.T) {
	t.Parallel()
	for _, request := range []string{"update", "stop"} {
		i := impostorWorld(t)
		i.strikes(stranger{name: "mpc-node", policy: "on-failure"})
		i.Engine.Fail(launchtest.EngineFault{
			Match: "POST /containers/*/" + request, Status: 500, Message: "no", Times: 3,
		})
		i.refused()
		i.nothingRuns()
	}
}

// TestKilledWhileAnImpostorEnds kills the launcher between any two of its requests to the engine and the agent, when nothing of one was done and when
// all of it was. The impostor removes what was written.
func TestKilledWhileAnImpostorEnds(t *testing.T) {
	t.Parallel()
	s := stranger{name: "mpc-node", policy: "on-failure"}
	reference := impostorWorld(t)
	reference.strikes(s)
	before := len(reference.Engine.Requests())
	reference.refused()
	requests := reference.Engine.Requests()[before:]
	for _, effect := range []string{"/rename", "/update", "/stop"} {
		assert.True(t, slices.ContainsFunc(requests, func(r string) bool { return strings.Contains(r, effect) }), "%s", effect)
	}
	for n := 0; n < len(requests); n += stride {
		for _, done := range []bool{false, true} {
			if done && strings.HasPrefix(requests[n], "GET ") {
				continue
			}
			t.Run(fmt.Sprintf("%d %.60s, done %v", n+1, requests[n], done), func(t *testing.T) {
				t.Parallel()
				i := impostorWorld(t)
				i.strikes(s)
				i.killAtRequest(n, done)
				i.litter()
				i.refused()
				i.litter()
				i.refused()
				i.rebootJudged(i.judge)
				i.nothingRuns()
				i.mustBoot()
				i.accepted(i.Digests[1])
			})
		}
	}
}

// TestKilledWhileAnImpostorThatMeasuredNothingEnds does the same with one that is an old container like any: the next run boots.
func TestKilledWhileAnImpostorThatMeasuredNothingEnds(t *testing.T) {
	t.Parallel()
	s := stranger{name: "mpc-node", policy: "on-failure"}
	reference := loaded(t)
	reference.make(s)
	before := len(reference.Engine.Requests())
	reference.mustBoot()
	requests := reference.Engine.Requests()[before:]
	stop := slices.IndexFunc(requests, func(r string) bool { return strings.Contains(r, "/stop") })
	require.Positive(t, stop)
	for n := 0; n <= stop+1; n += stride {
		for _, done := range []bool{false, true} {
			if done && strings.HasPrefix(requests[n], "GET ") {
				continue
			}
			t.Run(fmt.Sprintf("%d %.60s, done %v", n+1, requests[n], done), func(t *testing.T) {
				t.Parallel()
				w := loaded(t)
				w.make(s)
				emits := w.Agent.Emits()
				w.killAtRequest(n, done)
				assert.Equal(t, emits, w.Agent.Emits())
				w.mustBoot()
				w.accepted(w.Digests[0])
				assert.Equal(t, emits+1, w.Agent.Emits())
				assert.Len(t, w.Engine.Containers(), 2, "the workload and its holder")
				w.mustBoot()
			})
		}
	}
}

// TestASecondLauncherLeavesTheFirstAlone, and its workload, whatever it is told.
func TestASecondLauncherLeavesTheFirstAlone(t *testing.T) {
	t.Parallel()
	for _, first := range []admission.Supervise{admission.SuperviseAuto, admission.SuperviseOff} {
		w := newWorld(t, options{})
		w.launcherAs("launcher", "launcher")
		w.settings.Supervise = first
		w.mustBoot()
		before := w.seen()
		lock, err := os.Open(w.SharedDir) // the first holds it still
		require.NoError(t, err)
		t.Cleanup(func() { lock.Close() })
		require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
		for _, project := range []string{"", "launcher", "elsewhere", "mpc-node"} {
			w.launcherAs("launcher-of-"+project, project)
			before = append(before, w.seen()[len(before):]...)
			for _, second := range []admission.Supervise{admission.SuperviseAuto, admission.SuperviseOn, admission.SuperviseOff} {
				for _, platform := range []config.Platform{config.TEE, config.NONTEE} {
					w.settings.Supervise, w.settings.Platform = second, platform
					assert.Equal(t, exit.Busy, exit.Of(w.second()))
				}
			}
		}
		assert.Equal(t, before, w.seen())
		assert.Equal(t, "running", w.statusOf("launcher"))
		assert.Equal(t, "running", w.status())
	}
}

// launcherAs has launchers run in a container.
func (w *world) launcherAs(name, project string) {
	w.t.Helper()
	w.inside(stranger{name: name, project: project, service: "launcher", policy: "always", mounts: []string{"shared-volume:" + w.SharedDir}})
}

// inside has launchers run in that container.
func (w *world) inside(self stranger) {
	w.t.Helper()
	if w.workloadImage == "" {
		layers, err := launchtest.RandomLayers(99, 100)
		require.NoError(w.t, err)
		img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
		require.NoError(w.t, err)
		w.workloadImage, err = w.Engine.AddImage(img, "launcher:1")
		require.NoError(w.t, err)
	}
	id := w.make(self)
	mounts := fmt.Sprintf("1 0 0:1 / / rw - overlay overlay rw\n2 1 8:1 /var/lib/docker/containers/%s/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n", id)
	on := ""
	for _, m := range self.mounts {
		_, at, _ := strings.Cut(m, ":")
		if strings.HasPrefix(w.SharedDir+"/", at+"/") && len(at) > len(on) {
			on = at
		}
	}
	if on != "" {
		var stat unix.Statx_t
		require.NoError(w.t, unix.Statx(unix.AT_FDCWD, w.SharedDir, 0, unix.STATX_MNT_ID, &stat))
		mounts += fmt.Sprintf("%d 1 8:1 /x %s rw - ext4 /dev/sda1 rw\n", stat.Mnt_id, on)
	}
	w.proc = w.t.TempDir()
	require.NoError(w.t, os.Mkdir(filepath.Join(w.proc, "self"), 0o755))
	require.NoError(w.t, os.WriteFile(filepath.Join(w.proc, "self/mountinfo"), []byte(mounts), 0o600))
}
