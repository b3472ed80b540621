package launchtest_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

// TestOddLayersAreHonest: nothing in them is a lie, except those whose names say that they are
// called another thing, cut, or followed by junk.
func TestOddLayersAreHonest(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	again := launchtest.OddLayers()
	for i, odd := range launchtest.OddLayers() {
		assert.False(t, seen[odd.Name], "%s stands there twice", odd.Name)
		seen[odd.Name] = true
		assert.NotEmpty(t, odd.Layers, odd.Name)
		assert.Equal(t, again[i], odd, "always the same")
		called := strings.Contains(odd.Name, "called") || strings.HasSuffix(odd.Name,
			"that is cut") || strings.Contains(odd.Name, "zip with") || strings.HasPrefix(odd.Name,
			"zstd with junk")
		for n, layer := range odd.Layers {
			plain, err := unpacked(layer)
			if n < len(odd.Layers)-1 || !called {
				require.NoError(t, err, "%s: layer %d", odd.Name, n)
				assert.True(t, bytes.Equal(layer.Tar, plain),
					"%s: layer %d unpacks to something else", odd.Name, n)
			}
		}
	}
	assert.Greater(t, len(seen), 120)
}

func unpacked(layer launchtest.OddLayer) ([]byte, error) {
	var r io.Reader = bytes.NewReader(layer.Blob)
	switch layer.MediaType {
	case types.OCILayer:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		r = z
	case types.OCILayerZStd:
		z, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	}
	return io.ReadAll(r)
}

// TestOddEntriesAreWhatTheySay looks at those that are made by hand.
func TestOddEntriesAreWhatTheySay(t *testing.T) {
	t.Parallel()
	headers := func(name string) (all []tar.Header) {
		for _, odd := range launchtest.OddLayers() {
			if odd.Name != name {
				continue
			}
			r := tar.NewReader(bytes.NewReader(odd.Layers[len(odd.Layers)-1].Tar))
			for {
				h, err := r.Next()
				if errors.Is(err, io.EOF) {
					return all
				}
				require.NoError(t, err, name)
				all = append(all, *h)
			}
		}
		require.Fail(t, "no such image: "+name)
		return nil
	}
	for _, name := range []string{"sparse file of GNU's old form", "sparse file of form 0.1",
		"sparse file of form 1.0"} {
		h := headers(name)
		assert.True(t, strings.HasPrefix(h[1].Name, "sparse") && strings.HasSuffix(h[1].Name, "/a"),
			"%s: %s", name, h[1].Name)
		assert.EqualValues(t, 1<<20, h[1].Size, name)
	}
	owners := headers("owners")
	assert.Equal(t, 1<<32-2, owners[len(owners)-1].Uid)
	assert.Equal(t, "charset/\xff\xfe", headers("name in another character set")[1].Name)
	assert.Len(t, headers("long names in GNU's form")[0].Name, 505)
	assert.Equal(t, "some", headers("attributes of users")[1].PAXRecords["SCHILY.xattr.user.a"])
	assert.EqualValues(t, 500, headers("times")[4].ModTime.Nanosecond())
	assert.Equal(t, byte('Z'), headers("entry of an unknown kind")[1].Typeflag)
}

func TestPushLayers(t *testing.T) {
	t.Parallel()
	r, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	defer r.Close()
	odd := launchtest.OddLayers()[0]
	ref, err := r.PushLayers("odd", odd.Layers)
	require.NoError(t, err)
	again, err := r.PushLayers("odd", odd.Layers)
	require.NoError(t, err)
	assert.Equal(t, ref, again)
	other, err := r.PushLayers("odd", launchtest.BaseLayer())
	require.NoError(t, err)
	assert.NotEqual(t, ref, other)
}
