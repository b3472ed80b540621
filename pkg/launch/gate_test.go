package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
)

// stranger is a container that somebody else made.
type stranger struct {
	name    string
	project string   // of Compose; empty: none
	service string   // of the project; empty: none
	policy  string   // empty: no
	mounts  []string // as `docker run -v` takes them
	state   string   // running (also if empty), paused, created
}

func (w *world) make(s stranger) string {
	w.t.Helper()
	labels := map[string]string{}
	if s.project != "" {
		labels["com.docker.compose.project"] = s.project
	}
	if s.service != "" {
		labels["com.docker.compose.service"] = s.service
	}
	if s.policy == "" {
		s.policy = "no"
	}
	_, err := w.Engine.Call("POST", "/containers/create?name="+s.name, map[string]any{
		"Image": w.workloadImage, "Cmd": []string{"/app/mpc-node"}, "Labels": labels,
		"HostConfig": map[string]any{"RestartPolicy": map[string]any{"Name": s.policy}, "Binds": s.mounts},
	})
	require.NoError(w.t, err)
	if s.state != "created" {
		w.does("POST", "/containers/"+s.name+"/start")
	}
	if s.state == "paused" {
		w.does("POST", "/containers/"+s.name+"/pause")
	}
	for _, c := range w.Engine.Containers() {
		if c.Name == s.name {
			return c.ID
		}
	}
	require.Fail(w.t, "no such container")
	return ""
}

// loaded is a world in a new boot with an image that containers can be made of, and no container.
func loaded(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, options{})
	require.NoError(t, w.watch().terminate())
	w.workloadImage = w.workload().Image
	w.does("DELETE", "/containers/mpc-node")
	w.reboot()
	return w
}

func (w *world) statusOf(name string) string {
	for _, c := range w.Engine.Containers() {
		if c.Name == name {
			return c.Status
		}
	}
	return "gone"
}

// TestOldWorkloadsEnd: in whatever state and under whatever name and project, and nothing else does.
func TestOldWorkloadsEnd(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]stranger{
		"of no project":             {name: "mpc-node", policy: "on-failure"},
		"of another project":        {name: "mpc-node", project: "tee-launcher", policy: "always"},
		"of another name":           {name: "mpc-node-mpc-node-1", project: "mpc-node", policy: "unless-stopped"},
		"of a recreation cut short": {name: "0123456789ab_mpc-node", project: "mpc-node"},
		"paused":                    {name: "mpc-node", project: "mpc-node", state: "paused"},
		"created":                   {name: "mpc-node", project: "mpc-node", state: "created"},
		"with the agent's socket":   {name: "mpc-node", mounts: []string{"/var/run/dstack.sock:/var/run/dstack.sock", "mpc-data:/data"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := loaded(t)
			id := w.make(s)
			bystander := w.make(stranger{name: "bystander", project: "other", policy: "always", mounts: []string{"/srv:/srv", "mpc-node-things:/x"}})
			before := len(w.seen())
			w.mustBoot()
			w.accepted(w.Digests[0])
			assert.NotEqual(t, id, w.workload().ID)
			assert.Equal(t, "running", w.statusOf("bystander"), "%s", bystander)
			effects := w.seen()[before:]
			assert.NotContains(t, strings.Join(effects, "\n"), "bystander")
			s.name = strings.Replace(s.name, "0123456789ab", "<id>", 1)
			if s.name == "mpc-node" && s.state != "created" { // before the lock
				s.name = "mpc-node-impostor"
				assert.Equal(t, "rename mpc-node mpc-node-impostor", effects[0], "the evidence first")
			}
			stop := slices.Index(effects, "stop "+s.name)
			if s.state == "created" {
				assert.Equal(t, -1, stop)
				return
			}
			require.GreaterOrEqual(t, stop, 1, "%q", effects)
			assert.Equal(t, "update "+s.name+" restart=no", effects[stop-1], "the policy first")
			assert.Less(t, stop, slices.Index(effects, "create mpc-node"), "early")
		})
	}
}

// TestARestartingWorkloadEnds: there is no process at the moment, but soon there is.
func TestARestartingWorkloadEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{
		OnStart: func(c launchtest.ContainerInfo) (int, bool) { return 1, c.RestartPolicy == "no" },
	}}})
	l := w.watch()
	w.workloadImage = w.workload().Image
	require.NoError(t, l.terminate())
	w.does("DELETE", "/containers/mpc-node")
	w.reboot()
	w.make(stranger{name: "mpc-node", policy: "always"})
	w.eventually("it is about to start", func() bool { return w.status() == "restarting" })
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Equal(t, "running", w.status())
}

