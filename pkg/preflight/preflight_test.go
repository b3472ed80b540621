package preflight_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestAHealthyMachine(t *testing.T) {
	t.Parallel()
	for _, containerd := range []bool{false, true} {
		w := newWorld(t, launchtest.MachineOptions{Engine: launchtest.EngineOptions{Containerd: containerd}})
		report := w.run()
		for _, r := range report.Checks {
			assert.NotEqual(t, preflight.Failed, r.Status, "%+v", r)
			assert.NotEqual(t, preflight.Unchecked, r.Status, "%+v", r)
			assert.Empty(t, r.Findings, "%+v", r)
			assert.NotEmpty(t, r.Detail, r.Check)
		}
		assert.Equal(t, exit.OK, report.ExitCode)
		assert.Equal(t, "run would succeed: download 72.8 kB, measure the image, start the workload.", report.Summary)

		v, ran := w.resolve(w.Digests[0]), report.WouldRun
		require.NotNil(t, ran)
		assert.Equal(t, w.Digests[0], ran.Digest)
		assert.Equal(t, v.ConfigDigest(), *ran.ConfigDigest)
		assert.Equal(t, v.Size(), *ran.SizeBytes)
		assert.Equal(t, v.Size(), *ran.BytesLeft)
		want := v.ConfigDigest()
		if containerd {
			want = v.Digest()
		}
		assert.Equal(t, want, *ran.ImageID)
		// What it says will be in RTMR3 is what is in it after the event.
		assert.Equal(t, w.Digests[0].Hex(), ran.Event.Payload)
		assert.Equal(t, "mpc-image-digest", ran.Event.Name)
		payload, err := hex.DecodeString(ran.Event.Payload)
		require.NoError(t, err)
		w.Agent.Emit(ran.Event.Name, payload)
		assert.Equal(t, w.Agent.RTMR3(), *ran.RTMR3)
	}
}

// TestAConfigOfNearsOwn is in the form of those that near/mpc's operators have: no tag, the ports of
// its guide, port 80 for the nodes among themselves, tables in tables.
func TestAConfigOfNearsOwn(t *testing.T) {
	t.Parallel()
	for _, platform := range []config.Platform{config.TEE, config.NONTEE} {
		w := newWorld(t, launchtest.MachineOptions{})
		w.settings.Platform = platform
		w.write("user_config", `[launcher_config]
# a tag would be for people
image_reference = "@repository@"
port_mappings = [
  { host = 80,    container = 80 },
  { host = 8080,  container = 8080 },
  { host = 24567, container = 24567 },
]

[mpc_node_config]
home_dir = "/data"

[[mpc_node_config.pccs_endpoints]]
url = "https://pccs.example/"

[mpc_node_config.log]
format = "plain"

[mpc_node_config.near_init]
chain_id = "testnet"
download_genesis = true

[mpc_node_config.node]
my_near_account_id = "node.testnet"

[mpc_node_config.node.indexer]
port_override = 80

[mpc_node_config.node.foreign_chains.bitcoin.providers.public]
rpc_url = "https://bitcoin.example"
`)
		report := w.run()
		assert.Empty(t, codes(report), "%+v", report.Checks)
		assert.Equal(t, exit.OK, report.ExitCode)
		assert.True(t, noted(report, preflight.PortPrivileged))
	}
}

func TestOutsideACVM(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.Platform, w.settings.Supervise = config.NONTEE, admission.SuperviseAuto
	w.settings.AgentSocket += ".none"
	report := w.run()
	assert.Equal(t, exit.OK, report.ExitCode)
	assert.Equal(t, preflight.Skipped, result(t, report, "event log").Status)
	assert.Nil(t, report.WouldRun.Event)
	assert.Nil(t, report.WouldRun.RTMR3)
	assert.Contains(t, report.Summary, "unmeasured")
}

