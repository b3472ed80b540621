//go:build e2e

package main_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/fleet"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/launchtest/kernel"
	"tee-launcher/pkg/state"
)

const (
	maxLauncherMemory = 64 << 20
	maxTmp            = 1 << 20
	maxImage          = 45_000_000
)

// deployment is an example's compose file, as people deploy it, with the launcher's image and the default digest filled in.
func deployment(t *testing.T, name, image string, fallback fmt.Stringer) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", name))
	require.NoError(t, err)
	filled := strings.NewReplacer(
		"nearone/mpc-launcher@sha256:<digest of the launcher's image>", image,
		"sha256:<64 hex>", fallback.String(),
		"./user_config.toml:", "/tapp/user_config:",
	).Replace(string(text))
	require.NotContains(t, filled, "<")
	return filled
}

// TestE2EDropIn runs the image as `make image` builds it, with nothing but the compose files of the examples, on an engine with a bridge of its own.
// The launcher has only its own loopback, and there a registry.
func TestE2EDropIn(t *testing.T) {
	t.Parallel()
	images := t.TempDir()
	build := exec.Command("go", "run", "../../hack/image", "-root", "../..", "-out", filepath.Join(images, "launcher"), "-version", "e2e", "-arch", runtime.GOARCH)
	build.Stderr = os.Stderr
	out, err := build.Output()
	require.NoError(t, err)
	launcher, err := v1.NewHash(strings.TrimSpace(string(out)))
	require.NoError(t, err, "the digest on stdout")

	// Large enough that it would show in memory and in /tmp.
	node, err := launchtest.NodeImage(t.Context(), "go")
	require.NoError(t, err)
	for seed := range uint64(2) {
		content, err := launchtest.RandomLayer(seed+100, 64<<20)
		require.NoError(t, err)
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
			tarball.WithCompressedCaching, tarball.WithCompressionLevel(1))
		require.NoError(t, err)
		node, err = mutate.AppendLayers(node, layer)
		require.NoError(t, err)
	}
	upgrade, err := mutate.Config(node, v1.Config{Labels: map[string]string{"release": "2"}})
	require.NoError(t, err)
	digests := layoutOf(t, filepath.Join(images, "node"), node, upgrade)

	binary := filepath.Join(t.TempDir(), "registry")
	program := exec.Command("go", "build", "-trimpath", "-o", binary, "../../hack/registry")
	program.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err = program.CombinedOutput()
	require.NoError(t, err, "%s", out)
	content, err := os.ReadFile(binary)
	require.NoError(t, err)
	layer, err := launchtest.FileLayer(launchtest.File{Path: "registry", Data: content, Mode: 0o755})
	require.NoError(t, err)
	registry, err := launchtest.Image(launchtest.ImageOptions{Config: v1.Config{Entrypoint: []string{"/registry"}}, Layers: [][]byte{layer}})
	require.NoError(t, err)

	t.Run("the image", func(t *testing.T) {
		var manifest v1.Manifest
		data, err := os.ReadFile(filepath.Join(images, "launcher", "image", "blobs", "sha256", launcher.Hex))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &manifest))
		size := manifest.Config.Size
		var binary []byte
		for _, l := range manifest.Layers {
			size += l.Size
			layer := filepath.Join(images, "launcher", "image", "blobs", "sha256", l.Digest.Hex)
			if content := fileIn(t, layer, "usr/local/bin/launcher"); content != nil {
				binary = content
			}
		}
		assert.LessOrEqual(t, size, int64(maxImage), "bytes compressed")
		require.NotEmpty(t, binary, "the launcher")
		assert.LessOrEqual(t, len(binary), maxLauncher, "bytes of the launcher")
		info, err := buildinfo.Read(bytes.NewReader(binary))
		require.NoError(t, err)
		var linked []string
		for _, m := range info.Deps {
			linked = append(linked, m.Path)
		}
		known, err := os.ReadFile(filepath.Join("..", "..", "testdata", "modules.txt"))
		require.NoError(t, err)
		assert.ElementsMatch(t, strings.Fields(string(known)), linked, "what is linked into it")
	})
	t.Run("the list of what is in it", func(t *testing.T) {
		var lists []string
		for range 2 {
			out, err := exec.Command("go", "run", "../../hack/sbom", "-image", filepath.Join(images, "launcher", "image")).Output()
			require.NoError(t, err)
			lists = append(lists, string(out))
		}
		assert.Equal(t, lists[0], lists[1])
		var list struct {
			BOMFormat string
			Metadata  struct {
				Component struct{ Hashes []struct{ Content string } }
			}
			Components []struct {
				Type, Name string
				Licenses   []struct{ Expression string }
			}
		}
		require.NoError(t, json.Unmarshal([]byte(lists[0]), &list))
		assert.Equal(t, "CycloneDX", list.BOMFormat)
		require.Len(t, list.Metadata.Component.Hashes, 1)
		assert.Equal(t, launcher.Hex, list.Metadata.Component.Hashes[0].Content)
		var files, modules []string
		for _, c := range list.Components {
			if c.Type == "library" {
				modules = append(modules, c.Name)
				if assert.Len(t, c.Licenses, 1, c.Name) {
					assert.NotEmpty(t, c.Licenses[0].Expression, c.Name)
				}
			} else {
				files = append(files, c.Name)
			}
		}
		assert.Equal(t, []string{"/etc/ssl/certs/ca-certificates.crt", "/usr/local/bin/docker-compose", "/usr/local/bin/launcher",
			"/usr/share/doc/launcher/NOTICES"}, files, "and nothing else")
		linked, err := os.ReadFile(filepath.Join("..", "..", "testdata", "modules.txt"))
		require.NoError(t, err)
		assert.Subset(t, modules, append(strings.Fields(string(linked)), "std", "github.com/docker/compose/v5", "golang.org/x/crypto/x509roots/fallback"))
	})
	t.Run("TEE", func(t *testing.T) {
		t.Parallel()
		dropInTEE(t, newDropIn(t, images, registry, launcher, digests, "TEE"), "/var/run/dstack.sock")
	})
	// Only the left sides of the text's mounts are the host's to choose.
	t.Run("TEE, the socket elsewhere on the host", func(t *testing.T) {
		t.Parallel()
		dropInTEE(t, newDropIn(t, images, registry, launcher, digests, "TEE"), "/var/run/elsewhere/agent.sock")
	})
	t.Run("TEE, on dstack 0.6", func(t *testing.T) {
		t.Parallel()
		k, err := kernel.New() // before the engine, so that it is there in the engine's namespace, too
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, k.Close()) })
		dropInNative(t, newDropIn(t, images, registry, launcher, digests, "TEE"), k)
	})
	t.Run("NONTEE", func(t *testing.T) {
		t.Parallel()
		dropInOutside(t, newDropIn(t, images, registry, launcher, digests, "NONTEE"))
	})
}