// TestAWorkloadThatStartsDuringTheRunEnds: the gate is passed once more right before the emit.
func TestAWorkloadThatStartsDuringTheRunEnds(t *testing.T) {
	t.Parallel()
	w := loaded(t)
	made := false
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/create", Skip: 1, Edit: func(body []byte) []byte { // Compose's
		if !made {
			w.make(stranger{name: "late", project: "mpc-node"})
			made = true
		}
		return body
	}})
	w.mustBoot()
	require.True(t, made)
	effects := w.seen()
	assert.Equal(t, []string{"update late restart=no", "stop late", "emit mpc-image-digest", "start mpc-node"}, effects[len(effects)-4:])
	assert.Equal(t, "exited", w.statusOf("late"))
}

// TestHoldersOfTheAgentsSocket: whoever has it can measure in our name. They are no victims, but a refusal.
func TestHoldersOfTheAgentsSocket(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		source  func(w *world) string
		volume  func(w *world) string // what the local driver mounts as the volume "some"
		holder  stranger
		refused bool
	}{
		"the socket":    {source: func(w *world) string { return w.AgentSocket }, refused: true},
		"its directory": {source: func(w *world) string { return filepath.Dir(w.AgentSocket) }, refused: true},
		"everything":    {source: func(*world) string { return "/" }, refused: true},
		"paused":        {source: func(*world) string { return "/" }, holder: stranger{state: "paused"}, refused: true},
		"a link to its directory": {source: func(w *world) string {
			link := filepath.Join(w.t.TempDir(), "link")
			require.NoError(w.t, os.Symlink(filepath.Dir(w.AgentSocket), link))
			return link
		}, refused: true},
		"a volume that is its directory": {
			source: func(*world) string { return "some" }, volume: func(w *world) string { return filepath.Dir(w.AgentSocket) }, refused: true,
		},
		"a volume":                     {source: func(*world) string { return "some" }, volume: func(*world) string { return "" }},
		"a volume of another place":    {source: func(*world) string { return "some" }, volume: func(*world) string { return "/srv" }},
		"something beside it":          {source: func(w *world) string { return w.SharedDir }},
		"one that isn't live":          {source: func(*world) string { return "/" }, holder: stranger{state: "created"}},
		"of the launcher's project":    {source: func(*world) string { return "/" }, holder: stranger{project: "launcher"}},
		"of no project, as ourselves":  {source: func(*world) string { return "/" }, holder: stranger{project: "-"}, refused: true},
		"of the launcher's, by a name": {source: func(*world) string { return "/" }, holder: stranger{name: "launcher-2"}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := loaded(t)
			// The launcher's own container holds the socket, of course.
			self := stranger{name: "launcher", project: "launcher", mounts: []string{w.AgentSocket + ":/var/run/dstack.sock", "shared-volume:" + w.SharedDir}}
			switch c.holder.project {
			case "":
				c.holder.project = "monitoring"
			case "-":
				self.project, c.holder.project = "", ""
			}
			w.inside(self)
			if c.volume != nil {
				device := c.volume(w)
				w.Engine.Fail(launchtest.EngineFault{Match: "GET /volumes/some", Times: -1, Edit: func([]byte) []byte {
					return fmt.Appendf(nil, `{"Name":"some","Mountpoint":"/x","Options":{"type":"none","o":"bind","device":%q}}`, device)
				}})
			}
			if c.holder.name == "" {
				c.holder.name = "holder"
			}
			c.holder.policy, c.holder.mounts = "always", []string{c.source(w) + ":/x"}
			w.make(c.holder)
			emits := w.Agent.Emits()
			if !c.refused {
				w.mustBoot()
				w.accepted(w.Digests[0])
				return
			}
			assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
			assert.Contains(t, w.stderr, "container "+c.holder.name+" ")
			assert.Contains(t, w.stderr, "hint: ")
			assert.Equal(t, launch.Status("failed"), w.stepStatus("gate"))
			assert.Contains(t, []string{"running", "paused"}, w.statusOf(c.holder.name), "it is left alone")
			assert.Equal(t, emits, w.Agent.Emits())

			w.does("DELETE", "/containers/"+c.holder.name+"?force=1")
			w.mustBoot()
			w.accepted(w.Digests[0])
		})
	}
}

// TestAHolderThatComesLate is there when the gate is passed again.
func TestAHolderThatComesLate(t *testing.T) {
	t.Parallel()
	w := loaded(t)
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/create", Skip: 1, Edit: func(body []byte) []byte { // Compose's
		w.make(stranger{name: "holder", mounts: []string{"/:/x"}})
		return body
	}})
	emits := w.Agent.Emits()
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Equal(t, launch.Status("failed"), w.stepStatus("measure"))
	assert.Equal(t, emits, w.Agent.Emits())
	assert.Equal(t, "created", w.status(), "not started")
}

