//go:build e2e

package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

// machine is a virtual machine as far as the launcher sees it: a real engine and Compose, an agent,
// a registry, its files. Its names on the engine are the contract's, so there is one at a time on
// each.
type machine struct {
	t        *testing.T
	binary   string
	host     string
	relay    string // where the launcher takes the engine to be; empty: host
	compose  string
	engine   *docker.Engine
	agent    *launchtest.Agent
	registry *launchtest.Registry
	shared   string // the shared volume on this machine
	config   string
	socket   string
	platform string
	port     int
	node     string          // further lines for the node's table
	boots    string          // a file that stands for the kernel's name of the boot; empty: the kernel's own
	digests  []v1.Hash       // of the images in the registry, the oldest first
	original json.RawMessage // a container as it was made, where others are made after it
}

// patience bounds every wait for a fact. Nothing takes so long, even on a machine that is busy with
// other things.
const patience = 4 * time.Minute

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	bound := time.After(patience)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-look.C:
		case <-bound:
			require.Fail(t, "it doesn't come to this: "+what)
		}
	}
}

// alone waits until no other test is alone with the same thing, and returns what ends that.
func alone(t *testing.T, with string) (end func()) {
	t.Helper()
	lock, err := os.Create(filepath.Join(os.Getenv(commonDir), with+".lock"))
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	return func() { lock.Close() }
}

// built returns the path of the launcher, built once for all tests.
func built(t *testing.T) string {
	t.Helper()
	defer alone(t, "build")()
	path := filepath.Join(os.Getenv(commonDir), "launcher")
	if _, err := os.Stat(path); err != nil {
		out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return path
}

func newMachine(t *testing.T, platform string) *machine {
	t.Helper()
	host := os.Getenv("LAUNCHER_E2E_DOCKER_HOST")
	require.NotEmpty(t, host, "LAUNCHER_E2E_DOCKER_HOST is not set: run make e2e")
	t.Cleanup(alone(t, "engine"))
	return machineOn(t, platform, host)
}

// machineOn is a machine with another engine.
func machineOn(t *testing.T, platform, host string) *machine {
	t.Helper()
	m := &machine{t: t, platform: platform, host: host, compose: os.Getenv("LAUNCHER_E2E_COMPOSE")}
	require.NotEmpty(t, m.compose, "LAUNCHER_E2E_COMPOSE is not set: run make e2e")
	dir := t.TempDir()

	m.binary = built(t)

	var err error
	m.engine, err = docker.New(m.host)
	require.NoError(t, err)
	m.clear()
	t.Cleanup(m.clear)
	var volume struct{ Mountpoint string }
	m.call("POST", "/volumes/create", map[string]string{"Name": compose.SharedVolume}, &volume)
	m.shared = volume.Mountpoint

	sockets, err := os.MkdirTemp("", "e2e") // short: a socket's path has to fit into 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(sockets) })
	m.socket = filepath.Join(sockets, "dstack.sock")
	m.agent, err = launchtest.NewAgent(m.socket, launchtest.AgentOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.Empty(t, m.agent.Unexpected(), "requests that the agent doesn't know")
		m.agent.Close()
	})

	m.registry, err = launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { m.registry.Close() })
	node, err := launchtest.NodeImage(t.Context(), "go")
	require.NoError(t, err)
	upgrade, err := mutate.Config(node, v1.Config{Labels: map[string]string{"release": "2"}})
	require.NoError(t, err)
	for _, img := range []v1.Image{node, upgrade} {
		ref, err := m.registry.Push("nearone/mpc-node", img)
		require.NoError(t, err)
		digest, err := v1.NewHash(ref.DigestStr())
		require.NoError(t, err)
		m.digests = append(m.digests, digest)
	}

	m.port = freePort(t)
	m.config = filepath.Join(dir, "user_config")
	m.configure("")
	return m
}

// freePort returns a port that nobody listens on, and that no connection gets by chance until the
// workload has it.
func freePort(t *testing.T) int {
	for port := 20000; port < 32768; port++ {
		if l, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port)); err == nil {
			require.NoError(t, l.Close())
			return port
		}
	}
	require.Fail(t, "no port is free")
	return 0
}

func (m *machine) configure(launcherKeys string) {
	text := fmt.Sprintf("[launcher_config]\nimage = %q\nport_mappings = [{ host = %d, container = 11780 }]\n%s\n"+
		"[mpc_node_config]\nhome_dir = \"/data\"\nlisten = 11780\n%s\n",
		m.registry.Host()+"/nearone/mpc-node:main", m.port, launcherKeys, m.node)
	require.NoError(m.t, os.WriteFile(m.config, []byte(text), 0o600))
}