func dropInTEE(t *testing.T, d *dropIn, socket string) {
	m := d.machine
	text := strings.Replace(deployment(t, "compose.yaml", d.image, m.digests[0]), "- /var/run/dstack.sock:", "- "+socket+":", 1)
	// Where anything is another than in the example, health is looked at more often, too.
	often := socket != compose.AgentSocket
	if often {
		text = strings.Replace(text, "container_name: launcher\n", "container_name: launcher\n    healthcheck: {interval: 1s}\n", 1)
		require.Contains(t, text, "healthcheck")
	}
	d.listen(socket)
	d.up(text)
	first := d.settle()
	m.measured(m.digests[0])
	assert.Equal(t, 1, m.agent.Emits())
	c := m.workload()
	assert.Equal(t, "running", c.Status)
	assert.Equal(t, first.Image.ImageID, c.Image)
	assert.Equal(t, "no", c.RestartPolicy)
	config, err := os.ReadFile(filepath.Join(m.shared, compose.NodeConfig))
	require.NoError(t, err)
	assert.Contains(t, string(config), m.digests[0].String())
	assert.Contains(t, string(config), "type = 'dstack'")
	m.says("start 1, ")
	for _, mount := range c.Mounts {
		if mount.Destination == compose.AgentSocket {
			assert.Equal(t, socket, mount.Source, "the workload has the agent that the launcher has")
		}
	}
	d.answers(m.port)
	self, err := m.engine.Container(t.Context(), "launcher")
	require.NoError(t, err)
	assert.Equal(t, "running", self.Status, "it stays")
	d.sparing()
	t.Run("seen from outside", func(t *testing.T) {
		assert.Contains(t, d.docker("inspect", "--format", "{{json .Config.Healthcheck.Test}}", "launcher"), `"status","--self"`)
		assert.Regexp(t, `^0 +self +supervise .* said .* e2e$`, d.docker("exec", "launcher", "/usr/local/bin/launcher", "status", "--self"))
		if often {
			eventually(t, "the engine finds it healthy", func() bool {
				return d.docker("inspect", "--format", "{{.State.Health.Status}}", "launcher") == "healthy"
			})
		}
		var stdout, stderr bytes.Buffer
		code := main.Run(t.Context(), []string{"status", "-", "-o", "json"}, nil, strings.NewReader(d.docker("logs", "launcher")), &stdout, &stderr)
		require.Zero(t, code, "%s", &stderr)
		var seen []fleet.Answer
		require.NoError(t, json.Unmarshal(stdout.Bytes(), &seen))
		assert.Equal(t, m.digests[0].String(), seen[0].Status.Digest.String())
		metrics, err := os.ReadFile(filepath.Join(m.shared, "launcher", "metrics.prom"))
		require.NoError(t, err)
		promtool(t, string(metrics), "check", "metrics")
	})

	t.Run("a new boot", func(t *testing.T) {
		d.engine.cut() // without a chance to end anything
		d.reboot()
		d.up(text)
		d.settle()
		m.measured(m.digests[0])
		assert.Equal(t, 2, m.agent.Emits(), "once for each boot")
		again := m.workload()
		assert.Equal(t, "running", again.Status)
		assert.NotEqual(t, c.ID, again.ID, "the container of the boot before")
		m.says("start 2, ") // or the data volume is not the one of the boot before
		assert.Equal(t, 2, m.starts(d.engine), "something ran unmeasured")
		d.sparing()
	})
	t.Run("an upgrade", func(t *testing.T) {
		d.engine.stop()
		d.reboot()
		m.approve(m.digests[1], m.digests[0])
		d.up(text)
		upgraded := d.settle()
		m.measured(m.digests[1])
		assert.Equal(t, 3, m.agent.Emits())
		assert.Equal(t, "newest approved", upgraded.Image.Reason)
		assert.Equal(t, upgraded.Image.ImageID, m.workload().Image)
		assert.NotEqual(t, first.Image.ImageID, m.workload().Image)
		m.says("start 3, ")
		m.says(m.digests[1].String())
		d.sparing()
	})
	t.Run("an orderly end", func(t *testing.T) {
		d.docker("stop", "-t", strconv.Itoa(int(patience.Seconds())), "launcher")
		self, err := m.engine.Container(t.Context(), "launcher")
		require.NoError(t, err)
		assert.Zero(t, self.ExitCode)
		assert.False(t, m.workload().Live(), "it ends with the launcher")
	})
}