// TestTheExitCodeIsThatOfTheFirstStep: where more than one thing is wrong, a boot ends at the one that it comes to first.
func TestTheExitCodeIsThatOfTheFirstStep(t *testing.T) {
	t.Parallel()
	digest := func(w *world) { w.Agent.Emit("mpc-image-digest", []byte(strings.Repeat("x", 32))) }
	noConfig := func(w *world) { w.settings.ConfigFile += ".none" }
	noEngine := func(w *world) { w.settings.DockerHost += ".none" }
	noAgent := func(w *world) { w.settings.AgentSocket += ".none" }
	noRegistry := func(w *world) { require.NoError(w.t, w.Registry.Stop()) }
	noCompose := func(w *world) { w.settings.Compose = "/nonexistent" }
	noShared := func(w *world) { w.settings.SharedDir += "/none" }
	impostor := func(w *world) {
		w.load()
		w.engine(http.MethodPost, "/containers/create?name=mpc-node", map[string]any{
			"Image": w.names["@config0@"], "Cmd": []string{"sleep"}, "HostConfig": map[string]any{"RestartPolicy": map[string]any{"Name": "always"}},
		})
		w.engine(http.MethodPost, "/containers/mpc-node/start", nil)
	}
	outside := func(w *world) { w.settings.Platform = config.NONTEE }
	for name, c := range map[string]struct {
		arrange []func(*world)
		want    exit.Code
	}{
		"shared directory before all":           {[]func(*world){noAgent, noEngine, noShared}, exit.Config},
		"the engine before agent and config":    {[]func(*world){noEngine, noAgent, noConfig}, exit.Engine},
		"agent before config":                   {[]func(*world){noAgent, noConfig}, exit.Measurement},
		"where it is measured the config":       {[]func(*world){digest, noConfig}, exit.Config},
		"an impostor's event before the config": {[]func(*world){impostor, digest, noConfig}, exit.Measurement},
		"an impostor without an event":          {[]func(*world){impostor, noConfig}, exit.Config},
		"an impostor, and nothing else":         {[]func(*world){impostor}, exit.OK},
		"outside a CVM config before engine":    {[]func(*world){outside, noEngine, noConfig}, exit.Config},
		"outside a CVM engine before registry":  {[]func(*world){outside, noEngine, noRegistry}, exit.Engine},
		"registry before compose":               {[]func(*world){noCompose, noRegistry}, exit.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, launchtest.MachineOptions{})
			for _, f := range c.arrange {
				f(w)
			}
			report := w.run()
			assert.Equal(t, c.want, report.ExitCode, "%s: %v", report.Summary, codes(report))
			// And so does the boot itself.
			l := launch.Launcher{Settings: w.settings.Settings, BootID: bootID}
			clock(&l)
			ctx, cancel := context.WithCancelCause(t.Context())
			l.Log = slog.New(&launchtest.Ender{Cancel: cancel})
			assert.Equal(t, c.want, exit.Of(l.Run(ctx)))
		})
	}
}

func TestWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.Skip = []preflight.Group{preflight.GroupAgent, preflight.GroupEngine, preflight.GroupCompose, preflight.GroupHost}
	w.settings.AgentSocket, w.settings.DockerHost, w.settings.Compose = "/none", "unix:///none", "/none"
	report := w.run()
	assert.Equal(t, exit.OK, report.ExitCode)
	assert.Equal(t, "No error was found; not checked: engine, compose, agent, host.", report.Summary)
	assert.Equal(t, w.Digests[0], report.WouldRun.Digest)
	assert.Nil(t, report.WouldRun.ImageID, "nobody knows the engine's store")
	for _, r := range report.Checks {
		if slices.Contains(w.settings.Skip, r.Group) {
			assert.Equal(t, preflight.Skipped, r.Status, r.Check)
		}
	}
	require.NoError(t, w.Registry.Stop())
	assert.Equal(t, exit.Unavailable, w.run().ExitCode, "what ran decides")

	asked := len(w.Registry.Requests())
	w.settings.Skip, w.settings.Offline = append(w.settings.Skip, preflight.GroupCompose), true
	report = w.run()
	assert.Equal(t, exit.OK, report.ExitCode)
	assert.Len(t, w.Registry.Requests(), asked, "offline")
	assert.Contains(t, report.Skipped, preflight.GroupRegistry)

	for _, g := range preflight.Groups() {
		w.settings.Skip, w.settings.Offline = []preflight.Group{g}, false
		for _, r := range w.run().Checks {
			assert.True(t, r.Group != g || r.Status == preflight.Skipped, "%s: %+v", g, r)
		}
	}
}