func (m *machine) approve(digests ...v1.Hash) {
	data, err := json.Marshal(map[string]any{"approved_hashes": digests})
	require.NoError(m.t, err)
	require.NoError(m.t, os.WriteFile(filepath.Join(m.shared, approval.File), data, 0o600))
}

// outcome is how a launcher ended, or that it supervises, which is as good as the end with 0 without supervision.
type outcome struct {
	code   exit.Code
	stays  bool
	stdout string
	stderr string
	report launch.Report
}

func (o outcome) status(step string) launch.Status {
	for _, s := range o.report.Steps {
		if s.Name == step {
			return s.Status
		}
	}
	return "no such step"
}

// process is a launcher that was started.
type process struct {
	m              *machine
	cmd            *exec.Cmd
	began          time.Time
	ended          chan struct{}
	stdout, stderr lockedBuffer
}

// lockedBuffer may be read while a process writes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start starts the launcher. It doesn't outlive the test.
func (m *machine) start(args ...string) *process {
	m.t.Helper()
	p := &process{m: m, began: time.Now().Truncate(time.Millisecond), ended: make(chan struct{}), cmd: exec.Command(m.binary, args...)}
	host := m.host
	if m.relay != "" {
		host = m.relay
	}
	if m.boots != "" {
		const script = `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
		p.cmd = exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, m.boots, m.binary}, args...)...)
	}
	p.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "PLATFORM=" + m.platform, "DOCKER_CONTENT_TRUST=1",
		"DEFAULT_IMAGE_DIGEST=" + m.digests[0].String(),
		"DOCKER_HOST=" + host, "LAUNCHER_COMPOSE=" + m.compose,
		"LAUNCHER_CONFIG=" + m.config, "LAUNCHER_SHARED_DIR=" + m.shared, "LAUNCHER_DSTACK_SOCKET=" + m.socket,
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	require.NoError(m.t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait()
	}()
	m.t.Cleanup(p.kill)
	return p
}

// report returns the launch report, if it is this run's.
func (p *process) report() (launch.Report, bool) {
	var report launch.Report
	data, err := os.ReadFile(filepath.Join(p.m.shared, state.Name, "report.json"))
	if err != nil || json.Unmarshal(data, &report) != nil || report.StartedAt.Before(p.began) {
		return launch.Report{}, false
	}
	return report, true
}

// waitsAfter is what the launcher says of an attempt after which it waits for the next one.
var waitsAfter = regexp.MustCompile(`the attempt failed, trying again" attempt=\d+ exit_code=(\d+)`)

// settle waits until the launcher supervises, waits to try again, or has ended.
func (p *process) settle() outcome {
	p.m.t.Helper()
	var o outcome
	p.until("the launcher supervises or ends", func() bool {
		ended := p.hasEnded() // before what it left is read
		report, ours := p.report()
		o = outcome{stdout: p.stdout.String(), stderr: p.stderr.String(), report: report}
		// A step that is skipped runs for a moment, too.
		o.stays = !ended && ours && o.status("supervise") == "running" &&
			strings.Contains(o.stderr, "supervising")
		if ended {
			o.code = exit.Code(p.cmd.ProcessState.ExitCode())
		}
		waits := waitsAfter.FindStringSubmatch(o.stderr)
		if waits != nil && !ended && !o.stays {
			code, err := strconv.Atoi(waits[1])
			require.NoError(p.m.t, err)
			o.code = exit.Code(code)
		}
		return ended || o.stays || waits != nil
	})
	return o
}

// until waits until something holds, and fails with the launcher's log.
func (p *process) until(what string, holds func() bool) {
	p.m.t.Helper()
	defer func() {
		if p.m.t.Failed() {
			p.m.t.Logf("the launcher's log:\n%s", &p.stderr)
		}
	}()
	eventually(p.m.t, what, holds)
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// says waits until the launcher's log has a text so many times.
func (p *process) says(text string, times int) {
	p.m.t.Helper()
	p.until(fmt.Sprintf("the launcher says %q, %d times", text, times), func() bool {
		return strings.Count(p.stderr.String(), text) >= times
	})
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// terminate has the launcher end in an orderly way.
func (p *process) terminate() outcome {
	p.m.t.Helper()
	require.NoError(p.m.t, p.cmd.Process.Signal(syscall.SIGTERM))
	p.until("the launcher ends", p.hasEnded)
	return p.settle()
}

// boot runs the launcher until it has ended or, killed then, supervises: the workload runs on.
func (m *machine) boot(args ...string) outcome {
	m.t.Helper()
	p := m.start(args...)
	defer p.kill()
	return p.settle()
}

// mustBoot is boot, and that it ended well.
func (m *machine) mustBoot(args ...string) outcome {
	m.t.Helper()
	o := m.boot(args...)
	require.Equal(m.t, exit.OK, o.code, "%s", o.stderr)
	if o.stays {
		assert.Nil(m.t, o.report.ExitCode)
		assert.Nil(m.t, o.report.FinishedAt)
		return o
	}
	require.NotNil(m.t, o.report.ExitCode)
	assert.Equal(m.t, exit.OK, *o.report.ExitCode)
	return o
}

// reboot is what a reboot of the virtual machine does: whatever runs is gone, and log and register are empty.
func (m *machine) reboot() {
	if c, err := m.engine.Container(m.t.Context(), compose.Name); err == nil && c.Live() {
		require.NoError(m.t, m.engine.Stop(m.t.Context(), c.ID, 5*time.Second))
	}
	m.agent.Reboot()
}

// measured requires that a verifier accepts the log for exactly this digest.
func (m *machine) measured(digest v1.Hash) {
	m.t.Helper()
	log, err := rtmr.Parse([]byte(m.agent.TCBInfo()))
	require.NoError(m.t, err)
	image, err := log.Accepted()
	assert.NoError(m.t, err)
	assert.Equal(m.t, digest.String(), image.String())
}

func (m *machine) unmeasured() {
	m.t.Helper()
	log, err := rtmr.Parse([]byte(m.agent.TCBInfo()))
	require.NoError(m.t, err)
	assert.Empty(m.t, log.Images(), "something was measured")
}

// workload returns the workload's container.
func (m *machine) workload() docker.Container {
	m.t.Helper()
	c, err := m.engine.Container(m.t.Context(), compose.Name)
	require.NoError(m.t, err)
	return c
}

// says waits until the workload's log has a text.
func (m *machine) says(text string) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("the workload says %q", text), func() bool {
		log, err := m.engine.Logs(m.t.Context(), compose.Name, 100, 1<<20)
		require.NoError(m.t, err)
		return strings.Contains(string(log), text)
	})
}

// answers waits until the workload's start of this number answers on the port: by then it has read
// its config. Order is what is said to it.
func (m *machine) answers(start int, order string) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("start %d answers", start), func() bool {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", m.port), patience)
		if err != nil {
			return false
		}
		defer conn.Close()
		require.NoError(m.t, conn.SetDeadline(time.Now().Add(patience)))
		var answering int
		_, err = fmt.Fscanf(conn, "mpc-node: start %d\n", &answering)
		if err != nil || answering != start {
			return false // the engine listens before the workload does
		}
		_, err = fmt.Fprintln(conn, order)
		return err == nil
	})
}

