package launchtest_test

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

// TestMain lets the test binary play Compose.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "compose-double" {
		// Not os.Exit: the race detector takes a second for it.
		syscall.Exit(launchtest.ComposeMain(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// project is a compose file as the launcher writes it; what stands in capitals is the test's.
const project = `
name: PROJECT
services:
  mpc-node:
    image: IMAGE
    container_name: PROJECT
    pull_policy: never
    restart: "no"
    security_opt: ["no-new-privileges:true"]
    command: [/app/mpc-node, start-with-config-file, /config/runs]
    environment: {DSTACK_ENDPOINT: /var/run/dstack.sock}
    labels: {price: "5$$"}
    ports: ["PORT:11780"]
    volumes:
      - {type: bind, source: /tmp, target: /tapp, read_only: true, bind: {create_host_path: true}}
      - {type: bind, source: /dev/null, target: /var/run/dstack.sock, bind: {create_host_path: false}}
      - {type: volume, source: mpc-data, target: /data}
volumes:
  mpc-data: {name: PROJECT-data, external: true}
`

// composeRun is a run of Compose in the surroundings that the launcher makes for it.
type composeRun struct {
	command, env []string
	dir, file    string
	args         []string
}

func newComposeRun(t *testing.T, command []string, host, file string) *composeRun {
	t.Helper()
	home := t.TempDir()
	return &composeRun{
		command: command, file: file, dir: t.TempDir(), args: []string{"up", "--no-start"},
		env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "DOCKER_CONFIG=" + home,
			"DOCKER_HOST=" + host},
	}
}

// doubleRun is a run of the double.
func doubleRun(t *testing.T, host, file string) *composeRun {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	return newComposeRun(t, []string{self, "compose-double"}, host, file)
}

func (c *composeRun) cmd(t *testing.T, project string) *exec.Cmd {
	t.Helper()
	args := append(c.command[1:len(c.command):len(c.command)], "--ansi", "never", "-p", project,
		"-f", "-")
	cmd := exec.CommandContext(t.Context(), c.command[0], append(args, c.args...)...)
	cmd.Env, cmd.Dir, cmd.Stdin = c.env, c.dir, strings.NewReader(c.file)
	return cmd
}

// run returns exit code, standard output and standard error.
func (c *composeRun) run(t *testing.T, project string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := c.cmd(t, project)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); !errors.As(err, new(*exec.ExitError)) {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), complaints.String()
}

// TestComposeConformance holds the compose double to what Compose does; on a real engine with the
// real one by `make e2e`.
func TestComposeConformance(t *testing.T) {
	t.Parallel()
	double, socket := newDouble(t, launchtest.EngineOptions{})
	composes(t, newSubject(t, socket), doubleRun(t, double.Host(), ""))
	assert.Empty(t, double.Unexpected(), "no attempt to pull")
}