// dropInNative runs the launcher with exactly the two further mounts of its example, read-only and
// without new privileges.
func dropInNative(t *testing.T, d *dropIn, k *kernel.Kernel) {
	m := d.machine
	const registers = "/sys/devices/virtual/misc/tdx_guest/measurements:"
	text := deployment(t, "compose-native.yaml", d.image, m.digests[0])
	require.Contains(t, text, "- "+registers)
	text = strings.Replace(text, registers, k.Dir()+":", 1) // the host's side alone: no kernel lets a test have that
	runtime := filepath.Join(d.engine.dir, "run/log/dstack")
	require.NoError(t, os.MkdirAll(runtime, 0o700))
	d.listenAs("/var/run/dstack.sock", launchtest.AgentOptions{Release: "0.6.0", Register: k, RuntimeDir: runtime})
	extended := func(want int) {
		t.Helper()
		got, refused := k.Writes()
		assert.Equal(t, [2]int{want, 0}, [2]int{got, refused})
	}
	ends := func(text, hint string) {
		t.Helper()
		d.upAlone(text)
		eventually(t, "it refuses", func() bool {
			self, err := m.engine.Container(t.Context(), "launcher")
			return err == nil && !self.Live() && self.ExitCode == 8
		})
		d.usage.stop()
		assert.Contains(t, d.docker("logs", "launcher"), hint)
		m.unmeasured()
		extended(0)
		d.docker("rm", "-f", "launcher")
	}
	ends(strings.Replace(text, ":/run/tsm", ":/run/tsm:ro", 1), "hint: have this line under volumes in the launcher's compose file, without :ro: - "+registers+"/run/tsm")
	ends(strings.Replace(text, ":/run/log/dstack", ":/run/log/dstack:ro", 1), "without :ro: - /run/log/dstack:/run/log/dstack")
	ends(strings.Replace(text, "LAUNCHER_MEASURE=native, ", "", 1), "LAUNCHER_MEASURE=native")

	d.up(text)
	first := d.settle()
	m.measured(m.digests[0])
	extended(1)
	assert.Zero(t, m.agent.Emits())
	require.NotNil(t, first.Measurement)
	assert.Equal(t, m.agent.RTMR3(), first.Measurement.RTMR3)
	assert.Equal(t, "running", m.workload().Status)
	d.sparing()
	for _, mount := range m.workload().Mounts {
		assert.NotContains(t, mount.Source, "log/dstack", "the workload can't extend")
		assert.NotContains(t, mount.Source, k.Dir())
	}

	d.engine.cut()
	d.reboot()
	d.up(text)
	d.settle()
	m.measured(m.digests[0])
	extended(1) // of this boot
}

