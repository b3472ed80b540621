package admission_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/rtmr"
)

// lab is what the worlds of one worker share: what takes time to make.
type lab struct {
	dir      string
	registry *launchtest.Registry
	images   []v1.Image
	kept     [][]byte // by image
	old      v1.Image
	compose  string // the command
	request  *os.File
	answer   *os.File
	host     atomic.Value // of the engine that Compose speaks to
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "worlds")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	l := &lab{dir: dir}
	l.registry, err = launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l.registry.Close()) })
	for _, seeds := range [][]uint64{{1, 2}, {1, 3}} { // the first layer is the same
		var layers [][]byte
		for _, seed := range seeds {
			layer, err := launchtest.RandomLayer(seed, 300)
			require.NoError(t, err)
			layers = append(layers, layer)
		}
		img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
		require.NoError(t, err)
		ref, err := l.registry.Push(launchtest.Repository, img)
		require.NoError(t, err)
		v, err := new(registry.Client).Source(ref).Resolve(t.Context())
		require.NoError(t, err)
		kept, err := json.Marshal(v.Kept())
		require.NoError(t, err)
		l.images, l.kept = append(l.images, img), append(l.kept, kept)
	}
	layer, err := launchtest.RandomLayer(9, 100)
	require.NoError(t, err)
	l.old, err = launchtest.Image(launchtest.ImageOptions{
		Layers: [][]byte{layer}, Config: v1.Config{Cmd: []string{"sleep"}},
	})
	require.NoError(t, err)
	l.playCompose(t)
	return l
}

// playCompose makes a command that is Compose: a shell, which takes a tenth of the time of a test
// binary, hands on what it is asked for.
func (l *lab) playCompose(t *testing.T) {
	t.Helper()
	const script = `case "$*" in *--fail=old*version*) echo 1.29.2; exit;; *version*) echo 5.0.2; exit;; esac
exec 3<&0 && cd %s && printf '%%s\n' "$$ $*" >request && read -r code <answer && exit "$code"`
	path := filepath.Join(l.dir, "compose")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, script, l.dir), 0o600))
	l.compose = "/bin/sh " + path
	for name, file := range map[string]**os.File{"request": &l.request, "answer": &l.answer} {
		require.NoError(t, unix.Mkfifo(filepath.Join(l.dir, name), 0o600))
		opened, err := os.OpenFile(filepath.Join(l.dir, name), os.O_RDWR, 0)
		require.NoError(t, err)
		*file = opened
		t.Cleanup(func() { opened.Close() })
	}
	empty := filepath.Join(l.dir, "empty")
	require.NoError(t, os.Mkdir(empty, 0o700))
	go func() {
		for lines := bufio.NewScanner(l.request); lines.Scan(); {
			pid, args, _ := strings.Cut(lines.Text(), " ")
			// What the shell was given; whoever wrote it may be gone by now, which an open would
			// wait for.
			file, err := os.OpenFile("/proc/"+pid+"/fd/3", os.O_RDONLY|unix.O_NONBLOCK, 0)
			code := 125
			if err == nil {
				host, _ := l.host.Load().(string)
				environ := []string{"PATH=/", "HOME=" + empty, "DOCKER_CONFIG=" + empty, "DOCKER_HOST=" + host}
				code = launchtest.ComposeIn(environ, empty, strings.Fields(args), file, io.Discard, io.Discard)
				file.Close()
			}
			fmt.Fprintln(l.answer, code)
		}
	}()
}

// machine is a world come true.
type machine struct {
	*lab
	engine   *launchtest.Engine
	agent    *launchtest.Agent
	settings admission.Settings
	proc     string
	boots    int
	lock     *os.File     // somebody else's
	locker   atomic.Value // the ID of the container whose it is, if it is one's
	digests  []digest.Digest
	dies     atomic.Bool // a workload ends when it is started
	moved    atomic.Int64
}

func (m *machine) boot() string { return fmt.Sprintf("boot-%d", m.boots) }

// check ends the play: the world can't be made, which is a mistake in the test.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

