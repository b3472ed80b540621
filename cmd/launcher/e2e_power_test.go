//go:build e2e

package main_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
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

// started waits until a workload was started with this data volume so many times, and has read its
// config.
func (m *machine) started(e *ownEngine, times int) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("start %d", times), func() bool { return m.starts(e) >= times })
	assert.Equal(m.t, times, m.starts(e), "something ran that shouldn't have")
}

// quiet requires that an engine that has just come up started nothing: with what it starts by
// itself it is done before it answers.
func (m *machine) quiet(e *ownEngine, starts int) {
	m.t.Helper()
	assert.Empty(m.t, e.startedByItself())
	m.nothingRuns()
	assert.Equal(m.t, starts, m.starts(e), "a workload ran before anything was measured")
	m.unmeasured()
}

// startedByItself returns the names of the containers that the engine has started since it came up.
func (e *ownEngine) startedByItself() []string {
	e.t.Helper()
	log, err := os.ReadFile(filepath.Join(e.dir, "log"))
	require.NoError(e.t, err)
	require.Contains(e.t, string(log[e.logged:]), "Loading containers: done.", "it may start more")
	var names []string
	for _, event := range e.events(url.Values{
		"filters": {`{"type":["container"],"event":["start"]}`},
		"since":   {"0"}, "until": {strconv.FormatInt(time.Now().Unix()+1, 10)},
	}) {
		names = append(names, event.Actor.Attributes["name"])
	}
	return names
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
	t.Parallel()
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
	m.started(e, 1)

	t.Run("the plug is pulled", func(t *testing.T) {
		e.cut()
		p.kill()
		m.agent.Reboot()
		e.start()
		m.quiet(e, 1)

		stubborn(true)
		p = m.start()
		o := p.settle()
		require.True(t, o.stays, "%s", o.stderr)
		m.measured(m.digests[0])
		m.started(e, 2)
	})
	t.Run("an orderly stop, and an upgrade", func(t *testing.T) {
		p.kill()
		e.stop()
		m.agent.Reboot()
		e.start()
		m.quiet(e, 2)

		stubborn(false)
		m.approve(m.digests[1], m.digests[0])
		p = m.start()
		o := p.settle()
		require.True(t, o.stays, "%s", o.stderr)
		m.measured(m.digests[1])
		m.started(e, 3)
	})
	t.Run("a launcher that outlives its engine", func(t *testing.T) {
		before := m.workload()
		for i, down := range []func(){e.stop, e.cut} {
			down()
			e.start()
			p.until("it starts the workload", func() bool {
				report := p.workloadReport()
				return report.Restarts == 1+i && report.Status == "running"
			})
			m.started(e, 4+i)
		}
		assert.Equal(t, before.ID, m.workload().ID)
		m.measured(m.digests[1])

		o := p.terminate()
		assert.Equal(t, exit.OK, o.code, "%s", o.stderr)
		assert.Equal(t, "exited", m.workload().Status)
		assert.Equal(t, launch.Status("done"), o.status("supervise"))
	})
	var starts int
	t.Run("the hole without supervision", func(t *testing.T) {
		m.agent.Reboot()
		starts = 5
		for i, down := range []func(){e.cut, e.stop} {
			stubborn(i == 1)
			m.approve(m.digests[1], m.digests[0])
			o := m.mustBoot("--supervise=off")
			require.False(t, o.stays)
			assert.Contains(t, o.stderr, "level=WARN")
			m.measured(m.digests[1])
			starts++
			m.started(e, starts)

			down()
			m.agent.Reboot()
			e.start()
			assert.Equal(t, []string{compose.Name}, e.startedByItself(), "the hole is closed?")
			starts++
			m.started(e, starts)
			assert.Equal(t, "running", m.workload().Status)
			m.unmeasured()

			stubborn(false)
			m.approve(m.digests[0])
			p = m.start()
			o = p.settle()
			require.True(t, o.stays, "%s", o.stderr)
			m.measured(m.digests[0])
			assert.Equal(t, "no", m.workload().RestartPolicy)
			starts++
			m.started(e, starts)
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
			starts++
			m.started(e, starts)
			p.kill()
			name := compose.Name
			if project == compose.Name {
				name = "somehow_mpc-node_1"
			}
			m.leftover(name, project)
			starts++
			m.started(e, starts)

			e.cut()
			m.agent.Reboot()
			e.start()
			assert.Equal(t, []string{name}, e.startedByItself())
			starts++
			m.started(e, starts)

			p = m.start()
			o = p.settle()
			require.True(t, o.stays, "%s", o.stderr)
			m.measured(m.digests[0])
			c := m.workload()
			assert.Equal(t, "running", c.Status)
			assert.Equal(t, compose.Name, c.Labels[compose.ProjectLabel])
			starts++
			m.started(e, starts) // volumes stay
			containers, err := m.engine.Containers(t.Context())
			require.NoError(t, err)
			assert.Len(t, containers, 2, "what was left is gone; one holds the volumes")
			p.kill()
		}
	})
}
