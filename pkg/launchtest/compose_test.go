package launchtest_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

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

// project is a compose file as the launcher writes it.
const project = `
services:
  mpc-node:
    image: IMAGE
    container_name: mpc-node
    pull_policy: never
    restart: "no"
    security_opt: ["no-new-privileges:true"]
    command: [/app/mpc-node, start-with-config-file, /mnt/shared/mpc-config.toml]
    environment: {DSTACK_ENDPOINT: /var/run/dstack.sock}
    labels: {price: "5$$"}
    ports: ["11780:11780"]
    volumes:
      - {type: bind, source: /tapp, target: /tapp, read_only: true}
      - {type: bind, source: /var/run/dstack.sock, target: /var/run/dstack.sock, bind: {create_host_path: false}}
      - {type: volume, source: shared-volume, target: /mnt/shared}
      - {type: volume, source: mpc-data, target: /data}
volumes:
  shared-volume: {name: shared-volume, external: true}
  mpc-data: {name: mpc-data, external: true}
`

type composeRun struct {
	env  []string
	dir  string
	args []string
	file string
}

// composer returns the surroundings of a compose that is to succeed.
func composer(t *testing.T, e *engine, file string) composeRun {
	t.Helper()
	home := t.TempDir()
	return composeRun{
		env: []string{"PATH=/usr/bin:/bin", "HOME=" + home, "DOCKER_CONFIG=" + home, "DOCKER_HOST=" + e.Host()}, dir: t.TempDir(),
		args: []string{"-p", "mpc-node", "-f", "-", "up", "--no-start"}, file: file,
	}
}

// run returns exit code, standard output and standard error.
func (c composeRun) run(t *testing.T) (int, string, string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, append([]string{"compose-double"}, c.args...)...)
	cmd.Env, cmd.Dir, cmd.Stdin = c.env, c.dir, strings.NewReader(c.file)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

// forProject returns an engine with image and volumes, and the file that names that image.
func forProject(t *testing.T) (*engine, string) {
	t.Helper()
	e, id := withImage(t, launchtest.EngineOptions{})
	for _, name := range []string{"shared-volume", "mpc-data"} {
		_, err := e.Call(http.MethodPost, "/volumes/create", map[string]string{"Name": name})
		require.NoError(t, err)
	}
	return e, strings.Replace(project, "IMAGE", id, 1)
}

func TestComposeTellsItsVersion(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{})
	for args, want := range map[string]string{
		"version":                    "Docker Compose version v5.0.2\n",
		"version --short":            "5.0.2\n",
		"version --format json":      "{\"version\":\"v5.0.2\"}\n",
		"--fail=old version":         "docker-compose version 1.29.2, build unknown\n",
		"--fail=old version --short": "1.29.2\n",
	} {
		c := composer(t, e, "")
		c.args = strings.Fields(args)
		code, stdout, stderr := c.run(t)
		assert.Zero(t, code, stderr)
		assert.Equal(t, want, stdout, args)
	}
	assert.Empty(t, e.Requests(), "the version is not the engine's business")
}

func TestComposeCreatesAndStartsNothing(t *testing.T) {
	t.Parallel()
	e, file := forProject(t)
	code, _, stderr := composer(t, e, file).run(t)
	require.Zero(t, code, stderr)
	assert.Contains(t, stderr, " Container mpc-node Created")
	assert.Equal(t, []string{"network-create mpc-node_default", "create mpc-node"}, e.effects.Effects())

	const volumes = "/var/lib/docker/volumes/"
	c := e.container("mpc-node")
	assert.Equal(t, "created", c.Status)
	assert.Equal(t, []string{"/app/mpc-node", "start-with-config-file", "/mnt/shared/mpc-config.toml"}, c.Cmd)
	assert.Contains(t, c.Env, "DSTACK_ENDPOINT=/var/run/dstack.sock")
	assert.Equal(t, "no", c.RestartPolicy)
	assert.Equal(t, []string{"no-new-privileges:true"}, c.SecurityOpt)
	assert.Equal(t, map[string]string{"11780/tcp": "11780"}, c.Ports)
	assert.Equal(t, []launchtest.ContainerMount{
		{Type: "bind", Source: "/tapp", Destination: "/tapp", Mode: "ro"},
		{Type: "volume", Name: "shared-volume", Source: volumes + "shared-volume/_data", Destination: "/mnt/shared", Mode: "rw", RW: true},
		{Type: "volume", Name: "mpc-data", Source: volumes + "mpc-data/_data", Destination: "/data", Mode: "rw", RW: true},
		{Type: "bind", Source: "/var/run/dstack.sock", Destination: "/var/run/dstack.sock", RW: true},
	}, c.Mounts)
	assert.Equal(t, "5$", c.Labels["price"], "$$ is one $")
	assert.Equal(t, "image", c.Labels["from"], "the image's labels are there, too")
	for label, want := range map[string]string{
		"project": "mpc-node", "service": "mpc-node", "oneoff": "False", "container-number": "1", "image": c.Image,
	} {
		assert.Equal(t, want, c.Labels["com.docker.compose."+label], label)
	}
	assert.Len(t, c.Labels["com.docker.compose.config-hash"], 64)
	e.must(http.MethodPost, "/containers/mpc-node/start", nil)
	assert.Empty(t, e.Unexpected(), "no attempt to pull")
}