func dropInOutside(t *testing.T, d *dropIn) {
	m := d.machine
	text := deployment(t, "compose-nontee.yaml", d.image, m.digests[0])
	d.listen("/var/run/dstack.sock")
	d.up(text)
	report := d.settle()
	assert.Empty(t, m.agent.Requests(), "there is no agent outside a CVM")
	require.NotNil(t, report.ExitCode)
	assert.Zero(t, *report.ExitCode)
	c := m.workload()
	assert.Equal(t, "running", c.Status)
	assert.Equal(t, report.Image.ImageID, c.Image)
	assert.Equal(t, "on-failure", c.RestartPolicy)
	config, err := os.ReadFile(filepath.Join(m.shared, compose.NodeConfig))
	require.NoError(t, err)
	assert.Contains(t, string(config), "type = 'local'")
	d.answers(m.port)
	eventually(t, "it ends when all is done", func() bool {
		self, err := m.engine.Container(t.Context(), "launcher")
		return err == nil && !self.Live() && self.ExitCode == 0
	})
	d.sparing()

	t.Run("the archive", func(t *testing.T) {
		d.docker("rm", "-f", "launcher")
		d.docker("image", "prune", "-af")
		d.docker("load", "-i", filepath.Join(d.engine.dir, "images", "launcher", "image.tar"))
		assert.Contains(t, d.docker("run", "--rm", "--read-only", "tee-launcher:e2e", "version"), "launcher e2e\n")
		var config v1.Manifest
		data, err := os.ReadFile(filepath.Join(d.engine.dir, "images", "launcher", "image", "blobs", "sha256", d.image[strings.LastIndex(d.image, ":")+1:]))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &config))
		id := d.docker("image", "inspect", "--format", "{{.Id}}", "tee-launcher:e2e")
		assert.Contains(t, []string{config.Config.Digest.String(), d.image[strings.LastIndex(d.image, "@")+1:]}, id, "the image's own ID on a classic or a containerd store")
	})
}

