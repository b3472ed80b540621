package preflight_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/registry"
)

// TestMain lets the test binary play Compose, which is asked for its version.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "compose-double" {
		syscall.Exit(launchtest.ComposeMain(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

const bootID = "6f1d7a60-3f7b-4b53-9c59-ad0c3a0a2a11"

// seeds is where they are.
const seeds = "../../testdata/verify"

// seed is one file there: a misconfigured machine, and what has to be found. Folders are named by the check that
// finds it.
type seed struct {
	What   string   // for people
	Expect []string // all codes that must be found, and no other but notes
	Exit   exit.Code

	Settings struct {
		Platform, Config, Shared, Socket, Host, Compose string
		Report                                          string
		Insecure, Mistakes, Warnings, Skip              []string
		Unsupervised, Fallback, Offline, Deep           bool
		AppCompose                                      string
		NoDefault                                       bool
		Default                                         string
		Now                                             time.Time
		Free                                            int64
	}
	Config  string            // further lines of [launcher_config]
	Node    string            // further lines of [mpc_node_config]
	Files   map[string]string // below shared/ and proc/, or user_config
	Folders []string
	Links   map[string]string
	Missing []string // what is removed

	Agent struct {
		Release, AppCompose string
		Down, Poisoned      bool
		Fault               []struct {
			Kind, Match string
			Times       int
		}
		Event []struct{ Name, Payload string }
	}
	Engine struct {
		Down, Containerd, NoVolume, Loaded bool
		API                                string
		Fault                              []struct {
			Match, Message, Old, New string
			Status                   int
		}
		Container []struct {
			Name    string
			Restart string
			Binds   []string
			Labels  map[string]string
			Start   bool
			Ended   bool // it ran
		}
	}
	Mirror *struct { // a registry beside it, @mirror@; it has the image
		Login bool
		Fault []struct {
			Kind, On, Digest string
			Status           int
		}
	}
	Registry struct {
		Down  bool
		Fault []struct {
			Kind, On, Digest string
			Status           int
		}
	}
}

// world is a healthy machine made of doubles, and the settings to check on it.
type world struct {
	*launchtest.Machine
	t        *testing.T
	settings preflight.Options
	proc     string
	before   []string // effects of the arrangement
	asked    int      // requests to the engine by then
	names    map[string]string
}

// oddImages are made once for all.
var oddImages = sync.OnceValue(launchtest.OddImages)

func newWorld(t *testing.T, o launchtest.MachineOptions) *world {
	t.Helper()
	m, err := launchtest.NewMachine(o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	w := &world{Machine: m, t: t, proc: t.TempDir()}
	w.settings = preflight.Options{
		Settings: admission.Settings{
			Platform: config.TEE, DefaultDigest: m.Digests[0], ConfigFile: m.ConfigFile, SharedDir: m.SharedDir, AgentSocket: m.AgentSocket,
			DockerHost: m.Engine.Host(), Compose: os.Args[0] + " compose-double", Supervise: admission.SuperviseOn,
		},
		Proc: w.proc, Patience: time.Millisecond, Free: func(string) (int64, error) { return 1 << 40, nil },
		Tuning: registry.Tuning{Sleep: func(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) }},
	}
	w.write("proc/sys/kernel/random/boot_id", bootID+"\n")
	w.write("proc/locks", "")
	w.write("proc/net/tcp", "  sl  local_address rem_address   st\n")
	w.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")

	foreign, err := launchtest.Image(launchtest.ImageOptions{Platform: v1.Platform{OS: "linux", Architecture: "s390x"}, Layers: [][]byte{make([]byte, 512)}})
	require.NoError(t, err)
	ref, err := m.Registry.Push(launchtest.Repository, foreign)
	require.NoError(t, err)
	foreignConfig, err := foreign.ConfigName()
	require.NoError(t, err)
	w.names = map[string]string{
		"@registry@": m.Registry.Host(), "@shared@": m.SharedDir, "@user_config@": m.ConfigFile, "@socket@": m.AgentSocket, "@boot@": bootID, "@proc@": w.proc,
		"@foreign@": ref.DigestStr(), "@config-foreign@": foreignConfig.String(), "@hex0@": m.Digests[0].Hex(), "@repository@": m.Registry.Host() + "/" + launchtest.Repository, "@unknown@": "sha256:" + strings.Repeat("ab", 32),
	}
	for i, h := range m.Digests {
		v := w.resolve(h)
		w.names[fmt.Sprintf("@digest%d@", i)] = h.String()
		w.names[fmt.Sprintf("@config%d@", i)] = v.ConfigDigest().String()
		w.names[fmt.Sprintf("@layer%d@", i)] = v.Layers()[1].Digest.String()
		w.names[fmt.Sprintf("@diff%d@", i)] = v.Layers()[1].DiffID.String()
	}
	for odd, name := range map[string]string{"helm chart": "helm", "layer octet-stream": "loose"} {
		i := slices.IndexFunc(oddImages(), func(o launchtest.OddImage) bool { return o.Name == odd })
		ref, err := oddImages()[i].Push(m.Registry, launchtest.Repository)
		require.NoError(t, err)
		blobs := oddImages()[i].Blobs
		w.names["@"+name+"@"], w.names["@config-"+name+"@"] = ref.DigestStr(), digest.Of(blobs[len(blobs)-1]).String()
	}
	_, err = m.Engine.Call(http.MethodPost, "/volumes/create", map[string]string{"Name": "mpc-data"})
	require.NoError(t, err)
	return w
}

func (w *world) resolve(h digest.Digest) *image.Verified {
	cfg, _, err := config.Parse(w.ConfigFile, w.read(w.ConfigFile), config.TEE)
	require.NoError(w.t, err)
	v, err := new(registry.Client).Source(cfg.Image.At(h)).Resolve(w.t.Context())
	require.NoError(w.t, err)
	return v
}

func (w *world) read(path string) []byte {
	data, err := os.ReadFile(path)
	require.NoError(w.t, err)
	return data
}

// path turns a seed's name of a file into a path.
func (w *world) path(name string) string {
	switch first, rest, _ := strings.Cut(name, "/"); first {
	case "shared":
		return filepath.Join(w.SharedDir, rest)
	case "user_config":
		return w.ConfigFile
	case "proc":
		return filepath.Join(w.proc, rest)
	}
	return filepath.Join(w.proc, "elsewhere", name)
}

func (w *world) write(name, text string) {
	path := w.path(w.fill(name))
	require.NoError(w.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(w.t, os.WriteFile(path, []byte(w.fill(text)), 0o600))
}

// fill replaces the names that only this machine knows.
func (w *world) fill(text string) string {
	for name, value := range w.names {
		text = strings.ReplaceAll(text, name, value)
	}
	return text
}

// hash reads a digest of a seed; empty is none.
func (w *world) hash(text string) digest.Digest {
	if text == "" {
		return digest.Digest{}
	}
	h, err := digest.Parse(w.fill(text))
	require.NoError(w.t, err)
	return h
}

// target is the blob or manifest that a fault hits; empty is any.
func (w *world) target(text string) v1.Hash {
	if text == "" {
		return v1.Hash{}
	}
	return image.Hash(w.hash(text))
}

// readSeed reads a seed. An unknown key is a mistake in the seed.
func readSeed(t *testing.T, path string) seed {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	var s seed
	require.NoError(t, toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&s), path)
	return s
}

// plant makes a machine as the seed says.
func plant(t *testing.T, s seed) *world {
	t.Helper()
	w := newWorld(t, launchtest.MachineOptions{
		Engine: launchtest.EngineOptions{APIVersion: s.Engine.API, Containerd: s.Engine.Containerd},
		Agent:  launchtest.AgentOptions{Release: s.Agent.Release, AppCompose: s.Agent.AppCompose},
	})
	w.plantMirror(s)
	w.plantFiles(s)
	w.plantAgent(s)
	w.plantEngine(s)
	if s.Registry.Down {
		require.NoError(t, w.Registry.Stop())
	}
	for _, f := range s.Registry.Fault {
		w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.RegistryFaultKind(f.Kind), On: launchtest.RequestKind(f.On), Digest: w.target(f.Digest),
			Status: f.Status, Times: -1})
	}
	w.plantSettings(s)
	return w
}

