package launch_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/stage"
)

// world is a machine made of doubles, and the settings of a launcher on it.
type world struct {
	*launchtest.Machine
	t        *testing.T
	settings admission.Settings
	stage    stage.Settings
	disk     func(string) (free, all int64, err error) // nil: the file system is asked
	bootID   string
	proc     string // where the kernel shows processes; empty: /proc
	stderr   string // of the last boot that ended by itself
	clock    clock
	onNap    func()               // called whenever a launcher in this process sleeps before it supervises
	onLine   func(message string) // called when it logs, before it goes on
	once     bool                 // what is begun now doesn't try again
	waits    int                  // between attempts that pass at once for a launcher in a process of its own

	temporary string // where the socket for health checks is made; empty: there is none
	listen    string // the address of the metrics; empty: none

	workloadImage string
}

type options struct {
	platform config.Platform // empty: TEE
	machine  launchtest.MachineOptions
}

func newWorld(t *testing.T, o options) *world {
	t.Helper()
	if o.machine.Engine.Root == "" {
		o.machine.Engine.Root = "/nowhere" // what is free on this machine's disk says nothing
	}
	m, err := launchtest.NewMachine(o.machine)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.Empty(t, m.Unexpected(), "requests that a double doesn't know")
		assert.NoError(t, m.Close())
	})
	if o.platform == "" {
		o.platform = config.TEE
	}
	// Every boot asks Compose for its version, and a shell tells it in a tenth of the time. What
	// the shell itself adds to the environment is taken away again.
	compose := filepath.Join(filepath.Dir(m.SharedDir), "compose")
	require.NoError(t, os.WriteFile(compose, fmt.Appendf(nil, `case "$*" in
'version --short') echo %s ;;
*) exec env -u PWD -u OLDPWD -u SHLVL -u _ '%s' compose-double "$@" ;;
esac
`, launchtest.ComposeVersion, os.Args[0]), 0o600))
	return &world{Machine: m, t: t, bootID: "boot-1", settings: admission.Settings{
		Platform: o.platform, DefaultDigest: m.Digests[0], ConfigFile: m.ConfigFile,
		SharedDir: m.SharedDir, AgentSocket: m.AgentSocket, DockerHost: m.Engine.Host(),
		Compose: "sh " + compose,
	}}
}

func (w *world) configure(launcherKeys string) {
	require.NoError(w.t, w.Configure(launcherKeys, `home_dir = "/data"`))
}

func (w *world) approve(digests ...digest.Digest) { require.NoError(w.t, w.Approve(digests...)) }

// reboot is a power loss and a new boot.
func (w *world) reboot() {
	w.t.Helper()
	require.NoError(w.t, w.Reboot())
	w.bootID += "-next"
}

func (w *world) report() launch.Report {
	w.t.Helper()
	report, err := w.tryReport()
	require.NoError(w.t, err)
	return report
}

func (w *world) tryReport() (report launch.Report, err error) {
	data, err := os.ReadFile(w.Shared("launcher/report.json"))
	if err == nil {
		err = json.Unmarshal(data, &report)
	}
	return report, err
}

// seen returns the effects so far without what differs from run to run.
func (w *world) seen() []string {
	var effects []string
	varies := regexp.MustCompile(`(holder|impostor)-[-.\w]+`)
	for _, e := range w.Effects.Effects() {
		effects = append(effects, varies.ReplaceAllString(e, "$1"))
	}
	return effects
}

// accepted requires that a verifier accepts the agent's log for exactly this digest.
func (w *world) accepted(digest digest.Digest) {
	w.t.Helper()
	log, err := rtmr.Parse([]byte(w.Agent.TCBInfo()))
	require.NoError(w.t, err)
	image, err := log.Accepted()
	assert.NoError(w.t, err)
	assert.Equal(w.t, digest, image)
}

func TestEffectsInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Equal(t, []string{
		"load",
		"volume-create mpc-data", "create mpc-node-holder",
		"network-create mpc-node_default", "create mpc-node",
		"emit mpc-image-digest",
		"start mpc-node",
	}, w.seen())
}