// nothingRuns requires that no container runs, and that the engine holds nothing of ours but volumes and, at most, a stopped workload.
func (m *machine) nothingRuns() {
	m.t.Helper()
	containers, err := m.engine.Containers(m.t.Context())
	require.NoError(m.t, err)
	for _, c := range containers {
		assert.False(m.t, c.Live(), "container %s is %s", c.Name, c.Status)
	}
}

// clear removes what the contract's names stand for, and all images, from the engine.
func (m *machine) clear() {
	ctx := context.Background()
	containers, err := m.engine.Containers(ctx)
	require.NoError(m.t, err)
	for _, c := range containers {
		if strings.HasPrefix(c.Name, compose.Name) {
			m.call("DELETE", "/containers/"+c.ID+"?force=1", nil, nil)
		}
	}
	for _, volume := range []string{compose.SharedVolume, compose.DataVolume} {
		if _, err := m.engine.Volume(ctx, volume); err == nil {
			m.call("DELETE", "/volumes/"+volume, nil, nil)
		}
	}
	var images []struct {
		ID                    string
		RepoTags, RepoDigests []string // of a containerd store the name stands in the second
	}
	m.call("GET", "/images/json", nil, &images)
	for _, i := range images {
		if slices.ContainsFunc(append(i.RepoTags, i.RepoDigests...), func(name string) bool { return strings.Contains(name, "/nearone/mpc-node") }) {
			m.call("DELETE", "/images/"+i.ID+"?force=1", nil, nil)
		}
	}
}