func (w *world) plantMirror(s seed) {
	if s.Mirror == nil {
		return
	}
	o := launchtest.RegistryOptions{}
	if s.Mirror.Login {
		o.Auth = launchtest.RegistryBasic
	}
	mirror, err := launchtest.NewRegistry(o)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { assert.NoError(w.t, mirror.Close()) })
	v := w.resolve(w.Digests[0])
	_, err = mirror.PushManifest(launchtest.Repository, v.Manifest())
	require.NoError(w.t, err)
	_, err = mirror.PushBlob(launchtest.Repository, v.Config())
	require.NoError(w.t, err)
	stream := v.Open(w.t.Context(), new(registry.Client).Source(v.Reference()), []int{0, 1, 2})
	for range v.Layers() {
		layer, err := stream.Next()
		require.NoError(w.t, err)
		data, err := io.ReadAll(layer)
		require.NoError(w.t, err)
		_, err = mirror.PushBlob(launchtest.Repository, data)
		require.NoError(w.t, err)
	}
	require.NoError(w.t, stream.Close())
	for _, f := range s.Mirror.Fault {
		mirror.Fail(launchtest.RegistryFault{Kind: launchtest.RegistryFaultKind(f.Kind), On: launchtest.RequestKind(f.On), Digest: w.target(f.Digest),
			Status: f.Status, Times: -1})
	}
	w.names["@mirror@"] = mirror.Host()
}

