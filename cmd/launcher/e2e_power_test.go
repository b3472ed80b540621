//go:build e2e

package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
)

// starts returns how often a workload was started with this data volume, by its own count.
func (m *machine) starts(e *ownEngine) int {
	data, err := os.ReadFile(filepath.Join(e.dir, "data/volumes", compose.DataVolume, "_data/starts"))
	if err != nil {
		require.ErrorIs(m.t, err, os.ErrNotExist)
	}
	return strings.Count(string(data), "\n")
}

// quietFor requires that nothing of the workload runs for a while.
func (m *machine) quietFor(d time.Duration, e *ownEngine, starts int) {
	m.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		m.nothingRuns()
	}
	assert.Equal(m.t, starts, m.starts(e), "a workload ran before anything was measured")
	m.unmeasured()
}

// leftover replaces the workload by a container as an older launcher left it, and starts that.
func (m *machine) leftover(name, project string) {
	m.t.Helper()
	labels := map[string]string{}
	if project != "" {
		labels[compose.ProjectLabel] = project
	}
	image := m.workload().Image
	m.call("DELETE", "/containers/"+compose.Name+"?force=1", nil, nil)
	m.call("POST", "/containers/create?name="+name, map[string]any{
		"Image": image, "Labels": labels, "Cmd": []string{"/app/mpc-node", "start-with-config-file", "/mnt/shared/mpc-config.toml"},
		"HostConfig": map[string]any{
			"RestartPolicy": map[string]any{"Name": "on-failure"}, "NetworkMode": "none",
			"Binds": []string{"mpc-data:/data", "shared-volume:/mnt/shared", m.socket + ":/var/run/dstack.sock"},
		},
	}, nil)
	m.call("POST", "/containers/"+name+"/start", nil, nil)
}

// TestE2ENothingUnmeasuredRunsAfterAPowerLoss pulls the plug, and stops the daemon in an orderly way, and looks at what runs when it is
// back before any launcher was started.
func TestE2ENothingUnmeasuredRunsAfterAPowerLoss(t *testing.T) {
	e := newOwnEngine(t, false)
	m := machineOn(t, "TEE", e.host())
	// An orderly stop has to kill the workload where it is told to, and then its exit code isn't 0.
	stubborn := func(yes bool) {
		m.node = fmt.Sprintf("ignore_term = %v", yes)
		m.configure("")
	}

	p := m.start()
	o := p.settle()
	require.True(t, o.stays, "%s", o.stderr)
	m.measured(m.digests[0])
	require.Equal(t, 1, m.starts(e))

	t.Run("the plug is pulled", func(t *testing.T) {
		e.cut()
		p.kill()
		m.agent.Reboot()
		e.start()
		m.quietFor(3*time.Second, e, 1)

		stubborn(true)
		p = m.start()
		o := p.settle()
		require.True(t, o.stays, "%s", o.stderr)
		m.measured(m.digests[0])
		assert.Equal(t, 2, m.starts(e))
	})
	t.Run("an orderly stop, and an upgrade", func(t *testing.T) {
		p.kill()
		e.stop()
		m.agent.Reboot()
		e.start()
		m.quietFor(3*time.Second, e, 2)

		stubborn(false)
		m.approve(m.digests[1], m.digests[0])
		p = m.start()
		o := p.settle()
		require.True(t, o.stays, "%s", o.stderr)
		m.measured(m.digests[1])
		assert.Equal(t, 3, m.starts(e))
	})
	t.Run("a launcher that outlives its engine", func(t *testing.T) {
		before := m.workload()
		for i, down := range []func(){e.stop, e.cut} {
			down()
			e.start()
			require.Eventually(t, func() bool { return m.starts(e) == 4+i }, 20*time.Second, 50*time.Millisecond, "%s", &p.stderr)
			require.Eventually(t, func() bool {
				report, ok := p.report()
				return ok && report.Workload.Restarts == 1+i && report.Workload.Status == "running"
			}, 20*time.Second, 50*time.Millisecond)
		}
		assert.Equal(t, before.ID, m.workload().ID)
		m.measured(m.digests[1])

		began := time.Now()
		o := p.terminate()
		assert.Equal(t, exit.OK, o.code, "%s", o.stderr)
		assert.Less(t, time.Since(began), 8*time.Second)
		assert.Equal(t, "exited", m.workload().Status)
		assert.Equal(t, launch.Status("done"), o.status("supervise"))
	})
	t.Run("the hole without supervision", func(t *testing.T) {
		m.agent.Reboot()
		for i, down := range []func(){e.cut, e.stop} {
			stubborn(i == 1)
			m.approve(m.digests[1], m.digests[0])
			o := m.mustBoot("--supervise=off")
			require.False(t, o.stays)
			assert.Contains(t, o.stderr, "level=WARN")
			m.measured(m.digests[1])
			before := m.starts(e)

			down()
			m.agent.Reboot()
			e.start()
			require.Eventually(t, func() bool { return m.starts(e) == before+1 }, 20*time.Second, 50*time.Millisecond, "the hole is closed?")
			assert.Equal(t, "running", m.workload().Status)
			m.unmeasured()

			stubborn(false)
			m.approve(m.digests[0])
			p = m.start()
			o = p.settle()
			require.True(t, o.stays, "%s", o.stderr)
			m.measured(m.digests[0])
			assert.Equal(t, "no", m.workload().RestartPolicy)
			p.kill()
			m.agent.Reboot()
		}
	})
	t.Run("what the original left", func(t *testing.T) {
		for _, project := range []string{"", "tee-launcher", compose.Name} {
			m.agent.Reboot()
			p = m.start()
			o := p.settle()
			require.True(t, o.stays, "%s", o.stderr)
			p.kill()
			ran := m.starts(e)
			name := compose.Name
			if project == compose.Name {
				name = "somehow_mpc-node_1"
			}
			m.leftover(name, project)
			var before int
			require.Eventually(t, func() bool { before = m.starts(e); return before == ran+1 }, 20*time.Second, 50*time.Millisecond)

			e.cut()
			m.agent.Reboot()
			e.start()
			require.Eventually(t, func() bool { return m.starts(e) == before+1 }, 20*time.Second, 50*time.Millisecond, "project %q", project)

			p = m.start()
			o = p.settle()
			require.True(t, o.stays, "%s", o.stderr)
			m.measured(m.digests[0])
			c := m.workload()
			assert.Equal(t, "running", c.Status)
			assert.Equal(t, compose.Name, c.Labels[compose.ProjectLabel])
			assert.Equal(t, before+2, m.starts(e), "volumes stay")
			containers, err := m.engine.Containers(t.Context())
			require.NoError(t, err)
			assert.Len(t, containers, 1, "what was left is gone")
			p.kill()
		}
	})
}
