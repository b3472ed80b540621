package search_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/rtmr"
)

// TestMain keeps what Compose's surroundings need off the disk, and the collector from work that memory spares.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("/dev/shm", "search")
	if err == nil {
		must(os.Setenv("TMPDIR", dir))
	}
	debug.SetGCPercent(800)
	code := m.Run()
	must(os.RemoveAll(dir))
	os.Exit(code)
}

// world is a machine made of doubles that can be put back into any state it was in.
type world struct {
	*launchtest.Machine
	settings admission.Settings
	proc     string
	images   map[digest.Digest]string // the engine's ID of each image of the registry
	boot     int
	down     bool   // the registry
	kept     string // the newer image's manifest, as a run caches it

	mu     sync.Mutex
	run    *run        // that is under way
	silent atomic.Bool // requests are those of a second launcher or of verify, of which nobody is told
}

// state is all of a world that can differ from moment to moment. A launcher that dies leaves just that.
type state struct {
	engine launchtest.EngineState
	agent  launchtest.AgentState
	files  map[string]string // in the shared directory, by their path; a directory ends with a slash
	config string
	boot   int
	down   bool
}

func newWorld(t *testing.T, containerd bool, supervise admission.Supervise) *world {
	o := launchtest.MachineOptions{Layers: []int{300}}
	o.Engine.Root, o.Engine.Containerd = "/nowhere", containerd
	m, err := launchtest.NewMachine(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.Empty(t, m.Unexpected(), "requests that a double doesn't know")
		assert.NoError(t, m.Close())
	})
	w := &world{Machine: m, boot: 1, images: map[digest.Digest]string{}, settings: admission.Settings{
		Platform: config.TEE, DefaultDigest: m.Digests[0], ConfigFile: m.ConfigFile, SharedDir: m.SharedDir,
		AgentSocket: m.AgentSocket, DockerHost: m.Engine.Host(), Compose: "/the/double", Supervise: supervise,
	}}
	for _, d := range m.Digests {
		w.images[d] = d.String()
		if containerd {
			continue
		}
		answer, err := http.Get("http://" + m.Registry.Host() + "/v2/" + launchtest.Repository + "/manifests/" + d.String())
		require.NoError(t, err)
		var manifest v1.Manifest
		require.NoError(t, json.NewDecoder(answer.Body).Decode(&manifest))
		w.images[d] = manifest.Config.Digest.String()
		require.NoError(t, answer.Body.Close())
	}
	w.proc = filepath.Join(filepath.Dir(m.SharedDir), "proc")
	for path, text := range map[string]string{
		"locks": "", "net/tcp": "  sl  local_address rem_address   st\n",
		"self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "sys/kernel/random/boot_id": "",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(w.proc, path)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(w.proc, path), []byte(text), 0o600))
	}
	must(w.Configure(goodConfig))
	must(w.Approve(m.Digests[1]))
	w.named()
	empty := w.state()
	w.play(&run{})
	w.kept = w.files()["launcher/image-"+m.Digests[1].Hex()+".json"]
	w.restore(empty)
	must(w.Approve(m.Digests[0]))
	m.Engine.Watch(w.asksEngine)
	m.Agent.Watch(w.asksAgent)
	return w
}

// goodConfig is what the user config has beside the image.
const goodConfig = ""