func (w *world) plantFiles(s seed) {
	require.NoError(w.t, w.Configure(w.fill(s.Config), w.fill(s.Node)))
	for name, text := range s.Files {
		w.write(name, text)
	}
	for _, name := range s.Missing {
		require.NoError(w.t, os.RemoveAll(w.path(name)))
	}
	for _, name := range s.Folders {
		require.NoError(w.t, os.MkdirAll(w.path(name), 0o755))
	}
	for name, target := range s.Links {
		require.NoError(w.t, os.Symlink(target, w.path(name)))
	}
}

func (w *world) plantAgent(s seed) {
	for _, e := range s.Agent.Event {
		payload := []byte(e.Payload)
		if h, err := digest.Parse(w.fill(e.Payload)); err == nil {
			payload = h[:]
		}
		w.Agent.Emit(e.Name, payload)
	}
	if s.Agent.Poisoned {
		w.Agent.Fail(launchtest.AgentFault{Kind: launchtest.EmitPoisons})
		request, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "http://agent/EmitEvent", strings.NewReader(`{"event":"mpc-image-digest","payload":"00"}`))
		require.NoError(w.t, err)
		request.Header.Set("Content-Type", "application/json")
		answer, err := unixhttp.Client(w.AgentSocket, false).Do(request)
		require.NoError(w.t, err)
		require.NoError(w.t, answer.Body.Close())
	}
	for _, f := range s.Agent.Fault {
		times := f.Times
		if times == 0 {
			times = -1
		}
		w.Agent.Fail(launchtest.AgentFault{Kind: launchtest.AgentFaultKind(f.Kind), Match: f.Match, Times: times})
	}
	if s.Agent.Down {
		require.NoError(w.t, w.Agent.Stop())
	}
}

func (w *world) plantEngine(s seed) {
	if s.Engine.Loaded {
		w.load()
	}
	if len(s.Engine.Container) > 0 {
		layers, err := launchtest.RandomLayers(99, 100)
		require.NoError(w.t, err)
		img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers, Config: v1.Config{Cmd: []string{"sleep"}}})
		require.NoError(w.t, err)
		_, err = w.Engine.AddImage(img, "old:1")
		require.NoError(w.t, err)
	}
	for _, c := range s.Engine.Container {
		var binds []string
		for _, b := range c.Binds {
			binds = append(binds, w.fill(b))
		}
		name := strings.ReplaceAll(w.fill(c.Name), "@id@", "unnamed")
		_, err := w.Engine.Call(http.MethodPost, "/containers/create?name="+name, map[string]any{
			"Image": "old:1", "Labels": c.Labels, "HostConfig": map[string]any{"Binds": binds, "RestartPolicy": map[string]string{"Name": c.Restart}},
		})
		require.NoError(w.t, err)
		if c.Ended {
			w.engine(http.MethodPost, "/containers/"+name+"/start", nil)
			w.engine(http.MethodPost, "/containers/"+name+"/stop", nil)
		}
		if strings.Contains(c.Name, "@id@") {
			all := w.Engine.Containers()
			w.engine(http.MethodPost, "/containers/"+name+"/rename?name="+strings.ReplaceAll(w.fill(c.Name), "@id@", all[len(all)-1].ID[:12]), nil)
		}
		if c.Start {
			_, err := w.Engine.Call(http.MethodPost, "/containers/"+c.Name+"/start", nil)
			require.NoError(w.t, err)
		}
	}
	if s.Engine.NoVolume {
		_, err := w.Engine.Call(http.MethodDelete, "/volumes/mpc-data", nil)
		require.NoError(w.t, err)
	}
	for _, f := range s.Engine.Fault {
		fault := launchtest.EngineFault{Match: f.Match, Times: -1, Status: f.Status, Message: f.Message}
		if f.Old != "" {
			fault.Edit = func(body []byte) []byte { return bytes.ReplaceAll(body, []byte(w.fill(f.Old)), []byte(w.fill(f.New))) }
		}
		w.Engine.Fail(fault)
	}
	if s.Engine.Down {
		require.NoError(w.t, w.Engine.Stop(true))
	}
}