// TestTheLauncherStopsItselfNever: not even where its project has the workload's name.
func TestTheLauncherStopsItselfNever(t *testing.T) {
	t.Parallel()
	for _, platform := range []config.Platform{config.TEE, config.NONTEE} {
		w := loaded(t)
		w.settings.Platform = platform
		w.inside(stranger{name: "launcher", project: "mpc-node", policy: "always", mounts: []string{"/var/run:/var/run", "shared-volume:" + w.SharedDir}})
		w.mustBoot()
		assert.Equal(t, "running", w.statusOf("launcher"))
		assert.Equal(t, "running", w.status())
	}
}

// TestAnEventThatMayBeTheWorkloadsOwn: where the engine restarts a workload by itself, what is measured may be its doing.
func TestAnEventThatMayBeTheWorkloadsOwn(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"on-failure", "always", "unless-stopped"} {
		for _, s := range []stranger{{name: "mpc-node", policy: policy}, {name: "left", project: "mpc-node", policy: policy, state: "created"}} {
			w := loaded(t)
			w.emitAsSomebody(0)
			require.NoError(t, os.RemoveAll(w.Shared("launcher")))
			w.make(s)
			before := w.seen()
			for _, supervise := range []admission.Supervise{admission.SuperviseAuto, admission.SuperviseOn, admission.SuperviseOff} {
				w.settings.Supervise = supervise
				assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
				assert.Contains(t, w.stderr, "may have measured it")
			}
			if s.name != "mpc-node" {
				assert.Equal(t, before, w.seen(), "whatever runs is left alone")
				continue
			}
			assert.Equal(t, append(before, "rename mpc-node mpc-node-impostor", "update mpc-node-impostor restart=no", "stop mpc-node-impostor"), w.seen())
		}
	}

	// Without supervision the launcher's own workload is such a one. Its record of this boot decides.
	w := newWorld(t, options{})
	w.settings.Supervise = admission.SuperviseOff
	w.mustBoot()
	before := w.seen()
	w.mustBoot()
	assert.Equal(t, before, w.seen())
	w.bootID += "-next" // and only of this boot
	assert.Equal(t, exit.Measurement, w.boot())
	assert.Equal(t, before, w.seen())
}

// TestAContainerOfAnEarlierBootIsNotTakenForThisOnes: the gate of a run that was killed has set its policy to "no", it has measured itself,
// and it has removed the record. Only that it isn't of this boot gives it away.
func TestAContainerOfAnEarlierBootIsNotTakenForThisOnes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	require.NoError(t, w.watch().terminate())
	w.reboot()
	w.bootID += "-next"
	w.does("POST", "/containers/mpc-node/start")
	w.emitAsSomebody(0)
	require.NoError(t, os.RemoveAll(w.Shared("launcher")))
	before := w.seen()
	w.settings.Supervise = admission.SuperviseOff
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Contains(t, w.stderr, "no launcher of this boot created")
	assert.Equal(t, before, w.seen(), "whatever runs is left alone")
	w.settings.Supervise = admission.SuperviseAuto
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Contains(t, w.stderr, "ran before in this boot")
	for _, c := range w.Engine.Containers() {
		assert.NotEqual(t, "running", c.Status, "%s", c.Name)
	}
}

// TestAForeignHolderOfTheSocketMayHaveMeasured where an event stands that no record of ours claims.
func TestAForeignHolderOfTheSocketMayHaveMeasured(t *testing.T) {
	t.Parallel()
	w := loaded(t)
	w.make(stranger{name: "holder", policy: "always", mounts: []string{"/:/x"}})
	w.emitAsSomebody(0)
	require.NoError(t, os.RemoveAll(w.Shared("launcher")))
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Contains(t, w.stderr, "holds the guest agent's socket")
}

// TestAForgedRecordHelpsNoHolder: whoever emitted may have written it, too, so nothing is started beside one.
func TestAForgedRecordHelpsNoHolder(t *testing.T) {
	t.Parallel()
	w := loaded(t)
	w.make(stranger{name: "holder", policy: "always", mounts: []string{"/:/x"}})
	w.emitAsSomebody(0)
	forged := fmt.Sprintf(`{"boot_id":%q,"digest":%q,"intent":"2026-01-01T00:00:00Z","done":true}`, w.bootID, w.Digests[0])
	for range 2 {
		require.NoError(t, os.WriteFile(w.Shared("launcher/measurement.json"), []byte(forged), 0o600))
		before := w.seen()
		assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
		assert.Contains(t, w.stderr, "holds the guest agent's socket")
		assert.Equal(t, before, w.seen())
		w.settings.Supervise = admission.SuperviseOff
	}
}