// TestABootLeavesWhatTheNextOneNeeds: after a boot neither registry nor Compose are needed, as long as nothing changed.
func TestABootLeavesWhatTheNextOneNeeds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.load()
	report := w.run()
	assert.Zero(t, *report.WouldRun.BytesLeft)
	require.NoError(t, w.Registry.Stop())
	assert.Equal(t, exit.Unavailable, w.run().ExitCode)
	require.NoError(t, w.Registry.Start())
	w.keep()
	require.NoError(t, w.Registry.Stop())
	report = w.run()
	assert.Equal(t, exit.OK, report.ExitCode, report.Summary)
	assert.Equal(t, []string{"REG001"}, codes(report), "worth knowing nevertheless")
	assert.Equal(t, preflight.Warning, result(t, report, "manifest").Findings[0].Severity)
}

// TestAfterARun asks about a machine on which a launcher has just come to its end, and about its next boot.
func TestAfterARun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.Platform, w.settings.Supervise = config.TEE, admission.SuperviseOn
	ctx, cancel := context.WithCancelCause(t.Context())
	l := launch.Launcher{Settings: w.settings.Settings, BootID: bootID}
	supervises, done := make(chan struct{}), make(chan error, 1)
	l.Log = slog.New(slog.NewTextHandler(watch{"supervising", supervises}, nil))
	clock(&l)
	go func() { done <- l.Run(ctx) }()
	select {
	case <-supervises:
	case err := <-done:
		require.NoError(t, err, "it supervises")
	}

	report := w.run()
	assert.Equal(t, exit.OK, report.ExitCode, "%s %v", report.Summary, codes(report))
	assert.Equal(t, "run would succeed and change nothing: the workload is already running.", report.Summary)
	assert.True(t, noted(report, preflight.AlreadyMeasured))
	assert.Equal(t, w.Agent.RTMR3(), *report.WouldRun.RTMR3)
	w.settings.Compose = "/nonexistent"
	assert.Equal(t, exit.OK, w.run().ExitCode, "Compose isn't asked for what runs")
	w.settings.Compose = l.Settings.Compose

	cancel(&exit.Error{Code: exit.Terminated, Err: context.Canceled})
	require.NoError(t, <-done, "an orderly end")
	require.NoError(t, w.Engine.Alter("mpc-node", "PidMode", "host"))
	replaced := result(t, w.run(), "workload").Findings
	require.Len(t, replaced, 1)
	assert.Equal(t, preflight.WorkloadReplaced, replaced[0].Code)
	assert.Contains(t, replaced[0].Found, `HostConfig.PidMode: got "host", want nothing`)
	require.NoError(t, w.Reboot())
	report = w.run()
	assert.Equal(t, exit.OK, report.ExitCode, "%s %v", report.Summary, codes(report))
	assert.True(t, noted(report, preflight.WorkloadReplaced), "%+v", result(t, report, "workload"))
	assert.Zero(t, *report.WouldRun.BytesLeft)
}

// clock lets a launcher's time pass where it sleeps, at once.
func clock(l *launch.Launcher) {
	var elapsed atomic.Int64
	l.Now = func() time.Time { return time.Now().Add(time.Duration(elapsed.Load())) }
	l.Sleep = func(ctx context.Context, d time.Duration) error {
		elapsed.Add(int64(d))
		return context.Cause(ctx)
	}
}

// watch closes a channel when a line of a log holds the text.
type watch struct {
	text string
	seen chan<- struct{}
}

func (w watch) Write(line []byte) (int, error) {
	if strings.Contains(string(line), w.text) {
		close(w.seen)
	}
	return len(line), nil
}

func TestAnEndedContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(&exit.Error{Code: exit.Interrupted, Err: context.Canceled})
	_, err := preflight.Run(ctx, w.settings)
	assert.Equal(t, exit.Interrupted, exit.Of(err))
}