func (w *world) Configure(text string) error { return w.Machine.Configure(text, `home_dir = "/data"`) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (w *world) bootID() string { return fmt.Sprintf("boot-%d", w.boot) }

// named has the kernel tell the boot's name.
func (w *world) named() {
	must(os.WriteFile(filepath.Join(w.proc, "sys/kernel/random/boot_id"), []byte(w.bootID()+"\n"), 0o600))
}

// state returns the world as it is.
func (w *world) state() state {
	cfg, err := os.ReadFile(w.ConfigFile)
	must(err)
	return state{w.Engine.State(), w.Agent.State(), w.files(), string(cfg), w.boot, w.down}
}

func (w *world) files() map[string]string {
	found := map[string]string{}
	var read func(dir string)
	read = func(dir string) {
		entries, err := os.ReadDir(w.Shared(dir))
		must(err)
		for _, e := range entries {
			path := dir + e.Name()
			if e.IsDir() {
				found[path+"/"] = ""
				read(path + "/")
				continue
			}
			data, err := os.ReadFile(w.Shared(path))
			must(err)
			found[path] = string(data)
		}
	}
	read("")
	return found
}

// restore brings the world back to a state of its own.
func (w *world) restore(s state) {
	w.Engine.Restore(s.engine)
	w.Agent.Restore(s.agent)
	now := w.files()
	for path := range now {
		if _, stays := s.files[path]; !stays {
			must(os.RemoveAll(w.Shared(path)))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		had, there := now[path]
		switch {
		case there && had == s.files[path]:
		case strings.HasSuffix(path, "/"):
			must(os.MkdirAll(w.Shared(path), 0o755))
		default:
			must(os.WriteFile(w.Shared(path), []byte(s.files[path]), 0o600))
		}
	}
	must(os.WriteFile(w.ConfigFile, []byte(s.config), 0o600))
	w.boot = s.boot
	w.named()
	w.registry(s.down)
}

// registry takes it down or up.
func (w *world) registry(down bool) {
	w.Registry.Heal()
	if w.down = down; down {
		w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Times: -1})
	}
}

var varies = regexp.MustCompile(`(mpc-node-holder-)[.0-9]+|(mpc-node-impostor-boot-\d+-)[0-9a-f]+`)

// key folds all states into one that differ in nothing by which anybody decides: in times, IDs and the report.
func (w *world) key() [16]byte {
	var b strings.Builder
	boot := w.bootID()
	for _, c := range w.Engine.Containers() {
		name := strings.ReplaceAll(varies.ReplaceAllString(c.Name, "$1$2"), boot, "now")
		of := c.Labels[compose.BootLabel]
		if of == boot {
			of = "now"
		} else if of != "" {
			of = "then"
		}
		fmt.Fprintln(&b, name, c.Image, of, c.Labels[compose.ProjectLabel], c.Labels["tee-launcher.manifest-digest"], c.RestartPolicy, c.Status, c.Starts > 0, c.ExitCode != 0, len(c.Mounts))
	}
	for _, i := range w.Engine.Images() {
		fmt.Fprintln(&b, i.ID, i.Names, len(i.Layers))
	}
	fmt.Fprintln(&b, w.Engine.Volumes(), w.Agent.State().Late(), w.Agent.RTMR3(), w.down)
	files := w.files()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		switch {
		case strings.Contains(path, "report.json"), strings.Contains(path, "metrics.prom"):
		case path == "launcher/measurement.json":
			text := regexp.MustCompile(`"intent": "[^"]*"`).ReplaceAllString(files[path], "intent")
			fmt.Fprintln(&b, path, strings.ReplaceAll(text, boot, "now"))
		default:
			fmt.Fprintln(&b, path, files[path])
		}
	}
	cfg, err := os.ReadFile(w.ConfigFile)
	must(err)
	b.Write(cfg)
	sum := sha256.Sum256([]byte(b.String()))
	return [16]byte(sum[:16])
}

// images events of this boot.
func (w *world) measured() (all []digest.Digest) {
	for _, e := range w.Agent.Events() {
		if e.Name == rtmr.EventName {
			all = append(all, digest.Digest(e.Payload))
		}
	}
	return all
}

// ofWorkload reports whether a container passes for the workload.
func ofWorkload(c launchtest.ContainerInfo) bool {
	return c.Name == compose.Name || strings.HasPrefix(c.Name, compose.ImpostorPrefix) || c.Labels[compose.ProjectLabel] == compose.Name
}

// live reports whether a container runs or is about to.
func live(c launchtest.ContainerInfo) bool { return c.Status != "created" && c.Status != "exited" }

// outcome is how a run ended.
type outcome struct {
	code  exit.Code
	waits bool // for another attempt
	text  string
}