// composes has Compose create a container twice and looks at what comes of it.
func composes(t *testing.T, s *subject, c *composeRun) {
	t.Helper()
	port := freePort(t)
	s.knows(port, "PORT")
	image := s.workload()
	s.volumes, s.networks = append(s.volumes, s.prefix+"-data"),
		append(s.networks, s.prefix+"_default")
	s.containers = append(s.containers, s.prefix)
	c.file = strings.NewReplacer("PROJECT", s.prefix, "IMAGE", image, "PORT", port).Replace(project)
	code, _, _ := c.run(t, s.prefix)
	s.see("without its volume: %d", code)
	s.must(http.MethodPost, "/volumes/create", map[string]any{"Name": s.prefix + "-data"})
	code, _, stderr := c.run(t, s.prefix)
	s.see("created: %d", code)
	require.Zero(t, code, stderr)
	box := s.get("/containers/" + s.prefix + "/json")
	id := box["Id"].(string)
	config, host := box["Config"].(map[string]any), box["HostConfig"].(map[string]any)
	s.see("named as the file says: %t", config["Image"] == image)
	s.see("runs: %v %v", config["Entrypoint"], config["Cmd"])
	s.see("environment: %v", sorted(config["Env"]))
	s.see("restarts: %v, security: %v", host["RestartPolicy"].(map[string]any)["Name"],
		host["SecurityOpt"])
	s.see("published: %v", host["PortBindings"])
	s.see("network: %v", host["NetworkMode"])
	s.see("told of its config: %s", told(config))
	s.see("told of its host's: %s", told(host))
	for name, endpoint := range box["NetworkSettings"].(map[string]any)["Networks"].(map[string]any) {
		s.see("told of network %s: %s", name, told(endpoint.(map[string]any)))
	}
	labels := config["Labels"].(map[string]any)
	s.see("price: %v", labels["price"])
	for _, label := range []string{"project", "service", "oneoff", "container-number"} {
		s.see("%s: %v", label, labels["com.docker.compose."+label])
	}
	s.see("knows its image: %t", labels["com.docker.compose.image"] == image)
	s.see("knows its configuration: %t", len(labels["com.docker.compose.config-hash"].(string)) == 64)
	for _, place := range []string{"/tapp", "/var/run/dstack.sock", "/data"} {
		s.mountOf(box, place)
	}
	s.state("then", s.prefix)
	s.see("network made: %v",
		s.get("/networks/" + s.prefix +
			"_default")["Labels"].(map[string]any)["com.docker.compose.project"])
	code, _, _ = c.run(t, s.prefix)
	s.see("again: %d, the same: %t", code, s.get("/containers/" + s.prefix + "/json")["Id"] == id)
	s.must(http.MethodPost, "/containers/"+s.prefix+"/start", nil)
	code, _, _ = c.run(t, s.prefix)
	s.see("while it runs: %d, the same: %t", code,
		s.get("/containers/" + s.prefix + "/json")["Id"] == id)
	s.must(http.MethodDelete, "/containers/"+id+"?force=1", nil)
	s.must(http.MethodPost, "/containers/create?name="+s.prefix, map[string]any{"Image": image})
	code, _, stderr = c.run(t, s.prefix)
	s.see("somebody else's is there: %d %t", code,
		strings.Contains(stderr, "is already in use by container"))
	assert.Equal(t, expected(`
		without its volume: 1
		created: 0
		named as the file says: true
		runs: <nil> [/app/mpc-node start-with-config-file /config/runs]
		environment: [DSTACK_ENDPOINT=/var/run/dstack.sock]
		restarts: no, security: [no-new-privileges:true]
		published: map[11780/tcp:[map[HostIp: HostPort:PORT]]]
		network: PREFIX_default
		told of its config: [AttachStderr AttachStdout Cmd Env ExposedPorts Hostname Image Labels]
		told of its host's: [Binds CgroupnsMode ConsoleSize IpcMode LogConfig MaskedPaths Mounts NetworkMode PortBindings ReadonlyPaths RestartPolicy Runtime SecurityOpt ShmSize]
		told of network PREFIX_default: [Aliases]
		price: 5$
		project: PREFIX
		service: mpc-node
		oneoff: False
		container-number: 1
		knows its image: true
		knows its configuration: true
		then: created 0
		network made: PREFIX
		again: 0, the same: true
		while it runs: 0, the same: true
		somebody else's is there: 1 true`, s.personality), s.seen)
}