func TestComposeKeepsWhatIsUnchangedAndRecreatesTheRest(t *testing.T) {
	t.Parallel()
	e, file := forProject(t)
	up := func(file string, flags ...string) string {
		t.Helper()
		c := composer(t, e, file)
		c.args = append(c.args, flags...)
		code, _, stderr := c.run(t)
		require.Zero(t, code, stderr)
		require.Len(t, e.Containers(), 1)
		return e.container("mpc-node").ID
	}
	first := up(file)
	e.must(http.MethodPost, "/containers/mpc-node/start", nil)
	before := len(e.effects.Effects())
	assert.Equal(t, first, up(file), "unchanged")
	assert.Equal(t, first, up(strings.Replace(file, "pull_policy: never", "pull_policy: missing", 1)), "the pull policy is not part of it")
	assert.Equal(t, first, up(strings.Replace(file, `"no"`, "on-failure", 1), "--no-recreate"))
	assert.Equal(t, "running", e.container("mpc-node").Status)
	require.Len(t, e.effects.Effects(), before)

	second := up(strings.Replace(file, `"no"`, "on-failure", 1))
	assert.NotEqual(t, first, second, "changed")
	assert.Equal(t, []string{
		"create <id>_mpc-node", "stop mpc-node", "remove mpc-node", "rename <id>_mpc-node mpc-node",
	}, e.effects.Effects()[before:], "there is a container with the volumes at every moment")
	assert.Equal(t, "created", e.container("mpc-node").Status)
	assert.NotEqual(t, second, up(strings.Replace(file, `"no"`, "on-failure", 1), "--force-recreate"))
	assert.Equal(t, []string{"mpc-data", "shared-volume"}, e.Volumes())
}

