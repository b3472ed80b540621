package main_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// onMachine is the environment of a launcher on a machine of doubles.
func onMachine(m *launchtest.Machine) []string {
	return []string{
		"PLATFORM=TEE", "DOCKER_CONTENT_TRUST=1", "DEFAULT_IMAGE_DIGEST=" + m.Digests[0].String(), "LAUNCHER_CONFIG=" + m.ConfigFile,
		"LAUNCHER_SHARED_DIR=" + m.SharedDir, "LAUNCHER_DSTACK_SOCKET=" + m.AgentSocket, "DOCKER_HOST=" + m.Engine.Host(),
		"LAUNCHER_COMPOSE=" + os.Args[0] + " compose-double",
	}
}

func TestRenderIsWhatRunUses(t *testing.T) {
	t.Parallel()
	m, err := launchtest.NewMachine(launchtest.MachineOptions{Engine: launchtest.EngineOptions{Containerd: true}})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Configure("", secrets))
	render := func() (compose, node string) {
		stdout, stderr, code := run(t, onMachine(m), "render", "-o", "json")
		require.Equal(t, exit.OK, code, "%s", stderr)
		for _, secret := range planted()[:2] {
			assert.NotContains(t, stderr, secret)
		}
		var got map[string]string
		require.NoError(t, json.Unmarshal([]byte(stdout), &got))
		require.Len(t, got, 2)
		return got["compose"], got["node_config"]
	}
	compose, node := render()
	var file struct {
		Services map[string]struct {
			Image string
			Ports []string
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(compose), &file))
	assert.Equal(t, m.Digests[0].String(), file.Services["mpc-node"].Image, "as the engine would name it")
	assert.Equal(t, []string{"11780:11780"}, file.Services["mpc-node"].Ports)
	var values map[string]any
	require.NoError(t, toml.Unmarshal([]byte(node), &values))
	assert.Equal(t, "s3cret-string", values["string"])
	assert.Contains(t, values, "tee")
	assert.Empty(t, m.Effects.Effects())
	assert.NoFileExists(t, m.Shared("mpc-config.toml"))

	stdout, _, code := run(t, onMachine(m), "render")
	require.Equal(t, exit.OK, code)
	assert.Contains(t, stdout, compose)
	assert.Contains(t, stdout, node)

	require.NoError(t, m.Engine.Stop(true))
	without, again := render()
	assert.NotContains(t, without, "image: "+m.Digests[0].String(), "the digest of the config")
	assert.Contains(t, without, "image: sha256:")
	assert.Equal(t, node, again)
	require.NoError(t, m.Engine.Start())

	_, stderr, _ := runUntilSupervised(t, onMachine(m), "run")
	written, err := os.ReadFile(m.Shared("mpc-config.toml"))
	require.NoError(t, err, stderr)
	assert.Equal(t, node, string(written))
	require.NoError(t, m.Registry.Stop())
	compose2, _ := render()
	assert.Equal(t, compose, compose2, "what a boot kept needs no registry")
}

func TestRenderFailures(t *testing.T) {
	t.Parallel()
	m, err := launchtest.NewMachine(launchtest.MachineOptions{})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Configure("imgae = 1\nprot_mappings = []", ""))
	stdout, stderr, code := run(t, onMachine(m), "render")
	assert.Equal(t, exit.Config, code)
	assert.Empty(t, stdout)
	assert.Equal(t, 2, strings.Count(stderr, "error: "), "all at once: %s", stderr)
	_, _, code = run(t, nil, "render")
	assert.Equal(t, exit.Usage, code)
}
