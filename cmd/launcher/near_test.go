package main_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/status"
)

// near/mpc's scripts start a node and read the launcher's log: outside a CVM the last 10 lines, in
// one the last 20, every few seconds. They wait for the line launch.Launched, and give up where a
// line that was written before it says what nearGivesUp does. The node is the one container that is
// called mpc-node.
var nearGivesUp = regexp.MustCompile(`(?i)no such image|pull.*error|fatal|exited with code`)

// TestNearsOwnChecks boots as those scripts have it done, for the first time, again and with a list,
// and reads the log as they do.
func TestNearsOwnChecks(t *testing.T) {
	t.Parallel()
	for _, platform := range []string{"TEE", "NONTEE"} {
		t.Run(platform, func(t *testing.T) {
			t.Parallel()
			m := newDoubles(t)
			text, err := os.ReadFile(m.ConfigFile)
			require.NoError(t, err)
			own := strings.Replace(string(text), "image = ", "image_reference = ", 1)
			require.NotEqual(t, string(text), own)
			require.NoError(t, os.WriteFile(m.ConfigFile, []byte(own), 0o600))
			environ := append(onMachine(m), "PLATFORM="+platform)
			boot := func(what string) {
				_, stderr, code := runUntilSupervised(t, environ)
				require.Equal(t, exit.OK, code, "%s: %s", what, stderr)
				lines := strings.SplitAfter(strings.TrimSuffix(stderr, "\n"), "\n")
				at := -1
				for i, line := range lines {
					if strings.Contains(strings.ToLower(line), "mpc launched successfully") {
						at = i
						break
					}
					assert.False(t, nearGivesUp.MatchString(line), "%s: %s", what, line)
				}
				require.GreaterOrEqual(t, at, 0, "%s: %s", what, stderr)
				assert.Equal(t, launch.Launched, strings.TrimSpace(lines[at]), "a line of its own")
				assert.LessOrEqual(t, len(lines)-at, 10, "%s: it is among the last lines: %s", what, stderr)
				before := strings.Join(lines[:at], "")
				assert.NotContains(t, before, "level=WARN", "%s: a right config of theirs", what)
				nodes := 0
				for _, c := range m.Engine.Containers() {
					if c.Name == "mpc-node" {
						nodes++
					}
				}
				assert.Equal(t, 1, nodes, what)
				for _, volume := range []string{"shared-volume", "mpc-data"} {
					assert.Contains(t, m.Engine.Volumes(), volume, "as their compose files name it")
				}
			}
			boot("first")
			boot("again")
			require.NoError(t, m.Reboot())
			require.NoError(t, m.Approve(m.Digests[1], m.Digests[0]))
			boot("with a list")
		})
	}
}

// TestNearWaitsForARegistry that fails for a moment: no line says what ends their check.
func TestNearWaitsForARegistry(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	m.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestManifest, Times: 2})
	m.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultCut, On: launchtest.RequestBlob, After: 1000})
	_, stderr, code := runUntilSupervised(t, append(onMachine(m), "PLATFORM=NONTEE"))
	require.Equal(t, exit.OK, code, "%s", stderr)
	assert.Contains(t, stderr, "trying again, attempt 2 of")
	for line := range strings.Lines(stderr) {
		assert.False(t, nearGivesUp.MatchString(line), "%s", line)
	}
}

// TestNearWaitsForABootThatTriesAgain in a CVM: their check would end at a line that says that the
// launcher won't recover.
func TestNearWaitsForABootThatTriesAgain(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]launchtest.RegistryFault{
		"the registry is down":  {Kind: launchtest.FaultStatus, On: launchtest.RequestManifest, Times: -1},
		"the registry errs":     {Kind: launchtest.FaultStatus, On: launchtest.RequestManifest, Status: 500, Times: -1},
		"the registry refuses":  {Kind: launchtest.FaultStatus, On: launchtest.RequestManifest, Status: 401, Times: -1},
		"the image isn't there": {Kind: launchtest.FaultStatus, On: launchtest.RequestManifest, Status: 404, Times: -1},
		"the registry lies":     {Kind: launchtest.FaultFlip, On: launchtest.RequestManifest, After: 40, Times: -1},
		"a layer isn't there":   {Kind: launchtest.FaultStatus, On: launchtest.RequestBlob, Status: 404, Times: -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newDoubles(t)
			m.Registry.Fail(fault)
			_, stderr, code := runUntilSupervised(t, append(onMachine(m), "PLATFORM=TEE"))
			require.NotEqual(t, exit.OK, code, "%s", stderr)
			// It was ended here, instead of trying again, and its last status says so before that.
			before, _, _ := strings.Cut(stderr, "\nerror: ")
			lines := strings.Split(before, "\n")
			require.True(t, strings.HasPrefix(lines[len(lines)-1], status.Prefix), "%s", stderr)
			again := false
			for _, line := range lines[:len(lines)-1] {
				assert.False(t, nearGivesUp.MatchString(line), "%s", line)
				again = again || strings.Contains(line, "the attempt failed, trying again")
			}
			assert.True(t, again, "%s", stderr)
		})
	}
}

// TestNearsOverrides is their check of an override, one that is approved and one that isn't, which
// reads the last 30 lines.
func TestNearsOverrides(t *testing.T) {
	t.Parallel()
	boot := func(t *testing.T, override func(m *launchtest.Machine) string) (string, exit.Code) {
		m := newDoubles(t)
		require.NoError(t, m.Approve(m.Digests[1], m.Digests[0]))
		require.NoError(t, m.Configure(`mpc_hash_override = "`+override(m)+`"`, `home_dir = "/data"`))
		_, stderr, code := runUntilSupervised(t, append(onMachine(m), "PLATFORM=TEE"))
		lines := strings.SplitAfter(stderr, "\n")
		return strings.Join(lines[max(0, len(lines)-30):], ""), code
	}
	approved := ""
	log, code := boot(t, func(m *launchtest.Machine) string { approved = m.Digests[0].String(); return approved })
	require.Equal(t, exit.OK, code, "%s", log)
	assert.Contains(t, log, "override")
	assert.Contains(t, log, strings.TrimPrefix(approved, "sha256:"))
	log, code = boot(t, func(*launchtest.Machine) string { return zeros })
	assert.Equal(t, exit.Config, code, "%s", log)
	assert.Contains(t, log, "does not match any approved")
}
