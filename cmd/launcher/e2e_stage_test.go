//go:build e2e

package main_test

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/stage"
)

// atOnce has a launcher stage without any wait.
var atOnce = []string{"--stage-after=0s", "--stage-delay=0s", "--stage-rate=0"}

// supervise starts a launcher that stages at once, and waits until it supervises.
func (m *machine) supervise(args ...string) *process {
	m.t.Helper()
	p := m.start(append(args, atOnce...)...)
	o := p.settle()
	require.True(m.t, o.stays, "%s", o.stderr)
	return p
}

// again kills a launcher and starts another one, which takes the workload over and looks at the list at
// once: the first would do so within a minute.
func (p *process) again(newest ...v1.Hash) *process {
	p.m.t.Helper()
	p.kill()
	p.m.approve(newest...)
	return p.m.supervise()
}

// stages waits for what the report says of staging.
func (p *process) stages(state stage.State) launch.StagedReport {
	p.m.t.Helper()
	var s launch.StagedReport
	p.until("it is "+string(state), func() bool {
		report, ok := p.report()
		if !ok || report.Staged == nil {
			return false
		}
		s = *report.Staged
		return s.State == state
	})
	return s
}

// pruned has somebody prune images and volumes, as dstack does at boot, until end is called.
func (m *machine) pruned() (end func()) {
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for {
			m.call("POST", `/images/prune?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D`, nil, nil)
			m.call("POST", "/volumes/prune", nil, nil)
			select {
			case <-done:
				return
			default:
			}
		}
	})
	return func() { close(done); work.Wait() }
}

// has reports whether the engine has an image. Some fail to list images while one is being removed.
func (e *ownEngine) has(image string) bool {
	e.t.Helper()
	answer, err := e.client().Get("http://docker/images/" + image + "/json")
	require.NoError(e.t, err)
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// peakKiB is what a process has held in memory at most.
func peakKiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	match := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, match)
	n, err := strconv.Atoi(string(match[1]))
	require.NoError(t, err)
	t.Logf("peak: %d KiB", n)
	return n
}