// dropIn is a machine on which the launcher is a container.
type dropIn struct {
	*machine
	engine *ownEngine
	image  string // the launcher's, by digest
	usage  *usage
	began  time.Time
}

// registryImage is a whole name: a containerd store adds nothing to the one in an archive, and finds none
// that is shorter.
const registryImage = "127.0.0.1:5000/registry:e2e"

func newDropIn(t *testing.T, images string, registry v1.Image, launcher v1.Hash, digests []v1.Hash, platform string) *dropIn {
	t.Helper()
	e := newOwnEngine(t, true)
	m := &machine{t: t, platform: platform, host: e.host(), compose: os.Getenv("LAUNCHER_E2E_COMPOSE"), digests: digests, port: 11780}
	require.NotEmpty(t, m.compose, "LAUNCHER_E2E_COMPOSE is not set: run make e2e")
	d := &dropIn{machine: m, engine: e, image: "127.0.0.1:5000/launcher@" + launcher.String()}
	m.shared = filepath.Join(e.dir, "data/volumes", compose.SharedVolume, "_data")
	var err error
	m.engine, err = docker.New(m.host)
	require.NoError(t, err)
	m.config = filepath.Join(e.dir, "tapp/user_config")
	text := fmt.Sprintf("[launcher_config]\nimage = \"127.0.0.1:5000/nearone/mpc-node:main\"\n"+
		// The registry listens only once the launcher's network is there.
		"port_mappings = [{ host = %d, container = 11780 }]\npull_max_retries = 1000\npull_max_delay_secs = 2\n\n"+
		"[mpc_node_config]\nhome_dir = \"/data\"\nlisten = 11780\n", m.port)
	require.NoError(t, os.WriteFile(m.config, []byte(text), 0o644))

	// Copied, because the engine sees below its own directory what is there in every namespace.
	require.NoError(t, os.CopyFS(filepath.Join(e.dir, "images"), os.DirFS(images)))
	archive := filepath.Join(e.dir, "registry.tar")
	f, err := os.Create(archive)
	require.NoError(t, err)
	require.NoError(t, launchtest.WriteLoadTar(f, registry, registryImage))
	require.NoError(t, f.Close())
	d.docker("load", "-i", archive)
	// The engine pulls the launcher by its digest, as it does in production.
	d.serve("host", "launcher=/images/launcher/image")
	d.answers(5000)
	d.docker("pull", d.image)
	d.docker("rm", "-f", "registry")
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command("docker", "-H", m.host, "logs", "launcher").CombinedOutput()
			t.Logf("the launcher's log:\n%s", out)
		}
	})
	return d
}

// listen starts the agent, on a socket below the machine's /var/run.
func (d *dropIn) listen(socket string) {
	d.t.Helper()
	d.listenAs(socket, launchtest.AgentOptions{})
}

func (d *dropIn) listenAs(socket string, o launchtest.AgentOptions) {
	d.t.Helper()
	path := filepath.Join(d.engine.dir, "run", strings.TrimPrefix(socket, "/var/run/"))
	require.NoError(d.t, os.MkdirAll(filepath.Dir(path), 0o755))
	var err error
	d.agent, err = launchtest.NewAgent(path, o)
	require.NoError(d.t, err)
	d.t.Cleanup(func() {
		assert.Empty(d.t, d.agent.Unexpected(), "requests that the agent doesn't know")
		d.agent.Close()
	})
}

func (d *dropIn) docker(args ...string) string {
	d.t.Helper()
	out, err := exec.Command("docker", append([]string{"-H", d.host}, args...)...).CombinedOutput()
	require.NoError(d.t, err, "docker %v: %s", args, out)
	return strings.TrimSpace(string(out))
}