func (l *lab) machine(w world) *machine {
	dir, err := os.MkdirTemp(l.dir, "m")
	check(err)
	m := &machine{lab: l, proc: filepath.Join(dir, "proc"), boots: 1}
	o := launchtest.EngineOptions{Containerd: w.Containerd, Root: "/", Shared: filepath.Join(dir, "shared")}
	o.OnStart = func(launchtest.ContainerInfo) (int, bool) { return 3, !m.dies.Load() }
	o.OnStop = func(c launchtest.ContainerInfo) int {
		if m.locker.Load() == c.ID {
			m.unlock()
		}
		return 0
	}
	if w.Containerd {
		o.APIVersion = "1.51"
	}
	if slices.Contains(w.Quirks, "the engine's disk is full") {
		o.Root = "/proc" // has no free bytes
	}
	m.engine, err = launchtest.NewEngine(filepath.Join(dir, "docker.sock"), o)
	check(err)
	l.host.Store(m.engine.Host())
	var agent launchtest.AgentOptions
	if slices.Contains(w.Quirks, "an agent that can't emit") {
		agent.Release = "0.6.0"
	}
	m.agent, err = launchtest.NewAgent(filepath.Join(dir, "agent.sock"), agent)
	check(err)
	for _, img := range l.images {
		h, err := img.Digest()
		check(err)
		approved, err := digest.Parse(h.String())
		check(err)
		m.digests = append(m.digests, approved)
	}
	m.settings = admission.Settings{
		Platform: w.Platform, DefaultDigest: m.digests[0], ConfigFile: filepath.Join(dir, "user_config"),
		SharedDir: filepath.Join(dir, "shared"), AgentSocket: m.agent.Socket(), DockerHost: m.engine.Host(),
		Compose: l.compose, Supervise: w.Supervise, Report: admission.NoReport,
	}
	check(os.Mkdir(m.settings.SharedDir, 0o755))
	m.configure("")
	m.write(filepath.Join(m.proc, "locks"), "")
	m.write(filepath.Join(m.proc, "net/tcp"), "")
	m.write(filepath.Join(m.proc, "self/mountinfo"), "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
	m.writeBoot()
	return m
}

func (m *machine) close() {
	m.registry.Heal()
	check(m.engine.Close())
	check(m.agent.Close())
	m.unlock()
	check(os.RemoveAll(filepath.Dir(m.proc)))
}

// write makes a file in the place of whatever is there.
func (m *machine) write(path, text string) {
	check(os.RemoveAll(path))
	check(os.MkdirAll(filepath.Dir(path), 0o755))
	check(os.WriteFile(path, []byte(text), 0o600))
}

func (m *machine) writeBoot() {
	path := filepath.Join(m.proc, "sys/kernel/random/boot_id")
	// Where the kernel doesn't tell, it does so after a boot as little as before it.
	if _, err := os.Stat(path); err == nil || m.boots == 1 {
		m.write(path, m.boot())
	}
}

// path returns that of a file of the machine.
func (m *machine) path(name string) string {
	return filepath.Join(filepath.Dir(m.settings.SharedDir), name)
}

func (m *machine) shared(name string) string { return filepath.Join(m.settings.SharedDir, name) }

func (m *machine) configure(lines string) {
	m.write(m.settings.ConfigFile, fmt.Sprintf(`[launcher_config]
image_reference = "%s/%s:main"
port_mappings = [{ host = 11780, container = 11780 }]
pull_max_retries = 0
%s
[mpc_node_config]
home_dir = "/data"
`, m.registry.Host(), launchtest.Repository, lines))
}

func (m *machine) approve(digests ...digest.Digest) {
	data, err := json.Marshal(map[string]any{"approved_hashes": digests})
	check(err)
	m.write(m.shared("image-digest.bin"), string(data))
}

func (m *machine) record(format string, args ...any) {
	m.own("measurement.json", fmt.Sprintf(format, args...))
}

// own writes a file in the launcher's own directory, if that is one.
func (m *machine) own(name, text string) {
	if info, err := os.Lstat(m.shared("launcher")); err == nil && !info.IsDir() {
		return
	}
	m.write(m.shared("launcher/"+name), text)
}

// engineDoes is for what may be impossible in this world, which is as good.
func (m *machine) engineDoes(method, target string, body any) {
	_, _ = m.engine.Call(method, target, body)
}

func (m *machine) emit(i int) {
	m.agent.Emit(rtmr.EventName, m.digests[i][:])
}

// reboot is a power loss, and what dstack does then.
func (m *machine) reboot() {
	m.boots++
	m.writeBoot()
	m.unlock()
	check(m.engine.Restart(false))
	m.engineDoes(http.MethodPost, `/images/prune?filters={"dangling":["false"]}`, nil)
	m.engineDoes(http.MethodPost, "/volumes/prune", nil)
	m.agent.Reboot()
}

// lockBy has somebody hold the shared directory's lock.
func (m *machine) lockBy(pid string) {
	dir, err := os.Open(m.settings.SharedDir)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	check(err)
	m.unlock()
	m.lock = dir
	check(unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	var stat unix.Stat_t
	check(unix.Fstat(int(dir.Fd()), &stat))
	line := fmt.Sprintf("1: FLOCK  ADVISORY  WRITE %s %02x:%02x:%d 0 EOF\n",
		pid, unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	m.write(filepath.Join(m.proc, "locks"), line)
}

func (m *machine) unlock() {
	if m.lock == nil {
		return
	}
	check(unix.Flock(int(m.lock.Fd()), unix.LOCK_UN))
	check(m.lock.Close())
	m.lock = nil
	m.locker.Store("")
	m.write(filepath.Join(m.proc, "locks"), "")
}

func (m *machine) make(c container) {
	labels := map[string]string{}
	if c.Project != "" {
		labels["com.docker.compose.project"] = c.Project
		if c.Service {
			labels["com.docker.compose.service"] = "mpc-node"
		}
	}
	switch c.Boot {
	case "this":
		labels["tee-launcher.boot-id"] = m.boot()
	case "other":
		labels["tee-launcher.boot-id"] = "boot-0"
	}
	host := map[string]any{}
	if c.Mount != "" {
		sources := map[string]string{
			"socket": m.settings.AgentSocket, "parent": filepath.Dir(m.settings.AgentSocket),
			"/": "/", "volume": "some",
		}
		host["Binds"] = []string{sources[c.Mount] + ":/x"}
	}
	if c.Port {
		binding := []any{map[string]string{"HostPort": "11780"}}
		host["PortBindings"] = map[string]any{"80/tcp": binding}
	}
	m.engineDoes(http.MethodPost, "/containers/create?name="+c.Name,
		map[string]any{"Image": "old:1", "Labels": labels, "HostConfig": host})
	if c.State != "created" {
		m.engineDoes(http.MethodPost, "/containers/"+c.Name+"/start", nil)
	}
	switch c.State {
	case "paused":
		m.engineDoes(http.MethodPost, "/containers/"+c.Name+"/pause", nil)
	case "stopped":
		m.engineDoes(http.MethodPost, "/containers/"+c.Name+"/stop", nil)
	case "failed":
		_ = m.engine.Exit(c.Name, 1)
	}
	if c.State == "failed" && c.Policy == "unless-stopped" {
		c.Policy = "no" // the engine keeps to itself whether it will start such a one
	}
	m.restarts(c.Name, c.Policy)
}

func (m *machine) restarts(container, policy string) {
	m.engineDoes(http.MethodPost, "/containers/"+container+"/update",
		map[string]any{"RestartPolicy": map[string]any{"Name": policy}})
}

// engineFails has the engine answer that it can't.
func (m *machine) engineFails(request string) {
	m.engine.Fail(launchtest.EngineFault{
		Match: request, Status: http.StatusInternalServerError, Message: "ill", Times: -1,
	})
}

// registryFails spoils all answers for a blob or manifest; zero: for all of them.
func (m *machine) registryFails(
	kind launchtest.RegistryFaultKind, on launchtest.RequestKind, digest v1.Hash, status int,
) {
	m.registry.Fail(launchtest.RegistryFault{
		Kind: kind, On: on, Digest: digest, Status: status, Times: -1,
	})
}

// now and sleep are a clock that runs ahead of whoever waits.
func (m *machine) now() time.Time { return time.Now().Add(time.Duration(m.moved.Load())) }

func (m *machine) sleep(ctx context.Context, d time.Duration) error {
	m.moved.Add(int64(20 * d))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (m *machine) verify(when preflight.For) *preflight.Report {
	report, err := preflight.Run(context.Background(), preflight.Options{
		Settings: m.settings, For: when, Proc: m.proc, Patience: time.Nanosecond,
		Tuning: registry.Tuning{Sleep: m.sleep},
	})
	check(err)
	return report
}

// run is a launcher that is told to end once it supervises, or an attempt fails.
func (m *machine) run() error { return m.runOn(nil) }

// runOn is one that goes on after its first attempt, once the world was changed.
func (m *machine) runOn(change func()) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	l := launch.Launcher{
		Settings: m.settings, Proc: m.proc, Now: m.now, Sleep: m.sleep,
		Log: slog.New(&launchtest.Ender{Cancel: cancel, Again: once(change)}),
	}
	return l.Run(ctx)
}

// once returns a function that lets one failed attempt go on, after a change; nil: none goes on.
func once(change func()) func() bool {
	return func() bool {
		first := change
		change = nil
		if first != nil {
			first()
		}
		return first != nil
	}
}

// askAgent is a request of somebody else's to the agent.
func (m *machine) askAgent(body string) {
	request, err := http.NewRequest(http.MethodPost, "http://agent/EmitEvent", strings.NewReader(body))
	check(err)
	request.Header.Set("Content-Type", "application/json")
	answer, err := unixhttp.Client(m.settings.AgentSocket, false).Do(request)
	if err == nil { // no agent, no event
		answer.Body.Close()
	}
}