func TestComposeRecreatesForAnotherImageUnderTheSameName(t *testing.T) {
	t.Parallel()
	e, _ := forProject(t)
	file := strings.Replace(project, "IMAGE", "node:1", 1)
	code, _, stderr := composer(t, e, file).run(t)
	require.Zero(t, code, stderr)
	first := e.container("mpc-node")
	layers, err := launchtest.RandomLayers(5, 100)
	require.NoError(t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(t, err)
	_, err = e.AddImage(img, "node:1")
	require.NoError(t, err)
	code, _, stderr = composer(t, e, file).run(t)
	require.Zero(t, code, stderr)
	assert.NotEqual(t, first.Image, e.container("mpc-node").Image)
}

func TestComposeFailures(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name    string
		arrange func(t *testing.T, e *engine, c *composeRun)
		says    string
	}{
		{"foreign container", func(t *testing.T, e *engine, _ *composeRun) {
			_, err := e.Call(http.MethodPost, "/containers/create?name=mpc-node", map[string]any{"Image": "node:1"})
			require.NoError(t, err)
		}, `Error response from daemon: Conflict. The container name "/mpc-node" is already in use by container`},
		{"external volume missing", func(t *testing.T, e *engine, _ *composeRun) {
			_, err := e.Call(http.MethodDelete, "/volumes/mpc-data", nil)
			require.NoError(t, err)
		}, `external volume "mpc-data" not found`},
		{"image missing", func(t *testing.T, e *engine, _ *composeRun) {
			_, err := e.Call(http.MethodDelete, "/images/node:1", nil)
			require.NoError(t, err)
		}, "Error response from daemon: No such image: sha256:"},
		{"engine gone", func(t *testing.T, e *engine, _ *composeRun) { require.NoError(t, e.Stop(true)) },
			"Cannot connect to the Docker daemon at unix://"},
		{"engine refuses", func(_ *testing.T, e *engine, _ *composeRun) {
			e.Fail(launchtest.EngineFault{Match: "POST /containers/create", Status: 500, Message: "no"})
		}, "Error response from daemon: no"},
		{"empty file", func(_ *testing.T, _ *engine, c *composeRun) { c.file = "\n" }, "empty compose file"},
		{"bad YAML", func(_ *testing.T, _ *engine, c *composeRun) { c.file = "a: [" }, "failed to parse -: yaml:"},
		{"unknown key", func(_ *testing.T, _ *engine, c *composeRun) {
			c.file = strings.Replace(c.file, "restart:", "restrat:", 1)
		}, "restrat"},
		{"bad variable", func(_ *testing.T, _ *engine, c *composeRun) { c.file = strings.Replace(c.file, "5$$", "5${", 1) },
			"invalid interpolation format for services.mpc-node.labels.price"},
		{"undefined volume", func(_ *testing.T, _ *engine, c *composeRun) {
			c.file = strings.Replace(c.file, "source: mpc-data", "source: other", 1)
		}, `service "mpc-node" refers to undefined volume other: invalid compose project`},
		{"asked to start", func(_ *testing.T, _ *engine, c *composeRun) { c.args = c.args[:len(c.args)-1] }, "--no-start is missing"},
		{"told to answer yes", func(_ *testing.T, _ *engine, c *composeRun) { c.args = append(c.args, "--yes") }, "unknown flag: --yes"},
		{"contradiction", func(_ *testing.T, _ *engine, c *composeRun) {
			c.args = append(c.args, "--force-recreate", "--no-recreate")
		}, "incompatible"},
		{"--fail=create", func(_ *testing.T, _ *engine, c *composeRun) { c.args = append([]string{"--fail=create"}, c.args...) }, "injected"},
		{"--fail=noise", func(_ *testing.T, _ *engine, c *composeRun) { c.args = append([]string{"--fail=noise"}, c.args...) }, "injected"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e, file := forProject(t)
			c := composer(t, e, file)
			tc.arrange(t, e, &c)
			code, stdout, stderr := c.run(t)
			assert.Equal(t, 1, code, stderr)
			assert.Contains(t, stderr, tc.says)
			assert.NotContains(t, strings.Join(e.effects.Effects(), "\n"), "create mpc-node\n", "no container")
			assert.Equal(t, tc.name == "--fail=noise", len(stdout) > 1<<20)
		})
	}
}

func TestComposeFaults(t *testing.T) {
	t.Parallel()
	for fault, want := range map[launchtest.ComposeFault]struct {
		code    int
		command string
		effects int
	}{
		launchtest.ComposeLate:   {1, "/app/mpc-node", 2},
		launchtest.ComposeTamper: {0, "/bin/sh", 2},
		launchtest.ComposeSilent: {0, "", 0},
		launchtest.ComposeRename: {0, "/app/mpc-node", 2}, // there is nothing to rename the first time
		"nonsense":               {125, "", 0},
	} {
		e, file := forProject(t)
		c := composer(t, e, file)
		c.args = append([]string{"--fail=" + string(fault)}, c.args...)
		code, _, stderr := c.run(t)
		assert.Equal(t, want.code, code, "%s: %s", fault, stderr)
		assert.Len(t, e.effects.Effects(), want.effects, fault)
		if want.command != "" {
			assert.Equal(t, want.command, e.container("mpc-node").Cmd[0], fault)
		}
	}
}

func TestComposeThatIsGoneBeforeTheRename(t *testing.T) {
	t.Parallel()
	e, file := forProject(t)
	code, _, stderr := composer(t, e, file).run(t)
	require.Zero(t, code, stderr)
	c := composer(t, e, file)
	c.args = append([]string{"--fail=rename"}, append(c.args, "--force-recreate")...)
	code, _, stderr = c.run(t)
	assert.Equal(t, 1, code, stderr)
	require.Len(t, e.Containers(), 1)
	assert.Regexp(t, "^[0-9a-f]{12}_mpc-node$", e.Containers()[0].Name)
	code, _, stderr = composer(t, e, file).run(t)
	require.Zero(t, code, stderr)
	assert.Regexp(t, "^[0-9a-f]{12}_mpc-node$", e.Containers()[0].Name, "the next run finds nothing to do")
}