// TestAHolderBesideAWorkloadThatRuns is no reason to leave that alone, and one to start nothing.
func TestAHolderBesideAWorkloadThatRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.mustBoot()
	w.workloadImage = w.workload().Image
	w.make(stranger{name: "holder", policy: "always", mounts: []string{"/:/x"}})
	before := w.seen()
	w.mustBoot()
	assert.Equal(t, before, w.seen())

	changed, err := os.ReadFile(w.settings.ConfigFile)
	require.NoError(t, err)
	ports := strings.Replace(string(changed), "host = 11780", "host = 11781", 1) // what runs can't stay
	require.NoError(t, os.WriteFile(w.settings.ConfigFile, []byte(ports), 0o600))
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Contains(t, w.stderr, "holds the guest agent's socket")
	assert.Equal(t, launch.Status("failed"), w.stepStatus("create"))
	assert.Equal(t, "running", w.status(), "what runs is left alone")
	w.does("DELETE", "/containers/holder?force=1")

	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/create", Skip: 1, Edit: func(body []byte) []byte { // Compose's
		w.make(stranger{name: "late", mounts: []string{"/:/x"}})
		return body
	}})
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Equal(t, launch.Status("failed"), w.stepStatus("measure"))
	assert.Equal(t, "created", w.status(), "not started")
	require.NoError(t, os.WriteFile(w.settings.ConfigFile, changed, 0o600))
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	w.does("DELETE", "/containers/late?force=1")
	w.mustBoot()
	assert.Equal(t, 1, w.workload().Starts)
}

// TestWhatStartsNeverRanBefore: labels and names prove nothing, and neither does the right image: a container keeps what its processes
// wrote.
func TestWhatStartsNeverRanBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	require.NoError(t, w.watch().terminate())
	w.reboot()
	// Started between creation and the emit, by whomever.
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/create", Skip: 1, Edit: func(body []byte) []byte {
		w.does("POST", "/containers/mpc-node/start")
		w.does("POST", "/containers/mpc-node/kill")
		return body
	}})
	emits := w.Agent.Emits()
	assert.Equal(t, exit.Workload, w.boot(), "%s", w.stderr)
	assert.Contains(t, w.stderr, "never started")
	assert.Equal(t, emits, w.Agent.Emits())
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Equal(t, 1, w.workload().Starts)
}

// TestTheEndOfTheOldLogIsKept, of the last three workloads, and shown: from outside a CVM nothing but
// the logs of the containers that are there can be read.
func TestTheEndOfTheOldLogIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	logs := w.Shared("launcher/logs")
	var kept []string
	for boot, last := range []string{"one", "two", "three", "four"} {
		w.mustBoot()
		require.NoError(t, w.Engine.Log("mpc-node", strings.Repeat(strings.Repeat("x", 1000)+"\n", 2000)+
			strings.Repeat("𝐱", 9000)+"\nerror: "+last+"\x1b[2J\nlauncher-status {}\n", ""))
		ran := w.bootID
		w.reboot()
		w.mustBoot()
		assert.Contains(t, w.stderr, "\nmpc-node before: error: "+last+" [2J\nmpc-node before: launcher-status {}\n")
		assert.LessOrEqual(t, strings.Count(w.stderr, "\nmpc-node before: "), 1000)
		assert.Less(t, len(w.stderr), 300<<10)
		for line := range strings.Lines(w.stderr) {
			assert.Less(t, len(line), 16<<10, "an engine keeps it in pieces")
		}
		names := w.files(logs)
		require.Len(t, names, min(boot+1, 3))
		newest := names[len(names)-1]
		assert.Regexp(t, `^20\d{6}T\d{6}\.\d{3}Z-`+ran+`\.log$`, newest)
		log, err := os.ReadFile(filepath.Join(logs, newest))
		require.NoError(t, err)
		assert.True(t, strings.HasSuffix(string(log), "\nerror: "+last+"\x1b[2J\nlauncher-status {}\n"))
		assert.LessOrEqual(t, len(log), 256<<10)
		kept = append(kept, newest)
	}
	assert.Equal(t, kept[1:], w.files(logs))
}

// TestALogThatIsKeptAgain, by an attempt that can't remove the container or after a kill, is kept and shown once.
func TestALogThatIsKeptAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.mustBoot()
	require.NoError(t, w.Engine.Log("mpc-node", "the last words\n", ""))
	w.reboot()
	w.Engine.Fail(launchtest.EngineFault{Match: "DELETE /containers/*", Times: -1, Status: 500})
	assert.Equal(t, exit.Engine, w.boot(), "%s", w.stderr)
	before := w.files(w.Shared("launcher/logs"))
	require.Len(t, before, 1)
	l := w.attempts(func(failed int) {
		if failed == 3 {
			w.Engine.Heal()
		}
	})
	require.NoError(t, l.terminate())
	assert.Equal(t, before, w.files(w.Shared("launcher/logs")))
	assert.Equal(t, 1, strings.Count(l.output.String(), "mpc-node before: the last words\n"))
}

func (w *world) files(dir string) []string {
	w.t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(w.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