// call does what the launcher has no need for.
func (m *machine) call(method, path string, body, out any) {
	data, err := json.Marshal(body)
	require.NoError(m.t, err)
	req, err := http.NewRequest(method, "http://docker"+path, bytes.NewReader(data))
	require.NoError(m.t, err)
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(m.host, "unix://"))
	}}}
	resp, err := client.Do(req)
	require.NoError(m.t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(m.t, err)
	require.Less(m.t, resp.StatusCode, 300, "%s %s: %s", method, path, answer)
	if out != nil {
		require.NoError(m.t, json.Unmarshal(answer, out))
	}
}

func TestE2EBootsInTEEMode(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "TEE")

	first := m.mustBoot()
	m.measured(m.digests[0])
	assert.Equal(t, 1, m.agent.Emits())
	for _, step := range []string{"settings", "probe", "gate", "config", "pull", "load", "create", "measure", "start"} {
		assert.Equal(t, launch.Status("done"), first.status(step), "step %s", step)
	}
	assert.Equal(t, m.agent.RTMR3(), first.report.Measurement.RTMR3)
	assert.Equal(t, "default: no approved list", first.report.Image.Reason)
	assert.Equal(t, "registry", first.report.Pull.Source)
	assert.Positive(t, first.report.Pull.BytesFetched)
	c := m.workload()
	assert.Equal(t, "running", c.Status)
	assert.Equal(t, first.report.Image.ImageID, c.Image, "the container's image is the proved one")
	assert.Equal(t, "no", c.RestartPolicy)
	assert.Contains(t, c.Settings["Config.Env"], "DSTACK_ENDPOINT=/var/run/dstack.sock")
	m.says(m.digests[0].String()) // the workload sees its digest in its config
	m.answers(1, "")
	node, err := os.ReadFile(filepath.Join(m.shared, compose.NodeConfig))
	require.NoError(t, err)
	assert.Contains(t, string(node), `type = 'dstack'`)

	t.Run("again in the same boot", func(t *testing.T) {
		fetched := len(m.registry.Requests())
		again := m.mustBoot()
		m.measured(m.digests[0])
		assert.Equal(t, 1, m.agent.Emits(), "emitted again")
		assert.Len(t, m.registry.Requests(), fetched, "something was fetched")
		for _, step := range []string{"gate", "pull", "load", "create", "measure", "start"} {
			assert.Equal(t, launch.Status("skipped"), again.status(step), "step %s", step)
		}
		assert.Equal(t, c.ID, m.workload().ID, "another container")
		assert.Equal(t, c.StartedAt, m.workload().StartedAt, "restarted")
	})
	t.Run("a new boot", func(t *testing.T) {
		m.reboot()
		m.mustBoot()
		m.measured(m.digests[0])
		assert.Equal(t, 2, m.agent.Emits(), "once for each boot")
		assert.NotEqual(t, c.ID, m.workload().ID, "the container of the boot before")
		m.says("start 2,") // or the data volume is not the one of the boot before
		logs, err := filepath.Glob(filepath.Join(m.shared, state.Name, state.LogDir, "*.log"))
		require.NoError(t, err)
		require.Len(t, logs, 1)
		before, err := os.ReadFile(logs[0])
		require.NoError(t, err)
		assert.Contains(t, string(before), "start 1")
	})
	t.Run("an upgrade", func(t *testing.T) {
		m.reboot()
		m.approve(m.digests[1], m.digests[0])
		upgraded := m.mustBoot()
		m.measured(m.digests[1])
		assert.Equal(t, "newest approved", upgraded.report.Image.Reason)
		assert.Equal(t, upgraded.report.Image.ImageID, m.workload().Image)
		m.says("start 3,")
		m.says(m.digests[1].String())
	})
	t.Run("another digest in the same boot", func(t *testing.T) {
		running := m.workload()
		m.approve(m.digests[0])
		refused := m.boot()
		assert.Equal(t, exit.Measurement, refused.code, "%s", refused.stderr)
		m.measured(m.digests[1])
		assert.Equal(t, running.StartedAt, m.workload().StartedAt, "what runs is left alone")
		assert.Equal(t, "running", m.workload().Status)
	})
	t.Run("a wrong digest", func(t *testing.T) {
		m.reboot()
		wrong := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
		m.approve(wrong)
		refused := m.boot()
		assert.Equal(t, exit.Refused, refused.code, "%s", refused.stderr)
		assert.Equal(t, launch.Status("failed"), refused.status("pull"))
		assert.Regexp(t, "trying again.* step=pull ", refused.stderr)
		m.unmeasured()
		m.nothingRuns()
	})
	t.Run("an override that nobody approved", func(t *testing.T) {
		m.reboot()
		m.approve(m.digests[0])
		m.configure(fmt.Sprintf("mpc_hash_override = %q", m.digests[1]))
		refused := m.boot()
		assert.Equal(t, exit.Config, refused.code, "%s", refused.stderr)
		assert.Equal(t, launch.Status("failed"), refused.status("config"))
		m.unmeasured()
		m.nothingRuns()
	})
	t.Run("a taken port", func(t *testing.T) {
		m.reboot()
		m.approve(m.digests[0])
		m.configure("")
		taken, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", m.port))
		require.NoError(t, err)
		refused := m.boot()
		require.NoError(t, taken.Close())
		assert.Equal(t, exit.Workload, refused.code, "%s", refused.stderr)
		assert.Equal(t, launch.Status("failed"), refused.status("start"))
		m.measured(m.digests[0])
		m.mustBoot()
		m.measured(m.digests[0])
		assert.Equal(t, "running", m.workload().Status, "a further run completes")
	})
}

