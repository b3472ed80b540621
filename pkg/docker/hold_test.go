package docker_test

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/launchtest"
)

// TestAHolderLeavesNothing but the volumes with a name, whatever the image declares.
func TestAHolderLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	declared := map[string]struct{}{"/data": {}, "/a//b/": {}, "/": {}, "relative": {}}
	v := b.push(launchtest.ImageOptions{Config: v1.Config{Volumes: declared}}, []uint64{1}, 1000)
	loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
	require.NoError(t, err)
	engine, err := docker.New(b.double.Host())
	require.NoError(t, err)
	id, err := engine.Hold(t.Context(), "holds", loaded.ID, []string{"shared", "keys"}, declared)
	require.NoError(t, err)
	for _, c := range b.double.Containers() {
		for _, m := range c.Mounts {
			assert.NotContains(t, []string{"/data", "/a/b"}, m.Destination, "a volume without a name")
		}
	}
	// Of one that an earlier launcher made, and of what can't be covered.
	_, err = b.double.Call("POST", "/containers/create?name=old", map[string]any{"Image": loaded.ID.String(), "Cmd": []string{"x"}})
	require.NoError(t, err)
	assert.Greater(t, len(b.double.Volumes()), 2)
	for _, c := range []string{id, "old", "old"} {
		require.NoError(t, engine.Discard(t.Context(), c))
	}
	assert.Equal(t, []string{"keys", "shared"}, b.double.Volumes())
	assert.Empty(t, b.double.Containers())
}