// serve starts the registry in a network.
func (d *dropIn) serve(network, images string) {
	d.t.Helper()
	_ = exec.Command("docker", "-H", d.host, "rm", "-f", "registry").Run()
	d.docker("run", "-d", "--name", "registry", "--network", network, "-v", filepath.Join(d.engine.dir, "images")+":/images:ro",
		registryImage, "127.0.0.1:5000", images)
}

// up does at a boot what dstack does, with this file.
func (d *dropIn) up(text string) {
	d.t.Helper()
	d.upAlone(text)
	d.serve("container:launcher", "nearone/mpc-node=/images/node")
	d.docker("image", "prune", "-af")
	d.docker("volume", "prune", "-f")
}

// upAlone starts a launcher that comes to no pull.
func (d *dropIn) upAlone(text string) {
	d.t.Helper()
	dir := filepath.Join(d.engine.dir, "dstack")
	require.NoError(d.t, os.MkdirAll(dir, 0o755))
	file := filepath.Join(dir, "docker-compose.yaml")
	require.NoError(d.t, os.WriteFile(file, []byte(text), 0o644))
	d.began = time.Now().Truncate(time.Millisecond)
	d.usage = watch(d.engine.name())
	command := append(strings.Fields(d.compose), "-f", file, "up", "-d")
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "DOCKER_HOST=" + d.host}
	out, err := cmd.CombinedOutput()
	require.NoError(d.t, err, "%s", out)
}

// reboot brings the engine up again, in a virtual machine that has just booted.
func (d *dropIn) reboot() {
	d.agent.Reboot()
	d.engine.start()
}

// settle waits until the launcher supervises, or has ended.
func (d *dropIn) settle() launch.Report {
	d.t.Helper()
	defer d.usage.stop()
	var report launch.Report
	eventually(d.t, "the launcher supervises or has ended", func() bool {
		report = launch.Report{}
		data, err := os.ReadFile(filepath.Join(d.shared, state.Name, "report.json"))
		if err != nil || json.Unmarshal(data, &report) != nil || report.StartedAt.Before(d.began) {
			return false
		}
		return report.ExitCode != nil || d.platform == "TEE" && outcome{report: report}.status("supervise") == "running"
	})
	if d.platform == "TEE" && report.ExitCode != nil {
		require.Fail(d.t, "the launcher ended", "with %d; its log is below", *report.ExitCode)
	}
	return report
}

// answers requires that something listens on a port of the machine.
func (d *dropIn) answers(port int) {
	d.t.Helper()
	eventually(d.t, fmt.Sprintf("something listens on port %d", port), func() bool {
		return inNetwork(d.engine.init, func() error {
			conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), patience)
			if err == nil {
				conn.Close()
			}
			return err
		}) == nil
	})
}

// sparing holds what the launcher used since up to its bounds.
func (d *dropIn) sparing() {
	d.t.Helper()
	u := d.usage
	u.stop()
	require.Positive(d.t, u.samples, "nothing was measured")
	own := u.peaks["launcher"]
	var others int64
	for name, peak := range u.peaks {
		if name != "launcher" {
			others += peak
		}
	}
	d.t.Logf("peak memory: container %.1f MiB (page cache included), launcher %.1f MiB, Compose %.1f MiB; /tmp %d bytes; %d samples; %v",
		mib(u.container), mib(own), mib(others), u.tmp, u.samples, slices.Sorted(maps.Keys(u.peaks)))
	require.Positive(d.t, own)
	require.Positive(d.t, u.container)
	assert.LessOrEqual(d.t, own, int64(maxLauncherMemory), "memory of the launcher")
	assert.LessOrEqual(d.t, u.container, maxLauncherMemory+others, "memory of the container without Compose")
	assert.Less(d.t, u.tmp, int64(maxTmp), "bytes in /tmp")
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// usage is what the launcher's container used at most. Others of the engine aren't looked at.
type usage struct {
	mu        sync.Mutex
	ended     bool
	done      chan struct{}
	samples   int
	container int64            // its control group's own peak, which misses nothing
	peaks     map[string]int64 // resident, by program
	tmp       int64
}

func watch(group string) *usage {
	u := &usage{done: make(chan struct{}), peaks: map[string]int64{}}
	go func() {
		defer close(u.done)
		again := time.NewTicker(5 * time.Millisecond)
		defer again.Stop()
		for !u.over() {
			u.sample(group)
			<-again.C
		}
	}()
	return u
}

func (u *usage) over() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ended
}