func TestComposeThatHangs(t *testing.T) {
	t.Parallel()
	e, file := forProject(t)
	c := composer(t, e, file)
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, append([]string{"compose-double", "--fail=hang"}, c.args...)...)
	cmd.Env, cmd.Dir, cmd.Stdin = c.env, c.dir, strings.NewReader(c.file)
	require.Error(t, cmd.Run())
	require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded, "it ran until it was killed")
	assert.Empty(t, e.Requests())
}

func TestComposeWithoutNeverGoesToTheRegistry(t *testing.T) {
	t.Parallel()
	e, file := forProject(t)
	c := composer(t, e, strings.Replace(file, "pull_policy: never", "pull_policy: always", 1))
	code, _, _ := c.run(t)
	assert.Equal(t, 1, code)
	assert.Equal(t, []string{"POST /images/create"}, e.Unexpected(), "a pull is not expected of any engine here")
}

func TestComposeRefusesSurroundingsThatArentEmpty(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		arrange func(t *testing.T, c *composeRun)
		says    string
	}{
		"variable": {func(_ *testing.T, c *composeRun) { c.env = append(c.env, "COMPOSE_PROFILES=x") }, "the environment has COMPOSE_PROFILES"},
		"proxy":    {func(_ *testing.T, c *composeRun) { c.env = append(c.env, "HTTP_PROXY=") }, "the environment has HTTP_PROXY"},
		"file in the working directory": {func(t *testing.T, c *composeRun) {
			require.NoError(t, os.WriteFile(c.dir+"/.env", nil, 0o600))
		}, "is not empty: .env"},
		"file at home": {func(t *testing.T, c *composeRun) {
			home := strings.TrimPrefix(c.env[1], "HOME=")
			require.NoError(t, os.WriteFile(home+"/config.json", nil, 0o600))
		}, "is not empty: config.json"},
		"no engine": {func(_ *testing.T, c *composeRun) { c.env = c.env[:3] }, `DOCKER_HOST is ""`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, file := forProject(t)
			c := composer(t, e, file)
			tc.arrange(t, &c)
			code, _, stderr := c.run(t)
			assert.Equal(t, 125, code)
			assert.Contains(t, stderr, tc.says)
			assert.Empty(t, e.Requests(), "nothing was done")
		})
	}
}

func TestComposeExpandsWhatItsEnvironmentHas(t *testing.T) {
	t.Parallel()
	e, file := forProject(t)
	file = strings.Replace(file, `"5$$"`, `"$DOCKER_HOST-${NOTHING}-$$HOME"`, 1)
	code, _, stderr := composer(t, e, file).run(t)
	require.Zero(t, code, stderr)
	assert.Equal(t, e.Host()+"--$HOME", e.container("mpc-node").Labels["price"])
	assert.Contains(t, stderr, `variable is not set. Defaulting to a blank string.`)
}

func TestComposeReadsShortForms(t *testing.T) {
	t.Parallel()
	e, _ := forProject(t)
	file := `
services:
  a:
    image: node:1
    environment: [A=1]
    ports: [{target: 80, published: "8080", protocol: udp}]
    volumes: ["/tapp:/tapp:ro", "own:/data"]
volumes: {own: }
`
	code, _, stderr := composer(t, e, file).run(t)
	require.Zero(t, code, stderr)
	c := e.container("mpc-node-a-1")
	assert.Equal(t, map[string]string{"80/udp": "8080"}, c.Ports)
	assert.Contains(t, c.Env, "A=1")
	assert.Equal(t, "mpc-node_own", c.Mounts[1].Name)
	assert.False(t, c.Mounts[0].RW)
	assert.Contains(t, e.Volumes(), "mpc-node_own", "a volume of the project's own is created")

	code, _, stderr = composer(t, e, strings.Replace(strings.Replace(file, "  a:", "  b:", 1), "8080", "8081", 1)).run(t)
	require.Zero(t, code, stderr)
	assert.Contains(t, stderr, "Found orphan containers ([/mpc-node-a-1])")
	assert.Len(t, e.Containers(), 2)
}