func (o outcome) String() string { return fmt.Sprintf("%d waits %v", o.code, o.waits) }

func (o outcome) same(as outcome) bool { return o.code == as.code && o.waits == as.waits }

// disturbance is what happens at one moment of a run. The zero value: nothing.
type disturbance struct {
	at    int // the number of the moment, from 1 on
	event event
}

// run is one run of the launcher and its moments.
type run struct {
	w       *world
	d       disturbance
	moments []moment
	dirty   bool
	stamp   stamp
	keep    func(moment) // gets every moment at which the state may be a new one
	wrong   []string
	failed  outcome // of the attempt after which it waits
	tries   int     // attempts that it still may have
	clock   time.Duration
}

// moment is a point between two effects.
type moment struct {
	name  string
	kind  kind
	key   [16]byte // of the world then
	moved bool     // since the moment before
}

type kind int

// The kinds of moments.
const (
	logs kind = iota
	asksEngine
	changesEngine
	asksAgent
	emits
)

// at is called between any two things that a run does.
func (r *run) at(name string, k kind) (do event) {
	m := moment{name: name, kind: k, moved: r.moved() || len(r.moments) == 0}
	if m.moved {
		m.key = r.w.key()
	} else {
		m.key = r.moments[len(r.moments)-1].key
	}
	r.moments = append(r.moments, m)
	if m.moved {
		r.sound(name)
		if r.keep != nil {
			r.keep(m)
		}
	}
	if r.d.at == len(r.moments) {
		r.dirty, do = true, r.d.event
	}
	if k == emits && (len(r.w.measured()) > 0 || r.w.Agent.State().Late() > 0) {
		r.violates("one event", "another is asked for")
	}
	if k == changesEngine || k == emits {
		r.dirty = true
	}
	return do
}

// moved reports whether the world may be another than at the moment before. Each file that is written is another one than
// before it, and the times of the directories alone are too coarse.
func (r *run) moved() bool {
	var now stamp
	for i, path := range []string{".", "launcher", "launcher/measurement.json", compose.NodeConfig} {
		var stat unix.Stat_t
		if unix.Lstat(r.w.Shared(path), &stat) == nil {
			now[i] = [2]int64{int64(stat.Ino), stat.Mtim.Nano()}
		}
	}
	was := r.dirty || now != r.stamp
	r.dirty, r.stamp = false, now
	return was
}

// stamp tells which files stand there, and since when.
type stamp [4][2]int64

func (w *world) asksEngine(request string) launchtest.EngineFault {
	if w.silent.Load() {
		return launchtest.EngineFault{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.run
	if r == nil {
		return launchtest.EngineFault{}
	}
	k := changesEngine
	if strings.HasPrefix(request, "GET ") || strings.HasPrefix(request, "HEAD ") {
		k = asksEngine
	}
	e := r.at("engine: "+request, k)
	if e.do != nil {
		e.in(w)
	}
	// Judged when it is about to happen, whatever came in between.
	if id, ok := strings.CutSuffix(strings.TrimPrefix(request, "POST /containers/"), "/start"); ok {
		r.starts(id)
	}
	return e.engine
}

func (w *world) asksAgent(request string) launchtest.AgentFaultKind {
	if w.silent.Load() {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.run
	if r == nil {
		return ""
	}
	k := asksAgent
	if strings.HasPrefix(request, "EmitEvent mpc") {
		k = emits
	}
	e := r.at("agent: "+request, k)
	if e.do != nil {
		e.in(w)
	}
	return e.agent
}

// log is a handler that tells the run what the launcher says, before it goes on.
type log struct{ *run }

func (log) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (l log) WithAttrs([]slog.Attr) slog.Handler         { return l }
func (l log) WithGroup(string) slog.Handler              { return l }
func (l log) Handle(_ context.Context, r slog.Record) error {
	attrs := map[string]string{}
	r.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.String(); return true })
	message := strings.TrimSpace(r.Message + " " + attrs["step"])
	w := l.w
	w.mu.Lock()
	defer w.mu.Unlock()
	e := l.at("log: "+message, logs)
	if e.do != nil {
		e.in(w)
	}
	switch {
	case r.Message == "the attempt failed, trying again":
		var code exit.Code
		fmt.Sscan(attrs["exit_code"], &code)
		if l.failed.text == "" {
			l.failed = outcome{code, true, attrs["step"] + ": " + attrs["error"]}
		}
		if l.tries--; l.tries < 0 {
			runtime.Goexit()
		}
	case message == "step started supervise" && w.settings.Supervised():
		runtime.Goexit() // all effects but those of supervision are done
	}
	return nil
}

// launcher returns one for this world, and its end.
func (w *world) launcher(h slog.Handler, clock *time.Duration) *launch.Launcher {
	var mu sync.Mutex
	return &launch.Launcher{
		Settings: w.settings, Proc: w.proc, Log: slog.New(h), Exec: w.exec,
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(*clock) },
		Sleep: func(ctx context.Context, d time.Duration) error {
			mu.Lock()
			defer mu.Unlock()
			*clock += max(d, 10*time.Second)
			return context.Cause(ctx)
		},
	}
}

