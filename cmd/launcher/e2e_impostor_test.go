//go:build e2e

package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/state"
)

// name gives the boot that is to come a name of its own.
func (m *machine) name(boot string) {
	m.t.Helper()
	m.boots = filepath.Join(filepath.Dir(m.config), "boot_id")
	require.NoError(m.t, os.WriteFile(m.boots, []byte(boot+"\n"), 0o644))
}

// plant leaves an old workload behind that the engine starts at its own start. It emits the digest of the image that is to run next, takes the lock and
// stands in the way of our files.
func (m *machine) plant(image string) {
	m.t.Helper()
	config := fmt.Sprintf("image_hash = \"old\"\nignore_term = true\nemit = %q\n", m.digests[1].Hex)
	require.NoError(m.t, os.WriteFile(filepath.Join(m.shared, "old.toml"), []byte(config), 0o644))
	m.call("POST", "/containers/create?name="+compose.Name, map[string]any{
		"Image": image, "Cmd": []string{"/app/mpc-node", "start-with-config-file", "/mnt/shared/old.toml"},
		"HostConfig": map[string]any{
			"RestartPolicy": map[string]any{"Name": "always"}, "NetworkMode": "none",
			"Binds": []string{"mpc-data:/data", "shared-volume:/mnt/shared", m.socket + ":/var/run/dstack.sock"},
		},
	}, nil)
	m.call("POST", "/containers/"+compose.Name+"/start", nil, nil)
}

// TestE2EAnImpostor plays boots in which the engine has started an old workload before any launcher ran.
func TestE2EAnImpostor(t *testing.T) {
	e := newOwnEngine(t, false)
	m := machineOn(t, "TEE", e.host())
	m.name("boot-0")
	o := m.mustBoot()
	require.True(t, o.stays, "%s", o.stderr)
	image := m.workload().Image
	m.approve(m.digests[1], m.digests[0])
	reboot := func(boot string) {
		e.cut()
		m.agent.Reboot()
		m.name(boot)
		e.start()
	}
	locked := func() bool {
		dir, err := os.Open(m.shared)
		require.NoError(t, err)
		defer dir.Close()
		return unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
	}
	still := func() {
		t.Helper()
		containers, err := m.engine.Containers(t.Context())
		require.NoError(t, err)
		for _, c := range containers {
			assert.False(t, c.Live(), "%s is %s", c.Name, c.Status)
			assert.Equal(t, "no", c.RestartPolicy, "%s", c.Name)
		}
	}
	for _, boot := range []string{"boot-1", "boot-2"} {
		m.call("DELETE", "/containers/"+compose.Name+"?force=1", nil, nil)
		m.plant(image)
		eventually(t, "it runs", locked)
		reboot(boot)
		eventually(t, "it has measured, and holds the lock", func() bool { return strings.Contains(m.agent.TCBInfo(), m.digests[1].Hex) && locked() })
		m.measured(m.digests[1])

		assert.Equal(t, exit.Measurement, m.start("verify").settle().code)
		for _, args := range [][]string{nil, nil, {"--supervise=off"}} {
			o := m.boot(args...)
			assert.Equal(t, exit.Measurement, o.code, "%s", o.stderr)
			assert.Contains(t, o.stderr, "ran before in this boot and may have measured it")
			still()
			require.NoError(t, os.RemoveAll(filepath.Join(m.shared, state.Name)))
		}
		assert.Equal(t, exit.Measurement, m.start("verify").settle().code)
		// For the next round's own.
		m.call("POST", "/containers/create?name="+compose.Name, map[string]any{"Image": image}, nil)
	}
	m.call("DELETE", "/containers/"+compose.Name+"?force=1", nil, nil)
	starts := m.starts(e)
	reboot("boot-3")
	m.quiet(e, starts)
	assert.Equal(t, exit.OK, m.start("verify").settle().code)
	p := m.start()
	o = p.settle()
	require.True(t, o.stays, "%s", o.stderr)
	m.measured(m.digests[1])
	c := m.workload()
	assert.Equal(t, "running", c.Status)
	containers, err := m.engine.Containers(t.Context())
	require.NoError(t, err)
	for _, c := range containers {
		assert.NotContains(t, c.Name, "impostor")
	}

	// Others that somebody starts by hand leave it and its workload alone.
	for _, args := range [][]string{{"--supervise=auto"}, {"--supervise=on"}, {"--supervise=off"}, {"--platform=NONTEE"}} {
		assert.Equal(t, exit.Busy, m.boot(args...).code, "%v", args)
	}
	assert.Equal(t, exit.Config, m.boot("--shared-dir="+t.TempDir()).code)
	after := m.workload()
	assert.Equal(t, []any{c.ID, c.StartedAt, "running"}, []any{after.ID, after.StartedAt, after.Status})
	assert.Equal(t, exit.OK, p.terminate().code)
}