func (u *usage) stop() {
	u.mu.Lock()
	u.ended = true
	u.mu.Unlock()
	<-u.done
}

func (u *usage) sample(group string) {
	for _, pattern := range []string{"/sys/fs/cgroup/" + group + "/*", "/sys/fs/cgroup/memory/" + group + "/*"} {
		groups, _ := filepath.Glob(pattern)
		for _, g := range groups {
			data, err := os.ReadFile(filepath.Join(g, "cgroup.procs"))
			if err != nil {
				continue
			}
			peaks := map[string]int64{}
			for _, pid := range strings.Fields(string(data)) {
				name, resident := processPeak(pid)
				peaks[name] = max(peaks[name], resident)
				var fs syscall.Statfs_t
				if name == "launcher" && syscall.Statfs("/proc/"+pid+"/root/tmp", &fs) == nil {
					u.tmp = max(u.tmp, int64(fs.Blocks-fs.Bfree)*fs.Bsize)
				}
			}
			if peaks["launcher"] == 0 {
				continue // another container, or none yet
			}
			u.samples++
			for name, peak := range peaks {
				u.peaks[name] = max(u.peaks[name], peak)
			}
			for _, file := range []string{"memory.peak", "memory.max_usage_in_bytes"} {
				if data, err := os.ReadFile(filepath.Join(g, file)); err == nil {
					n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
					u.container = max(u.container, n)
				}
			}
		}
	}
}

// processPeak returns the name of a process and its resident memory at its highest.
func processPeak(pid string) (name string, resident int64) {
	data, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return "", 0
	}
	for line := range strings.Lines(string(data)) {
		switch fields := strings.Fields(line); fields[0] {
		case "Name:":
			name = fields[1]
		case "VmHWM:":
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			resident = kib << 10
		}
	}
	return name, resident
}

// fileIn returns the content of a file in a compressed layer, nil if it isn't there.
func fileIn(t *testing.T, layer, name string) []byte {
	t.Helper()
	f, err := os.Open(layer)
	require.NoError(t, err)
	defer f.Close()
	content, err := gzip.NewReader(f)
	require.NoError(t, err)
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		require.NoError(t, err)
		if header.Name == name {
			data, err := io.ReadAll(r)
			require.NoError(t, err)
			return data
		}
	}
}

// layoutOf writes images into one OCI layout and returns their digests.
func layoutOf(t *testing.T, dir string, images ...v1.Image) []v1.Hash {
	t.Helper()
	blobs := filepath.Join(dir, "blobs", "sha256")
	require.NoError(t, os.MkdirAll(blobs, 0o755))
	put := func(h v1.Hash, data []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(blobs, h.Hex), data, 0o644))
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	var digests []v1.Hash
	for _, img := range images {
		layers, err := img.Layers()
		require.NoError(t, err)
		for _, l := range layers {
			digest, err := l.Digest()
			require.NoError(t, err)
			r, err := l.Compressed()
			require.NoError(t, err)
			data, err := io.ReadAll(r)
			require.NoError(t, err)
			put(digest, data)
		}
		config, err := img.RawConfigFile()
		require.NoError(t, err)
		name, err := img.ConfigName()
		require.NoError(t, err)
		put(name, config)
		manifest, err := img.RawManifest()
		require.NoError(t, err)
		digest, err := img.Digest()
		require.NoError(t, err)
		put(digest, manifest)
		mediaType, err := img.MediaType()
		require.NoError(t, err)
		index.Manifests = append(index.Manifests, v1.Descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(manifest))})
		digests = append(digests, digest)
	}
	data, err := json.Marshal(index)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), data, 0o644))
	return digests
}