func TestE2EBootsOutsideACVM(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "NONTEE")

	first := m.mustBoot()
	assert.Empty(t, m.agent.Requests(), "there is no agent outside a CVM")
	assert.Equal(t, launch.Status("skipped"), first.status("measure"))
	c := m.workload()
	assert.Equal(t, "running", c.Status)
	assert.Equal(t, "on-failure", c.RestartPolicy)
	assert.NotContains(t, fmt.Sprint(c.Settings["Config.Env"]), "DSTACK")
	assert.Len(t, c.Mounts, 3)
	node, err := os.ReadFile(filepath.Join(m.shared, compose.NodeConfig))
	require.NoError(t, err)
	assert.Contains(t, string(node), `type = 'local'`)

	fetched := len(m.registry.Requests())
	m.mustBoot()
	assert.Len(t, m.registry.Requests(), fetched, "something was fetched")
	assert.Equal(t, c.ID, m.workload().ID, "an unchanged container is reused")
	assert.Equal(t, c.StartedAt, m.workload().StartedAt, "restarted")
	m.says("start 1,")

	m.approve(m.digests[1])
	upgraded := m.mustBoot()
	assert.Equal(t, upgraded.report.Image.ImageID, m.workload().Image)
	m.says("start 2,")

	m.approve(m.digests[0])
	m.configure("mpc_hash_override = \"sha256:" + strings.Repeat("0", 64) + "\"")
	refused := m.boot()
	assert.Equal(t, exit.Config, refused.code)
	assert.Equal(t, upgraded.report.Image.ImageID, m.workload().Image, "what runs is left alone")
}

// TestE2EReplacesAForeignContainer starts with what an older launcher left: a container of the workload's name that isn't of its project.
func TestE2EReplacesAForeignContainer(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "TEE")
	m.mustBoot()
	m.says("start 1,")
	old := m.workload()
	m.call("DELETE", "/containers/"+old.ID+"?force=1", nil, nil)
	m.call("POST", "/containers/create?name="+compose.Name, map[string]any{
		"Image": old.Image, "Cmd": []string{"/app/mpc-node", "start-with-config-file", "/mnt/shared/mpc-config.toml"},
		"HostConfig": map[string]any{"RestartPolicy": map[string]any{"Name": "on-failure"}, "Binds": []string{"mpc-data:/data", "shared-volume:/mnt/shared"}},
	}, nil)
	m.call("POST", "/containers/"+compose.Name+"/start", nil, nil)
	m.says("start 2,")
	m.agent.Reboot()

	m.mustBoot()
	m.measured(m.digests[0])
	c := m.workload()
	assert.Equal(t, compose.Name, c.Labels[compose.ProjectLabel])
	m.says("start 3,") // volumes stay
	containers, err := m.engine.Containers(t.Context())
	require.NoError(t, err)
	assert.Len(t, containers, 2, "nothing of the replacement stays but what holds the volumes")
	_, err = m.engine.Container(t.Context(), compose.Name)
	assert.False(t, inspect.NotFound(err))
}
