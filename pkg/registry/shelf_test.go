package registry_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/layout"
	"tee-launcher/pkg/registry"
)

// staged is a directory with the layout of an image that a registry has.
func staged(t *testing.T, ref name.Digest) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	v, err := resolve(t.Context(), defaults(new(clock)), ref)
	require.NoError(t, err)
	require.NoError(t, layout.Write(t.Context(), dir, v.Verified, v.source))
	return dir
}

// TestALayoutNeedsNoNetwork: everything comes from a disk, and nobody is asked.
func TestALayoutNeedsNoNetwork(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	dir := staged(t, ref)
	require.NoError(t, os.Remove(filepath.Join(dir, "index.json")))
	require.NoError(t, r.Stop())
	asked := len(r.Requests())
	p := defaults(new(clock))
	p.Sources = []config.Source{{Layout: dir}}
	v, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	assert.Equal(t, dir, v.Stats().From)
	assert.Equal(t, v.Size(), v.Stats().Fetched)
	assert.NoError(t, v.source.CheckLayers(t.Context(), v.Verified, []int{0, 1, 2}))
	assert.Len(t, r.Requests(), asked)
	v.source.Rest()
}

// TestALayoutThatIsWrong costs at most the layer in question, and only what is whole and wrong is a
// lie: a file that is missing, or still being copied, isn't.
func TestALayoutThatIsWrong(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	for what, c := range map[string]struct {
		spoil func(path string) error
		lies  bool
	}{
		"missing": {os.Remove, false},
		"cut":     {func(path string) error { return os.Truncate(path, 5_000_000) }, false},
		"another": {func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("x"), 4_000_000)
			return err
		}, true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, launchtest.RegistryOptions{})
			ref := push(t, r, img)
			dir := staged(t, ref)
			require.NoError(t, c.spoil(filepath.Join(dir, "blobs", "sha256", layerDigest(t, img, 1).Hex)))
			p := defaults(new(clock))
			p.Sources = []config.Source{{Layout: dir}}
			v, digests, err := pull(t.Context(), p, ref)
			require.NoError(t, err)
			requireLayers(t, img, digests)
			if c.lies {
				assert.Equal(t, []string{dir}, v.Stats().Liars)
			} else {
				assert.Empty(t, v.Stats().Liars)
			}
		})
	}
}

// TestWhoAnswered: a layout that isn't there says nothing, one that lacks the image does.
func TestWhoAnswered(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, small(t))
	p := defaults(new(clock))
	p.Rounds, p.Sources = 0, []config.Source{{Layout: "/nonexistent/layout"}}
	require.NoError(t, r.Stop())
	_, err := resolve(t.Context(), p, ref)
	assert.False(t, requireError(t, err, image.Unavailable).Answered)
	p.Sources[0].Layout = emptyLayout(t)
	_, err = resolve(t.Context(), p, ref)
	assert.True(t, requireError(t, err, image.Unavailable).Answered)
	p.Sources[0].Layout = "/nonexistent/layout"
	require.NoError(t, r.Start())
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: http.StatusNotFound, On: launchtest.RequestManifest, Times: -1})
	_, err = resolve(t.Context(), p, ref)
	assert.True(t, requireError(t, err, image.Refused).Answered)
}

// TestWriteTwice adds to a layout, keeps what stands, and mends what is damaged.
func TestWriteTwice(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	dir := staged(t, ref)
	blob := filepath.Join(dir, "blobs", "sha256", layerDigest(t, img, 2).Hex)
	require.NoError(t, os.WriteFile(blob, []byte("x"), 0o600))
	v, err := resolve(t.Context(), defaults(new(clock)), ref)
	require.NoError(t, err)
	sent := v.Stats().Fetched
	require.NoError(t, layout.Write(t.Context(), dir, v.Verified, v.source))
	assert.Equal(t, sizeOf(t, img, 2), v.Stats().Fetched-sent, "only what was damaged")
	other, err := resolve(t.Context(), defaults(new(clock)), push(t, r, small(t)))
	require.NoError(t, err)
	require.NoError(t, layout.Write(t.Context(), dir, other.Verified, other.source))
	index, err := os.ReadFile(filepath.Join(dir, "index.json"))
	require.NoError(t, err)
	assert.Contains(t, string(index), ref.DigestStr())
	assert.Contains(t, string(index), other.Digest().String())
	require.NoError(t, r.Stop())
	p := &registry.Client{Sources: []config.Source{{Layout: dir}}, Tuning: registry.Tuning{Sleep: new(clock).Sleep}}
	_, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
}

// emptyLayout is one without any blob.
func emptyLayout(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755))
	return dir
}

// TestAConfigThatIsBeingCopied is no lie either, as little as a layer is.
func TestAConfigThatIsBeingCopied(t *testing.T) {
	t.Parallel()
	img := small(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	dir := staged(t, ref)
	config1, err := img.ConfigName()
	require.NoError(t, err)
	require.NoError(t, os.Truncate(filepath.Join(dir, "blobs", "sha256", config1.Hex), 10))
	p := defaults(new(clock))
	p.Sources = []config.Source{{Layout: dir}}
	v, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	assert.Empty(t, v.Stats().Liars)
}

// TestTheRateHoldsForALayout, too: unpacking is what costs the workload.
func TestTheRateHoldsForALayout(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	clock := new(clock)
	p := defaults(clock)
	p.Sources = []config.Source{{Layout: staged(t, ref)}}
	p.Rate = 1_000_000
	p.Tuning.Now = func() time.Time { return time.Unix(0, 0) } // reading takes no time
	v, _, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	assert.Positive(t, v.Stats().Fetched)
	assert.GreaterOrEqual(t, clock.Slept().Seconds(), float64(v.Stats().Fetched)/1e6-1)
}