// TestAFailureEndsTheSequence injects a failure into every step and looks at all that happened.
func TestAFailureEndsTheSequence(t *testing.T) {
	t.Parallel()
	created := []string{
		"load", "volume-create mpc-data", "create mpc-node-holder",
		"network-create mpc-node_default", "create mpc-node",
	}
	for _, c := range []struct {
		name    string
		options options
		arrange func(w *world)
		step    string
		code    exit.Code
		effects []string
	}{
		{
			name: "no shared directory", step: "", code: exit.Config,
			arrange: func(w *world) { w.settings.SharedDir += "-missing" },
		},
		{
			name: "no agent", step: "probe", code: exit.Measurement,
			arrange: func(w *world) { w.settings.AgentSocket += ".none" },
		},
		{
			name: "an agent that can't emit", step: "probe", code: exit.Measurement,
			options: options{machine: launchtest.MachineOptions{Agent: launchtest.AgentOptions{Release: "0.6.0"}}},
		},
		{
			name: "no engine", step: "", code: exit.Engine,
			arrange: func(w *world) { w.settings.DockerHost += ".none" },
		},
		{
			name: "no user config", step: "config", code: exit.Config,
			arrange: func(w *world) { require.NoError(w.t, os.Remove(w.settings.ConfigFile)) },
		},
		{
			name: "a broken approved list", step: "config", code: exit.Config,
			arrange: func(w *world) { require.NoError(w.t, os.WriteFile(w.Shared(approval.File), []byte(`{}`), 0o600)) },
		},
		{
			name: "an override that nobody approved", step: "config", code: exit.Config,
			arrange: func(w *world) {
				w.approve(w.Digests[0])
				w.configure(fmt.Sprintf("mpc_hash_override = %q", w.Digests[1]))
			},
		},
		{
			name: "a digest that the registry doesn't have", step: "pull", code: exit.Refused,
			arrange: func(w *world) { w.approve(digest.Digest(bytes.Repeat([]byte{0xab}, 32))) },
		},
		{
			name: "an engine that can't load", step: "load", code: exit.Engine, effects: nil,
			arrange: func(w *world) {
				w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadErrorLine})
			},
		},
		{
			name: "an engine that lies about a load", step: "load", code: exit.Engine, effects: []string{"load"},
			arrange: func(w *world) {
				w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadVanishes})
			},
		},
		{
			// The holder stays: without it nothing would keep the data volume, and its keys, from being pruned.
			name: "a compose that fails", step: "create", code: exit.Workload, effects: created[:3],
			arrange: func(w *world) { w.settings.Compose = os.Args[0] + " compose-double --fail=create" },
		},
		{
			name: "a compose that does nothing and says it did", step: "create", code: exit.Workload, effects: created[:3],
			arrange: func(w *world) { w.settings.Compose = os.Args[0] + " compose-double --fail=silent" },
		},
		{
			name: "a compose that creates something else", step: "create", code: exit.Workload, effects: created[:5],
			arrange: func(w *world) { w.settings.Compose = os.Args[0] + " compose-double --fail=tamper" },
		},
		{
			name: "a compose of version 1", step: "create", code: exit.Workload, effects: created[:3],
			arrange: func(w *world) { w.settings.Compose = os.Args[0] + " compose-double --fail=old" },
		},
		{
			name: "a node config that can't be written", step: "create", code: exit.Config, effects: []string{"load"},
			arrange: func(w *world) {
				require.NoError(w.t, os.MkdirAll(w.Shared("mpc-config.toml/x"), 0o755))
				require.NoError(w.t, os.MkdirAll(w.Shared("mpc-config.toml.aside"), 0o755))
			},
		},
		{
			name: "an agent that refuses to emit", step: "measure", code: exit.Measurement, effects: created,
			arrange: func(w *world) {
				w.Agent.Fail(launchtest.AgentFault{Kind: launchtest.AgentRefuses, Match: "EmitEvent mpc", Times: -1})
			},
		},
		{
			name: "a container that doesn't start", step: "start", code: exit.Workload, effects: append(created[:len(created):len(created)], "emit mpc-image-digest"),
			arrange: func(w *world) {
				w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", Status: 500, Message: "port is already allocated"})
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.options)
			if c.arrange != nil {
				c.arrange(w)
			}
			assert.Equal(t, c.code, w.boot(), "%s", w.stderr)
			assert.Equal(t, c.effects, slices.Compact(w.seen()), "the effects")
			if c.step == "" {
				return
			}
			report := w.report()
			for _, s := range report.Steps {
				if s.Status == "failed" {
					assert.Equal(t, c.step, s.Name)
				}
			}
			require.NotNil(t, report.ExitCode)
			assert.Equal(t, c.code, *report.ExitCode)
			require.NotNil(t, report.Error)
			assert.True(t, strings.HasPrefix(*report.Error, c.step+": "), "%s", *report.Error)
			assert.NotContains(t, *report.Error, "\n", "one line")
		})
	}
}

func TestOneLauncherAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	var code exit.Code
	var err error
	w.onLine = func(message string) {
		if message != "step started pull" {
			return
		}
		// The workload may remove whatever it likes below its volume.
		assert.NoError(t, os.RemoveAll(w.Shared("launcher")))
		err = w.second()
		code = exit.Of(err)
	}
	w.mustBoot()
	assert.Equal(t, exit.Busy, code, "%v", err)
	assert.Equal(t, 1, w.Agent.Emits())
}

func TestAgainInTheSameBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.mustBoot()
	before := w.seen()
	require.NoError(t, w.Registry.Stop()) // and no network
	w.mustBoot()
	assert.Equal(t, before, w.seen(), "something was done twice")
	w.accepted(w.Digests[0])
}

// TestWhatIsMeasuredStaysChosen for the rest of the boot, whatever the list says is newest, as long as it names it.
func TestWhatIsMeasuredStaysChosen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.approve(w.Digests[0])
	w.mustBoot()
	before, unknown := w.seen(), digest.Of([]byte("unknown"))
	for what, change := range map[string]func(){
		"a newer one":                    func() { w.approve(w.Digests[1], w.Digests[0]) },
		"an override to another":         func() { w.configure(fmt.Sprintf("mpc_hash_override = %q", w.Digests[1])) },
		"an override that isn't allowed": func() { w.configure(fmt.Sprintf("mpc_hash_override = %q", unknown)) },
	} {
		change()
		w.mustBoot()
		assert.Equal(t, before, w.seen(), what)
		assert.Equal(t, "measured", w.report().Image.Reason)
		assert.Equal(t, w.Digests[0], w.report().Image.Digest)
	}
	w.configure("")
	w.approve(w.Digests[1])
	assert.Equal(t, exit.Measurement, w.boot(), "revoked")
	w.configure(fmt.Sprintf("mpc_hash_override = %q", unknown))
	assert.Equal(t, exit.Measurement, w.boot(), "revoked, whatever the override is")
	w.configure(fmt.Sprintf("mpc_hash_override = %q", w.Digests[0]))
	assert.Equal(t, exit.Measurement, w.boot(), "an override approves nothing, what is measured neither")
	assert.Equal(t, before, w.seen())
	require.NoError(t, os.Remove(w.Shared(approval.File)))
	w.mustBoot()
	assert.Equal(t, before, w.seen(), "it is the default")
}

func TestANewBootAndAnUpgrade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.mustBoot()
	w.reboot()
	before := len(w.seen())
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Equal(t, []string{
		"create mpc-node-holder", "remove mpc-node-holder", "remove mpc-node", "create mpc-node", "emit mpc-image-digest", "start mpc-node",
	}, w.seen()[before:])

	w.reboot()
	w.approve(w.Digests[1], w.Digests[0])
	w.mustBoot()
	w.accepted(w.Digests[1])
	assert.Equal(t, "newest approved", w.report().Image.Reason)
}

func TestOutsideACVM(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{platform: config.NONTEE})
	w.mustBoot()
	w.mustBoot()
	assert.Empty(t, w.Agent.Requests())
	assert.Equal(t, []string{
		"load", "volume-create mpc-data", "create mpc-node-holder",
		"network-create mpc-node_default", "create mpc-node", "start mpc-node",
		"create mpc-node-holder", "remove mpc-node-holder",
	}, w.seen())
}

func TestAWorkloadThatDoesNotStay(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		exitCode int
		want     exit.Code
	}{{0, exit.OK}, {3, exit.Workload}} {
		t.Run(fmt.Sprint(c.exitCode), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{platform: config.NONTEE, machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{
				OnStart: func(launchtest.ContainerInfo) (int, bool) { return c.exitCode, false },
			}}})
			require.NoError(t, w.Configure("", ""))
			require.Equal(t, c.want, w.boot(), "%s", w.stderr)
			report := w.report()
			require.NotNil(t, report.Workload.LastExitCode)
			assert.Equal(t, c.exitCode, *report.Workload.LastExitCode)
		})
	}
}

func TestASignalBeforeTheStartEndsTheRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Hang: true, Times: -1})
	l := w.begin("")
	w.eventually("it loads", func() bool { return w.asked("POST /images/load") })
	err := l.terminate()
	assert.Equal(t, exit.Terminated, exit.Of(err), "%v", err)
	assert.Zero(t, w.Agent.Emits())
}

// TestAWorkloadThatDoesNotLast ends after its start and before it counts as started.
func TestAWorkloadThatDoesNotLast(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.onNap = func() { assert.NoError(t, w.Engine.Exit("mpc-node", 3)) }
	l := w.watch()
	report := w.report()
	i := slices.IndexFunc(report.Steps, func(s launch.StepReport) bool { return s.Name == "start" })
	assert.Contains(t, report.Steps[i].Detail, "is exited, exit code 3")
	l.nap(time.Second)
	w.eventually("it is started again", func() bool { return w.workload().Starts == 2 })
}