// TestEveryCodeHasASeed: what nothing can find isn't in the table, and the other way round.
func TestEveryCodeHasASeed(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob(filepath.Join(seeds, "*", "*.toml"))
	require.NoError(t, err)
	assert.GreaterOrEqual(t, len(paths), 40)
	// These have tests of their own: they need a lock or a registry that counts.
	covered := []string{string(admission.AnotherLauncher), string(preflight.RateLow)}
	for _, code := range []preflight.Code{admission.WorkloadPaused, admission.EngineNotDocker, preflight.StartsByItself, preflight.ImagePrunable, preflight.ImageTooDeep} {
		covered = append(covered, string(code)) // and so do these: they need a boot before, another image, or a server that isn't Docker
	}
	for i := range 10 { // and these a kernel: TestNative
		covered = append(covered, fmt.Sprintf("NAT%03d", i+1))
	}
	for _, path := range paths {
		for _, code := range readSeed(t, path).Expect {
			covered = append(covered, strings.TrimSuffix(code, " note"))
		}
	}
	var all []string
	for _, c := range preflight.Codes() {
		assert.NotEmpty(t, c.Meaning)
		assert.NotContains(t, all, string(c.Code), "twice")
		assert.Regexp(t, `^[A-Z]{3}\d{3}$`, c.Code)
		all = append(all, string(c.Code))
		assert.Contains(t, covered, string(c.Code))
	}
	for _, code := range covered {
		assert.Contains(t, all, code)
	}
}

// TestGolden holds the report's schema, and the wording, to files: what scripts read doesn't change by accident.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"healthy": "", "failing": filepath.Join(seeds, "holders", "socket-held.toml")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s seed
			if path != "" {
				s = readSeed(t, path)
			}
			w := plant(t, s)
			report := w.run()
			data, err := json.MarshalIndent(report, "", "  ")
			require.NoError(t, err)
			got := string(data) + "\n"
			for _, change := range [][2]string{
				{w.Registry.Host(), "registry.example:5000"}, {w.SharedDir, "/mnt/shared"}, {w.ConfigFile, "/tapp/user_config"},
				{w.settings.Compose, "docker compose"}, {w.AgentSocket, "/var/run/dstack.sock"},
			} {
				got = strings.ReplaceAll(got, change[0], change[1])
			}
			// The digests depend on the machine's architecture.
			for _, name := range []string{"@hex0@", "@digest1@", "@config0@", "@config1@"} {
				got = strings.ReplaceAll(got, w.names[name], name)
			}
			for _, change := range [][2]string{
				{`[0-9a-f]{96}`, "@sha384@"}, {`"duration_ms": \d+`, `"duration_ms": 0`}, {`"started_at": "[^"]*"`, `"started_at": "2026-01-02T03:04:05.678Z"`}, {`linux/[a-z0-9]+`, "linux/amd64"},
			} {
				got = regexp.MustCompile(change[0]).ReplaceAllString(got, change[1])
			}
			golden := filepath.Join(seeds, name+".json")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.Equal(t, string(want), got, "changed on purpose? raise ReportVersion if a reader has to change too, and run with -update")
		})
	}
}

// TestItCannotReachWhatActs asserts by its imports that preflight can't load or start anything, and by its calls that it doesn't
// use what the packages that it shares with the boot offer beyond reading.
func TestItCannotReachWhatActs(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "tee-launcher/pkg/preflight").Output()
	require.NoError(t, err)
	imported := strings.Fields(string(out))
	assert.Contains(t, imported, "tee-launcher/pkg/docker/inspect")
	for _, forbidden := range []string{"docker", "launch"} {
		assert.NotContains(t, imported, "tee-launcher/pkg/"+forbidden)
	}
	paths, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			if call, isSelector := n.(*ast.SelectorExpr); isSelector {
				_, isOfField := call.X.(*ast.SelectorExpr)
				assert.False(t, isOfField && call.Sel.Name == "Sub", "%s: a directory is opened by Open, Sub makes it", path)
				for _, acts := range []string{"Measure", "Create", "Load", "Start", "Stop", "Remove", "Write", "WriteFile", "Lock", "Mkdir", "MethodPost"} {
					assert.NotEqual(t, acts, call.Sel.Name, "%s", path)
				}
			}
			return true
		})
	}
}