// load puts the first image into the engine, as an earlier boot did.
func (w *world) load() {
	layers, err := launchtest.RandomLayers(1, 50_000, 20_000, 100) // those of the machine's first image
	require.NoError(w.t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(w.t, err)
	h, err := img.Digest()
	require.NoError(w.t, err)
	require.Equal(w.t, w.Digests[0].String(), h.String())
	_, err = w.Engine.AddImage(img, "")
	require.NoError(w.t, err)
}

// keep puts the first image's manifest and config where an earlier boot kept them.
func (w *world) keep() {
	data, err := json.Marshal(w.resolve(w.Digests[0]).Kept())
	require.NoError(w.t, err)
	w.write("shared/launcher/image-"+w.Digests[0].Hex()+".json", string(data))
}

func (w *world) plantSettings(s seed) {
	override := func(to *string, value string) {
		if value != "" {
			*to = w.fill(value)
		}
	}
	override((*string)(&w.settings.Platform), s.Settings.Platform)
	override(&w.settings.ConfigFile, s.Settings.Config)
	override(&w.settings.SharedDir, s.Settings.Shared)
	override(&w.settings.AgentSocket, s.Settings.Socket)
	override(&w.settings.DockerHost, s.Settings.Host)
	override(&w.settings.Report, s.Settings.Report)
	if s.Settings.Compose == "none" {
		w.settings.Compose = "/nonexistent/compose"
	} else if s.Settings.Compose != "" {
		w.settings.Compose += " " + s.Settings.Compose
	}
	if s.Settings.AppCompose != "" {
		w.settings.AppCompose = w.path(s.Settings.AppCompose)
	}
	w.settings.Insecure, w.settings.Warnings = s.Settings.Insecure, s.Settings.Warnings
	for _, m := range s.Settings.Mistakes {
		w.settings.Mistakes = append(w.settings.Mistakes, fmt.Errorf("%s", m))
	}
	for _, g := range s.Settings.Skip {
		w.settings.Skip = append(w.settings.Skip, preflight.Group(g))
	}
	if s.Settings.Unsupervised {
		w.settings.Supervise = admission.SuperviseOff
	}
	if s.Settings.Fallback {
		w.settings.FallbackAfter = 30 * time.Minute
	}
	w.settings.Offline, w.settings.Deep = s.Settings.Offline, s.Settings.Deep
	if s.Settings.NoDefault {
		w.settings.DefaultDigest = digest.Digest{}
	} else if s.Settings.Default != "" {
		w.settings.DefaultDigest = w.hash(s.Settings.Default)
	}
	if !s.Settings.Now.IsZero() {
		w.settings.Now = func() time.Time { return s.Settings.Now }
	}
	if s.Settings.Free != 0 {
		w.settings.Free = func(string) (int64, error) { return s.Settings.Free, nil }
	}
}

// run checks the machine, and asserts that nothing came of it.
func (w *world) run() *preflight.Report {
	w.t.Helper()
	w.before, w.asked = w.Effects.Effects(), len(w.Engine.Requests())
	loads, emits, bodies := w.Engine.Loads(), w.Agent.Emits(), len(w.Registry.Requests())
	files := w.tree()
	report, err := preflight.Run(w.t.Context(), w.settings)
	require.NoError(w.t, err)
	assert.Equal(w.t, w.before, w.Effects.Effects(), "it changed something")
	assert.Equal(w.t, loads, w.Engine.Loads(), "loads")
	assert.Equal(w.t, emits, w.Agent.Emits(), "events")
	assert.Equal(w.t, files, w.tree(), "files")
	for _, request := range w.Engine.Requests()[w.asked:] {
		assert.True(w.t, strings.HasPrefix(request, "GET "), "%s", request)
	}
	for _, request := range w.Registry.Requests()[bodies:] {
		if !w.settings.Deep && (request.Kind == launchtest.RequestBlob || request.Kind == launchtest.RequestStorage) && w.isLayer(request.Path) {
			asked := request.Method == http.MethodHead || request.Range == "bytes=0-0"
			assert.True(w.t, asked, "the body of a layer: %s %s %s", request.Method, request.Path, request.Range)
		}
	}
	assert.Empty(w.t, w.Unexpected(), "requests that a double doesn't know")
	return report
}

// isLayer reports whether a blob's path is that of anything but a config of the machine's images.
func (w *world) isLayer(path string) bool {
	for name, value := range w.names {
		if strings.HasPrefix(name, "@config") && strings.HasSuffix(path, value) {
			return false
		}
	}
	return true
}

// tree lists the files that a launcher could have changed.
func (w *world) tree() string {
	var b strings.Builder
	for _, root := range []string{w.SharedDir, filepath.Dir(w.ConfigFile)} {
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return nil // what isn't there can't have changed
			}
			if info, err := d.Info(); err == nil && !d.IsDir() {
				fmt.Fprintln(&b, path, info.Size(), info.ModTime().UnixNano(), info.Mode())
			}
			return nil
		})
	}
	return b.String()
}