// exec plays Compose without a process.
func (w *world) exec(cmd *exec.Cmd) error {
	if code := launchtest.ComposeIn(cmd.Env, cmd.Dir, cmd.Args[1:], cmd.Stdin, cmd.Stdout, cmd.Stderr); code != 0 {
		return fmt.Errorf("exit status %d", code)
	}
	return nil
}

// play runs the launcher on the world as it is, until it ends, waits once more than it may, or is about to supervise.
func (w *world) play(r *run) outcome {
	r.w = w
	_ = r.moved()
	w.mu.Lock()
	w.run = r
	w.mu.Unlock()
	end := outcome{code: exit.Internal, text: "it didn't end"}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() {
			if p := recover(); p != nil {
				end = outcome{code: exit.Internal, text: fmt.Sprintf("panic: %v: %s", p, debug.Stack())}
			}
		}()
		end = outcome{code: exit.OK} // where it is killed before it supervises
		if err := w.launcher(log{r}, &r.clock).Run(context.Background()); err != nil {
			end = outcome{code: exit.Of(err), text: err.Error()}
		}
	}()
	<-ended
	w.mu.Lock()
	w.run = nil
	w.mu.Unlock()
	if r.failed.text != "" && r.tries < 0 {
		end = r.failed
	}
	return end
}

// second runs another launcher to its end, in the middle of the first one.
func (w *world) second() {
	w.silent.Store(true)
	defer w.silent.Store(false)
	ended := make(chan struct{})
	var clock time.Duration
	go func() {
		defer close(ended)
		_ = w.launcher(quiet{}, &clock).Run(context.Background())
	}()
	<-ended
}

// quiet ends a launcher that waits or supervises.
type quiet struct{ slog.Handler }

func (quiet) Enabled(context.Context, slog.Level) bool { return true }
func (q quiet) WithAttrs([]slog.Attr) slog.Handler     { return q }
func (quiet) Handle(_ context.Context, r slog.Record) error {
	supervises := false
	r.Attrs(func(a slog.Attr) bool { supervises = supervises || a.Value.String() == "supervise"; return true })
	if r.Message == "the attempt failed, trying again" || supervises && r.Message == "step started" {
		runtime.Goexit()
	}
	return nil
}

// verify asks what a run would do.
func (w *world) verify() *preflight.Report {
	w.silent.Store(true)
	defer w.silent.Store(false)
	report, err := preflight.Run(context.Background(), preflight.Options{
		Settings: w.settings, Proc: w.proc, Patience: time.Millisecond, Exec: w.exec, For: preflight.ForNow,
		Free:   func(string) (int64, error) { return 1 << 40, nil },
		Tuning: registry.Tuning{Sleep: func(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) }},
	})
	must(err)
	return report
}
