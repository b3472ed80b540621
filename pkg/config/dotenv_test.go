package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
)

// answer parses a config in the .env form and returns where it was recognised and the TOML that is to be written.
func answer(t *testing.T, text string) (string, string) {
	t.Helper()
	_, warnings, err := config.Parse(file, []byte(text), config.TEE)
	assert.Empty(t, warnings)
	got := problems(t, text, config.TEE)
	require.Len(t, got, 1)
	assert.Equal(t, got[0], err.Error())
	first, toml, found := strings.Cut(got[0], "\n\n")
	require.True(t, found, "%s", got[0])
	place, found := strings.CutSuffix(first, ": this is the .env form of the Python launcher, which is not read any more. Write TOML instead:")
	require.True(t, found, "%s", first)
	return place, toml
}

func TestDotenv(t *testing.T) {
	t.Parallel()
	place, toml := answer(t, `# Optional override parameters
MPC_IMAGE_NAME=nearone/mpc-node-gcp
MPC_IMAGE_TAGS=068d88b-tee, latest
MPC_REGISTRY=registry.hub.docker.com
MPC_HASH_OVERRIDE=`+hashA.String()+`
RPC_MAX_ATTEMPTS=20

MPC_ACCOUNT_ID=secret-account.testnet
MPC_SECRET_STORE_KEY=SECRETAAAAAAAAAAAAAAAAAAAAAAAAAA
MPC_BACKUP_ENCRYPTION_KEY_HEX = secret00
NEAR_BOOT_NODES=ed25519:secret@116.202.220.238:34567,ed25519:secret@34.221.144.70:24567
SOME_OTHER_KEY=secret
EXTRA_HOSTS=secret.consul:35.185.233.54
PORTS=8080:8080, 3030:80,24567:24567
`)
	assert.Equal(t, file+":2:1", place)
	assert.Equal(t, `[launcher_config]
image_reference = "nearone/mpc-node-gcp:068d88b-tee"
mpc_hash_override = "`+hashA.String()+`"  # must be a manifest's digest now, not an image's ID
port_mappings = [{ host = 8080, container = 8080 }, { host = 3030, container = 80 }, { host = 24567, container = 24567 }]
# RPC_MAX_ATTEMPTS: see pull_max_retries, pull_retry_interval_secs, pull_max_delay_secs

[mpc_node_config]
# EXTRA_HOSTS: under the name it has in the node's own config
# MPC_ACCOUNT_ID: under the name it has in the node's own config
# MPC_BACKUP_ENCRYPTION_KEY_HEX: under the name it has in the node's own config
# MPC_SECRET_STORE_KEY: under the name it has in the node's own config
# NEAR_BOOT_NODES: under the name it has in the node's own config
`, toml)

	c, warnings := parse(t, toml)
	assert.Empty(t, warnings, "what is shown is what is wanted")
	assert.Equal(t, "nearone/mpc-node-gcp:068d88b-tee", c.Image.String())
	assert.Equal(t, &hashA, c.Override)
	assert.Len(t, c.Ports, 3)
}

func TestDotenvValues(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"the defaults":             {"MPC_ENV=testnet", []string{`image_reference = "nearone/mpc-node"`}},
		"another registry":         {"MPC_REGISTRY=ghcr.io\nMPC_IMAGE_NAME=x/y", []string{`image_reference = "ghcr.io/x/y"`}},
		"the older names":          {"LAUNCHER_IMAGE_NAME=x/y\nLAUNCHER_REGISTRY=ghcr.io\nLAUNCHER_IMAGE_TAGS=z", []string{`image_reference = "ghcr.io/x/y:z"`}},
		"the last one counts":      {"MPC_IMAGE_TAGS=a\nMPC_IMAGE_TAGS=b", []string{`image_reference = "nearone/mpc-node:b"`}},
		"white space":              {"  MPC_IMAGE_NAME = x/y \r\n", []string{`image_reference = "x/y"`}},
		"a quoted name":            {"MPC_IMAGE_NAME=\"x/y\"", []string{`# image: what the file says can't be used`}},
		"a tag that is none":       {"MPC_IMAGE_TAGS=$(x)", []string{`image_reference = "nearone/mpc-node"`}},
		"a password":               {"MPC_REGISTRY=user:secret@ghcr.io", []string{`# image: what the file says can't be used`}},
		"a secret in the image":    {"MPC_IMAGE_NAME=x secret", []string{`# image: what the file says can't be used`}},
		"no digest":                {"MPC_HASH_OVERRIDE=secret", []string{`# mpc_hash_override: what the file says can't be used`}},
		"an empty digest":          {"MPC_HASH_OVERRIDE=", []string{`image_reference = "nearone/mpc-node"`}},
		"ports, some of them none": {"PORTS=1:2,secret,1:3,0:1,--env SECRET=1,70000:1,5", []string{`port_mappings = [{ host = 1, container = 2 }]`, `# 6 of PORTS can't be used`}},
		"no ports":                 {"PORTS=", []string{`port_mappings = []`, `# 1 of PORTS can't be used`}},
		"everything quoted":        {"MPC_ENV = \"testnet\"\nRUST_LOG = \"secret\"", []string{`# RUST_LOG: under`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, toml := answer(t, test.text)
			for _, want := range test.want {
				assert.Contains(t, toml, want+"")
			}
			assert.NotContains(t, strings.ToLower(toml), "secret")
			assert.NotContains(t, toml, "testnet")
			if !strings.Contains(toml, "# image") {
				parse(t, toml)
			}
		})
	}
}

func TestDotenvPlace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"MPC_ENV=x":                         ":1:1",
		"# MPC_ENV=x\r\n\r\n  RUST_LOG=x":   ":3:3",
		"OTHER=1\nbad line\n\tPORTS=1:1":    ":3:2",
		"\ufeffMPC_ENV=x":                   ":1:1",
		"\ufeff\nMPC_ENV=\xff\xfe":          ":2:1",
		"MPC_MPC_ENV=1\nMPC_ENV MPC_ENV=x":  "",
		"mpc_env=x":                         "",
		"# MPC_ENV=x":                       "",
		"MPC_ENV=x\n[launcher_config]\n":    "",
		" [mpc_node_config]\nMPC_ENV=\"x\"": "",
		"=MPC_ENV":                          "",
	} {
		got := problems(t, text, config.TEE)
		if want == "" {
			assert.NotContains(t, strings.Join(got, "\n"), ".env form", "%q", text)
			continue
		}
		place, _ := answer(t, text)
		assert.Equal(t, file+want, place, "%q", text)
	}
}