// codes returns what was found but notes, each code once, sorted.
func codes(r *preflight.Report) []string {
	var found []string
	for _, c := range r.Checks {
		for _, f := range c.Findings {
			if f.Severity != preflight.Note && !slices.Contains(found, string(f.Code)) {
				found = append(found, string(f.Code))
			}
		}
	}
	slices.Sort(found)
	return found
}

// noted reports whether a note with the code was found.
func noted(r *preflight.Report, code preflight.Code) bool {
	return slices.ContainsFunc(r.Checks, func(c preflight.Result) bool {
		return slices.ContainsFunc(c.Findings, func(f preflight.Finding) bool { return f.Code == code && f.Severity == preflight.Note })
	})
}

// result returns what a check came to.
func result(t *testing.T, r *preflight.Report, check string) preflight.Result {
	t.Helper()
	i := slices.IndexFunc(r.Checks, func(c preflight.Result) bool { return c.Check == check })
	require.GreaterOrEqual(t, i, 0, check)
	return r.Checks[i]
}

// TestSeeds: each seed is found with its code, by the check whose folder it is in, and nothing else is.
func TestSeeds(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob(filepath.Join(seeds, "*", "*.toml"))
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		folder := filepath.Base(filepath.Dir(path))
		t.Run(folder+"/"+strings.TrimSuffix(filepath.Base(path), ".toml"), func(t *testing.T) {
			t.Parallel()
			s := readSeed(t, path)
			require.NotEmpty(t, s.What)
			report := plant(t, s).run()
			var plain []string
			for _, code := range s.Expect {
				if code, isNote := strings.CutSuffix(code, " note"); isNote {
					assert.True(t, noted(report, preflight.Code(code)), "no note %s", code)
				} else {
					plain = append(plain, code)
				}
			}
			slices.Sort(plain)
			assert.Equal(t, plain, codes(report), "%s: %+v", s.What, report.Checks)
			assert.Equal(t, s.Exit, report.ExitCode, "%s: %s", s.What, report.Summary)
			i := slices.IndexFunc(report.Checks, func(c preflight.Result) bool {
				return strings.ReplaceAll(c.Check, " ", "-") == folder
			})
			require.GreaterOrEqual(t, i, 0, "no check is called %s", folder)
			assert.NotEmpty(t, report.Checks[i].Findings, "another check found it: %+v", report.Checks)
		})
	}
}