// told returns the fields that aren't empty.
func told(fields map[string]any) []string {
	var names []string
	for name, value := range fields {
		switch v := value.(type) {
		case nil:
		case []any:
			if len(v) > 0 {
				names = append(names, name)
			}
		case map[string]any:
			if len(v) > 0 {
				names = append(names, name)
			}
		default:
			if v != "" && v != false && v != 0.0 {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// forProject returns an engine with image and volume, and the file that names that image.
func forProject(t *testing.T) (*engine, string) {
	t.Helper()
	e, id := withImage(t, launchtest.EngineOptions{})
	_, err := e.Call(http.MethodPost, "/volumes/create", map[string]string{"Name": "mpc-node-data"})
	require.NoError(t, err)
	return e, strings.NewReplacer("PROJECT", "mpc-node", "IMAGE", id, "PORT", "11780").Replace(project)
}

func TestComposeTellsItsVersion(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{})
	for fault, want := range map[string]string{"": "5.0.2\n", "--fail=old": "1.29.2\n"} {
		c := doubleRun(t, e.Host(), "")
		args := append(c.command[1:], strings.Fields(fault)...)
		cmd := exec.CommandContext(t.Context(), c.command[0], append(args, "version", "--short")...)
		cmd.Env, cmd.Dir = c.env, c.dir
		stdout, err := cmd.Output()
		require.NoError(t, err)
		assert.Equal(t, want, string(stdout), fault)
	}
	assert.Empty(t, e.Requests(), "the version is not the engine's business")
}

func TestComposeFailures(t *testing.T) {
	t.Parallel()
	replace := func(old, text string) func(t *testing.T, e *engine, c *composeRun) {
		return func(t *testing.T, _ *engine, c *composeRun) {
			require.Contains(t, c.file, old)
			c.file = strings.Replace(c.file, old, text, 1)
		}
	}
	fails := func(fault launchtest.ComposeFault) func(t *testing.T, e *engine, c *composeRun) {
		return func(_ *testing.T, _ *engine,
			c *composeRun) {
			c.command = append(c.command, "--fail="+string(fault))
		}
	}
	for name, tc := range map[string]struct {
		arrange func(t *testing.T, e *engine, c *composeRun)
		says    string
	}{
		"image missing": {replace("sha256:", "sha256:0"),
			"Error response from daemon: no such image: sha256:"},
		"engine gone": {func(t *testing.T, e *engine, _ *composeRun) { require.NoError(t, e.Stop(true)) },
			"Cannot connect to the Docker daemon at unix://"},
		"engine refuses": {func(_ *testing.T, e *engine, _ *composeRun) {
			e.Fail(launchtest.EngineFault{Match: "POST /containers/create", Status: 500, Message: "no"})
		}, "Error response from daemon: no"},
		"empty file": {func(_ *testing.T, _ *engine, c *composeRun) { c.file = "\n" },
			"empty compose file"},
		"bad YAML": {func(_ *testing.T, _ *engine, c *composeRun) { c.file = "a: [" },
			"failed to parse -: yaml:"},
		"unknown key": {replace("restart:", "restrat:"), "restrat"},
		"variable":    {replace("5$$", "$HOME"), "invalid interpolation format"},
		"undefined volume": {replace("source: mpc-data", "source: other"),
			"refers to undefined volume other"},
		"pull": {replace("never", "always"), "may be pulled"},
		"asked to start": {func(_ *testing.T, _ *engine, c *composeRun) { c.args = c.args[:1] },
			"does not know"},
		"fault create": {fails(launchtest.ComposeCreate), "Error response from daemon: injected"},
		"fault noise":  {fails(launchtest.ComposeNoise), "Error response from daemon: injected"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, file := forProject(t)
			c := doubleRun(t, e.Host(), file)
			tc.arrange(t, e, c)
			code, stdout, stderr := c.run(t, "mpc-node")
			assert.Equal(t, 1, code, stderr)
			assert.Contains(t, stderr, tc.says)
			assert.Empty(t, e.Containers())
			assert.Equal(t, name == "fault noise", len(stdout) > 1<<20)
		})
	}
}

func TestComposeThatLies(t *testing.T) {
	t.Parallel()
	for fault, want := range map[launchtest.ComposeFault][]string{
		"":                       {"/app/mpc-node", "start-with-config-file", "/config/runs"},
		launchtest.ComposeTamper: {"/bin/sh"}, launchtest.ComposeSilent: nil,
	} {
		e, file := forProject(t)
		c := doubleRun(t, e.Host(), file)
		c.command = append(c.command, "--fail="+string(fault))
		code, _, stderr := c.run(t, "mpc-node")
		require.Zero(t, code, "%s: %s", fault, stderr)
		if want == nil {
			assert.Empty(t, e.effects.Effects())
			continue
		}
		assert.Equal(t, want, e.container("mpc-node").Cmd)
		assert.Equal(t, []string{"network-create mpc-node_default", "create mpc-node"},
			e.effects.Effects())
	}
}

func TestComposeMakesNothingAnew(t *testing.T) {
	t.Parallel()
	e, file := forProject(t)
	code, _, stderr := doubleRun(t, e.Host(), file).run(t, "mpc-node")
	require.Zero(t, code, stderr)
	id := e.container("mpc-node").ID
	code, _, stderr = doubleRun(t, e.Host(), strings.Replace(file, `"no"`, "on-failure", 1)).run(t,
		"mpc-node")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "makes no container anew")
	assert.Equal(t, id, e.container("mpc-node").ID)
}

func TestComposeThatHangs(t *testing.T) {
	t.Parallel()
	e, file := forProject(t)
	c := doubleRun(t, e.Host(), file)
	c.command = append(c.command, "--fail=hang")
	cmd := c.cmd(t, "mpc-node")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(stderr).ReadString('\n')
	require.NoError(t, err)
	assert.Contains(t, line, "waiting")
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	assert.Equal(t, syscall.SIGKILL, cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(),
		"it ran until it was killed")
	assert.Empty(t, e.Requests())
}

func TestComposeRefusesSurroundingsThatArentEmpty(t *testing.T) {
	t.Parallel()
	for says, arrange := range map[string]func(t *testing.T, c *composeRun){
		"the environment has COMPOSE_PROFILES": func(_ *testing.T,
			c *composeRun) {
			c.env = append(c.env, "COMPOSE_PROFILES=x")
		},
		"is not empty: .env": func(t *testing.T, c *composeRun) {
			require.NoError(t, os.WriteFile(c.dir+"/.env", nil, 0o600))
		},
		"is not empty: config.json": func(t *testing.T, c *composeRun) {
			require.NoError(t, os.WriteFile(strings.TrimPrefix(c.env[1], "HOME=")+"/config.json", nil,
				0o600))
		},
		`DOCKER_HOST is ""`: func(_ *testing.T, c *composeRun) { c.env = c.env[:3] },
	} {
		e, file := forProject(t)
		c := doubleRun(t, e.Host(), file)
		arrange(t, c)
		code, _, stderr := c.run(t, "mpc-node")
		assert.Equal(t, 125, code)
		assert.Contains(t, stderr, says)
		assert.Empty(t, e.Requests(), "nothing was done")
	}
}
