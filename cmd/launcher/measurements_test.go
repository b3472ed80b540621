package main_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/rtmr"
)

// TestMeasurements holds everything that is measured, or hashed by somebody outside, to one file, and the file to the changelog: its hash
// stands in the section Measurements. Whoever changes anything of it has to say so there, in the same commit, or this fails.
//
// -update writes the file; nothing writes the changelog.
func TestMeasurements(t *testing.T) {
	path := filepath.Join("..", "..", "testdata", "measurements.txt")
	got := measurements(t)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "what is measured changed: verifiers and operators have to follow")

	changelog, err := os.ReadFile(filepath.Join("..", "..", "CHANGELOG.md"))
	require.NoError(t, err)
	section, ok := newestMeasurements(string(changelog))
	require.True(t, ok, "CHANGELOG.md has no section Measurements")
	assert.Contains(t, section, fmt.Sprintf("sha256:%x", sha256.Sum256(want)),
		"%s changed: say what and why in the newest section Measurements of CHANGELOG.md, and put its hash there", path)
}

// newestMeasurements returns the first section Measurements of the changelog.
func newestMeasurements(changelog string) (string, bool) {
	_, section, ok := strings.Cut(changelog, "\n### Measurements\n")
	section, _, _ = strings.Cut(section, "\n## ")
	section, _, _ = strings.Cut(section, "\n### ")
	return section, ok
}

func TestNewestMeasurements(t *testing.T) {
	t.Parallel()
	section, ok := newestMeasurements("# C\n\n## B\n\n- x\n\n### Measurements\n\n- b\n\n### Other\n\n- y\n\n## A\n\n### Measurements\n\n- a\n")
	assert.True(t, ok)
	assert.Equal(t, "\n- b\n", section, "that of an older release doesn't count")
	_, ok = newestMeasurements("# C\n\n## B\n\n- x\n")
	assert.False(t, ok)
}

// measurements is what outsiders see of one workload on both platforms.
func measurements(t *testing.T) string {
	var b strings.Builder
	section := func(name, content string) { fmt.Fprintf(&b, "=== %s\n%s\n", name, strings.TrimRight(content, "\n")) }
	approved, err := digest.Parse("sha256:" + strings.Repeat("0123456789abcdef", 4))
	require.NoError(t, err)
	event := rtmr.DigestV1(rtmr.EventName, approved[:])
	section("event", fmt.Sprintf("approved manifest digest %s\nregister 3\ntype     %d\nname     %s\npayload  %x\ndigest   %s",
		approved, rtmr.EventType, rtmr.EventName, approved[:], event))

	for _, p := range []config.Platform{config.TEE, config.NONTEE} {
		c, warnings, err := config.Parse("user_config", []byte(userConfig), p)
		require.NoError(t, err)
		require.Empty(t, warnings)
		node, err := c.NodeConfig(p, approved)
		require.NoError(t, err)
		section(fmt.Sprintf("node config, %s", p), string(node))

		supervised := p == config.TEE
		w := compose.Workload{Reference: c.Image.String(), Digest: approved, Supervised: supervised}
		for _, port := range c.Ports {
			w.Ports = append(w.Ports, compose.Port{Host: port.Host, Container: port.Container})
		}
		if p == config.TEE {
			w.Agent, w.Boot = compose.AgentSocket, "01234567-89ab-4cde-8f01-23456789abcd"
		}
		file, err := w.Render("sha256:" + strings.Repeat("fedcba9876543210", 4))
		require.NoError(t, err)
		section(fmt.Sprintf("compose file, %s", p), string(file))
		w.Supervised = !supervised
		file, err = w.Render("sha256:" + strings.Repeat("fedcba9876543210", 4))
		require.NoError(t, err)
		for line := range strings.Lines(string(file)) {
			if strings.Contains(line, "restart:") {
				section(fmt.Sprintf("compose file, %s, with --supervise=%s: the same but for", p, map[bool]string{true: "off", false: "on"}[supervised]), line)
			}
		}
	}

	section("user config of these", userConfig)
	var environment strings.Builder
	for row := range strings.Lines(main.Generated()["settings"]) {
		if columns := strings.Split(row, "|"); len(columns) > 3 && strings.Contains(columns[2], "`") {
			fmt.Fprintln(&environment, strings.TrimSpace(strings.ReplaceAll(columns[2], "`", "")), "default:", strings.TrimSpace(strings.ReplaceAll(columns[3], "`", "")))
		}
	}
	require.Equal(t, len(main.Settings()), strings.Count(environment.String(), "\n"))
	section("environment", environment.String())
	return b.String()
}

// userConfig has every kind of value that TOML knows.
const userConfig = `[launcher_config]
image = "nearone/mpc-node:3.10.0"
port_mappings = [{ host = 11780, container = 11780 }, { host = 24567, container = 24566 }]

[mpc_node_config]
home_dir = "/data"
quoted = "a \"b\" \\ $c\td"
"dotted.key" = 'x'
number = -1
big = 9223372036854775807
float = 1.5
whole = 2.0
truth = true
when = 2026-01-02T03:04:05Z
local = 2026-01-02T03:04:05.006
day = 2026-01-02
hour = 03:04:05
list = [1, 2, 3]
mixed = ["a", 1]

[mpc_node_config.near_init]
chain_id = "mainnet"
boot_nodes = "ed25519:x@127.0.0.1:1"

[[mpc_node_config.tables]]
a = 1

[[mpc_node_config.tables]]
b = { c = [] }
`
