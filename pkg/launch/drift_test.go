package launch_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
)

// TestAContainerThatDeviatesIsMadeAnew: outside a CVM, and where its image is measured in this boot.
func TestAContainerThatDeviatesIsMadeAnew(t *testing.T) {
	t.Parallel()
	for _, platform := range []config.Platform{config.TEE, config.NONTEE} {
		w := newWorld(t, options{platform: platform})
		w.mustBoot()
		id := w.workload().ID
		w.mustBoot()
		assert.Equal(t, id, w.workload().ID, "an unchanged container is reused")

		require.NoError(t, w.Engine.Alter("mpc-node", "PidMode", "host"))
		w.mustBoot()
		assert.NotEqual(t, id, w.workload().ID, "%s", platform)
		assert.Equal(t, "running", w.status())
		assert.NotContains(t, strings.Join(w.seen(), "\n"), "volume-remove")
		emits := 0
		if platform == config.TEE {
			emits = 1
		}
		assert.Equal(t, emits, w.Agent.Emits())
	}
}

// TestAContainerThatIsChangedMeanwhileIsNotStarted, and a further run has another one.
func TestAContainerThatIsChangedMeanwhileIsNotStarted(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"measure", "start"} {
		w := newWorld(t, options{})
		w.onLine = func(message string) {
			if message == "step started "+step {
				require.NoError(t, w.Engine.Alter("mpc-node", "CapAdd", []string{"ALL"}))
			}
		}
		assert.Equal(t, exit.Workload, w.boot(), step)
		assert.Contains(t, w.stderr, `HostConfig.CapAdd: got ["ALL"], want nothing`)
		assert.Contains(t, w.stderr, "hint: start the launcher again")
		assert.NotContains(t, w.seen(), "start mpc-node")
		w.onLine = nil
		w.mustBoot()
		w.accepted(w.Digests[0])
		assert.Equal(t, "running", w.status())
	}
}

// TestWhatEveryContainerHasIsNoReasonToTryAgain: the next one would be like it.
func TestWhatEveryContainerHasIsNoReasonToTryAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.onLine = func(message string) {
		if message == "step started create" {
			w.Engine.Adds("Init", true)
		}
	}
	assert.Equal(t, exit.Workload, w.boot())
	assert.Contains(t, w.stderr, "HostConfig.Init: got true, want nothing")
	assert.Contains(t, w.stderr, "hint: that was not asked for")
	assert.Zero(t, w.Agent.Emits())
}