// TestE2EStagesTheNextImage: a new version runs after a reboot without a request to the registry, which is
// away by then, whatever was pruned and however the machine went down.
func TestE2EStagesTheNextImage(t *testing.T) {
	t.Parallel()
	e := newOwnEngine(t, false)
	m := machineOn(t, "TEE", e.host())
	down := map[string]func(p *process){
		"a power cut": func(p *process) { e.cut(); p.kill() },
		"an orderly end": func(p *process) {
			o := p.terminate()
			assert.Equal(t, exit.OK, o.code, "%s", o.stderr)
			e.stop()
		},
	}
	m.approve(m.digests[0])
	p := m.supervise()
	m.measured(m.digests[0])

	for i, how := range []string{"a power cut", "an orderly end"} {
		next, now := m.digests[1-i%2], m.digests[i%2]
		t.Run(how, func(t *testing.T) {
			workload := m.workload()
			p = p.again(next, now)
			staged := p.stages(stage.Staged)
			assert.Equal(t, next.String(), staged.Digest.String())
			assert.Nil(t, staged.Error)
			holder, err := m.engine.Container(t.Context(), compose.Staged)
			require.NoError(t, err)
			assert.Equal(t, "created", holder.Status)
			assert.Zero(t, holder.StartedAt)
			assert.Equal(t, "no", holder.RestartPolicy)
			assert.Equal(t, "none", holder.Settings["HostConfig.NetworkMode"])
			for _, mount := range holder.Mounts {
				assert.Equal(t, "tmpfs", mount.Type)
			}
			assert.Equal(t, workload.StartedAt, m.workload().StartedAt, "the workload was touched")

			require.NoError(t, m.registry.Stop())
			end := m.pruned()
			verified := m.start("verify").settle()
			assert.Equal(t, exit.OK, verified.code, "%s", verified.stdout)
			assert.Contains(t, verified.stdout, "in the engine already, staged")
			end()
			requests := len(m.registry.Requests())
			down[how](p)
			m.agent.Reboot()
			e.start()
			end = m.pruned()
			p = m.supervise()
			end()
			m.measured(next)
			report, _ := p.report()
			assert.Equal(t, "engine", report.Pull.Source)
			assert.Zero(t, report.Pull.Requests)
			assert.Len(t, m.registry.Requests(), requests)
			assert.Equal(t, holder.Image, m.workload().Image)
			_, err = m.engine.Container(t.Context(), compose.Staged)
			assert.True(t, inspect.NotFound(err), "it has done its duty: %v", err)
			require.NoError(t, m.registry.Start())
		})
	}

	t.Run("what can't be pulled", func(t *testing.T) {
		wrong := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
		p = p.again(wrong, m.digests[0])
		s := p.stages(stage.Failed)
		assert.Equal(t, wrong.String(), s.Digest.String())
		require.NotNil(t, s.Error)
		assert.Equal(t, exit.Refused, m.start("verify").settle().code)
		assert.Equal(t, "running", m.workload().Status)
	})
	t.Run("the list goes back", func(t *testing.T) {
		m.pruned()()
		p = p.again(m.digests[1], m.digests[0])
		p.stages(stage.Staged)
		holder, err := m.engine.Container(t.Context(), compose.Staged)
		require.NoError(t, err)
		require.True(t, e.has(holder.Image))
		p = p.again(m.digests[0])
		p.until("what was staged goes", func() bool {
			_, err := m.engine.Container(t.Context(), compose.Staged+"-pending")
			return !e.has(holder.Image) && inspect.NotFound(err)
		})
		_, err = m.engine.Container(t.Context(), compose.Staged)
		assert.True(t, inspect.NotFound(err), "%v", err)
		assert.Equal(t, "running", m.workload().Status)
		report, _ := p.report()
		assert.Nil(t, report.Staged)
	})
	t.Run("a large image", func(t *testing.T) {
		node, err := launchtest.NodeImage(t.Context(), "go")
		require.NoError(t, err)
		for seed := range uint64(4) {
			layers, err := launchtest.RandomLayers(100+seed, 30<<20)
			require.NoError(t, err)
			part, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
			require.NoError(t, err)
			more, err := part.Layers()
			require.NoError(t, err)
			node, err = mutate.AppendLayers(node, more...)
			require.NoError(t, err)
		}
		ref, err := m.registry.Push("nearone/mpc-node", node)
		require.NoError(t, err)
		large, err := v1.NewHash(ref.DigestStr())
		require.NoError(t, err)
		p = p.again(large, m.digests[0])
		p.stages(stage.Staged)
		assert.LessOrEqual(t, peakKiB(t, p.cmd.Process.Pid), 64<<10, "while it stages")
		p.until("it gives its memory back", func() bool { return residentKiB(t, p.cmd.Process.Pid) <= 20<<10 })
	})
	t.Run("killed while it loads", func(t *testing.T) {
		p.kill()
		m.approve(m.digests[1], m.digests[0])
		p = m.start("--stage-after=0s", "--stage-delay=0s", "--stage-rate=100kB")
		p.until("it loads", func() bool {
			_, err := m.engine.Container(t.Context(), compose.Staged+"-pending")
			return err == nil
		})
		p = p.again(m.digests[1], m.digests[0])
		p.stages(stage.Staged)
		assert.Equal(t, "running", m.workload().Status)
	})
	t.Run("a signal while it loads", func(t *testing.T) {
		p = p.again(m.digests[0])
		p.until("what was staged goes", func() bool {
			_, err := m.engine.Container(t.Context(), compose.Staged+"-pending")
			_, held := m.engine.Container(t.Context(), compose.Staged)
			return inspect.NotFound(err) && inspect.NotFound(held)
		})
		p.kill()
		m.approve(m.digests[1], m.digests[0])
		p = m.start("--stage-after=0s", "--stage-delay=0s", "--stage-rate=100kB")
		p.until("it loads", func() bool {
			_, err := m.engine.Container(t.Context(), compose.Staged+"-pending")
			return err == nil
		})
		o := p.terminate()
		assert.Equal(t, exit.OK, o.code, "%s", o.stderr)
		assert.Equal(t, "exited", m.workload().Status)
	})
}
