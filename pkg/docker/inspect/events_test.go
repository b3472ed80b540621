package inspect_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// TestAStreamOfEventsBegins, or it is an error: whoever waits for events must not wait for their beginning.
func TestAStreamOfEventsBegins(t *testing.T) {
	t.Parallel()
	double, err := launchtest.NewEngine(filepath.Join(t.TempDir(), "docker.sock"), launchtest.EngineOptions{})
	require.NoError(t, err)
	defer double.Close()
	engine, err := inspect.New(double.Host())
	require.NoError(t, err)
	double.Fail(launchtest.EngineFault{Match: "GET /events", Hang: true})
	engine.Patience = 10 * time.Millisecond
	_, err = engine.Watch(t.Context(), "mpc-node")
	assert.Equal(t, exit.Engine, exit.Of(err))
	assert.ErrorContains(t, err, "no answer within 10ms")

	engine.Patience = 0
	happened, err := engine.Watch(t.Context(), "mpc-node")
	require.NoError(t, err)
	require.NoError(t, double.Stop(true))
	for range happened { // it closes when the engine ends
	}
}
