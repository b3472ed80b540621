package launch_test

import (
	"fmt"
	"io"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/layout"
	"tee-launcher/pkg/registry"
)

// mirror starts a registry that has the first image too, and returns it and one of its layers.
func (w *world) mirror() (*launchtest.Registry, v1.Hash) {
	w.t.Helper()
	mirror, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(w.t, err)
	w.t.Cleanup(func() { assert.NoError(w.t, mirror.Close()) })
	ref, err := name.NewDigest(fmt.Sprintf("%s/%s@%s", w.Registry.Host(), launchtest.Repository, w.Digests[0]))
	require.NoError(w.t, err)
	source := new(registry.Client).Source(ref)
	v, err := source.Resolve(w.t.Context())
	require.NoError(w.t, err)
	push := func(data []byte) v1.Hash {
		hash, err := mirror.PushBlob(launchtest.Repository, data)
		require.NoError(w.t, err)
		return hash
	}
	_, err = mirror.PushManifest(launchtest.Repository, v.Manifest())
	require.NoError(w.t, err)
	push(v.Config())
	all := []int{}
	for i := range v.Layers() {
		all = append(all, i)
	}
	stream := v.Open(w.t.Context(), source, all)
	var first v1.Hash
	for i := range all {
		layer, err := stream.Next()
		require.NoError(w.t, err)
		data, err := io.ReadAll(layer)
		require.NoError(w.t, err)
		if hash := push(data); i == 0 {
			first = hash
		}
	}
	require.NoError(w.t, stream.Close())
	return mirror, first
}

// layout writes an image of the registry into the layout in a directory.
func (w *world) layout(dir string, of digest.Digest) {
	w.t.Helper()
	ref, err := name.NewDigest(fmt.Sprintf("%s/%s@%s", w.Registry.Host(), launchtest.Repository, of))
	require.NoError(w.t, err)
	source := new(registry.Client).Source(ref)
	v, err := source.Resolve(w.t.Context())
	require.NoError(w.t, err)
	require.NoError(w.t, layout.Write(w.t.Context(), dir, v, source))
}

func from(mirrors ...*launchtest.Registry) (lines string) {
	for _, m := range mirrors {
		lines += fmt.Sprintf("[[launcher_config.sources]]\nregistry = \"http://%s\"\n", m.Host())
	}
	return lines
}

// TestSourcesAreReadAnew: the registry is away, and while the launcher waits somebody writes another
// source into the user config. One that lies before it is told in the report.
func TestSourcesAreReadAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	liar, layer := w.mirror()
	whole, _ := w.mirror()
	liar.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layer, Times: -1})
	require.NoError(t, w.Registry.Stop())
	l := w.attempts(func(failed int) {
		if failed == 1 {
			w.configure(from(liar, whole))
		}
	})
	require.Len(t, l.failures(), 1, "%q", l.messages())
	w.accepted(w.Digests[0])
	report := w.report()
	assert.Equal(t, []string{"http://" + liar.Host()}, report.Pull.Liars)
	assert.Equal(t, "http://"+whole.Host(), report.Pull.Source)
	assert.Empty(t, w.Registry.Unexpected())
}
