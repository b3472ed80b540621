package image_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// proveOdd proves an odd image from its own bytes.
func proveOdd(t *testing.T, o launchtest.OddImage, platform v1.Platform) (*image.Verified, error) {
	t.Helper()
	ref, err := name.NewDigest("registry.test/a/b@" + digest.Of(o.Root).String())
	require.NoError(t, err)
	return image.Prove(ref, platform, func(d image.Document) ([]byte, error) {
		for _, data := range append(o.Manifests, o.Blobs...) {
			if digest.Of(data) == d.Digest {
				return data, nil
			}
		}
		return nil, errors.New("nobody has this document")
	})
}

// TestOddImages: what Docker takes is taken, and what isn't is refused for a true reason: an honest
// image is never called a lie.
func TestOddImages(t *testing.T) {
	t.Parallel()
	for _, o := range launchtest.OddImages() {
		t.Run(o.Name, func(t *testing.T) {
			t.Parallel()
			v, err := proveOdd(t, o, v1.Platform{})
			for store, want := range map[image.Laxity]launchtest.Outcome{
				{Types: true, Strings: true, DockerZstd: true}: o.Classic,
				{Types: true, DockerZstd: true}:                o.Classic29,
				{DockerZstd: true}:                             o.Containerd,
				{}:                                             o.Containerd26,
			} {
				err := err
				if err == nil {
					err = v.UsableIn(store)
				}
				if want == launchtest.Taken {
					require.NoError(t, err, "%+v", store)
					continue
				}
				assert.Equal(t, exit.Code(want), exit.Of(err), "%+v: %v", store, err)
				assert.ErrorContains(t, err, o.Says)
				e := new(image.Error)
				require.ErrorAs(t, err, &e)
				hints := strings.Join(e.Hints(), "\n")
				assert.NotEmpty(t, hints)
				if want == launchtest.Refused {
					assert.NotContains(t, hints, "don't use this source", "nobody lied")
				}
			}
			if err != nil {
				assert.Nil(t, v)
				return
			}
			if o.Runs != "" {
				layer, err := launchtest.FileLayer(launchtest.File{Path: "hello", Data: []byte(o.Runs), Mode: 0o755})
				require.NoError(t, err)
				assert.Equal(t, digest.Of(layer), v.Layers()[0].DiffID, "the entry that runs")
			}
			again, err := image.Restore(v.Reference(), v1.Platform{}, v.Kept())
			require.NoError(t, err, "what is kept proves it again")
			assert.Equal(t, v.ManifestDigest(), again.ManifestDigest())
			assert.Equal(t, v.ConfigFile(), again.ConfigFile())
		})
	}
}

// TestStringsAreLists: Docker reads a command that is a string as a list of one.
func TestStringsAreLists(t *testing.T) {
	t.Parallel()
	config := strings.Replace(goodConfig, `"config":{`, `"config":{"Cmd":"/a b","Entrypoint":"/c",`, 1)
	v, err := restore(t, "", goodManifest(config), config)
	require.NoError(t, err)
	assert.Equal(t, []string{"/a b"}, v.ConfigFile().Config.Cmd)
	assert.Equal(t, []string{"/c"}, v.ConfigFile().Config.Entrypoint)
	assert.Equal(t, config, string(v.Config()), "the bytes stay")
}

// TestVariants: a processor runs its own level of amd64 and those below, and the lowest is chosen.
func TestVariants(t *testing.T) {
	t.Parallel()
	manifest := func(variant string) string {
		return strings.Replace(goodManifest(goodConfig), "{", `{"x":"`+variant+`",`, 1)
	}
	for _, c := range []struct {
		machine string
		offered []string
		want    string
		refused bool
	}{
		{machine: "v1", offered: []string{"v3", "v2", ""}, want: ""},
		{machine: "v4", offered: []string{"v3", "v2", ""}, want: ""},
		{machine: "v4", offered: []string{"v3", "v1", ""}, want: "v1"},
		{machine: "v3", offered: []string{"v3", "v2"}, want: "v2"},
		{machine: "v3", offered: []string{"v3"}, want: "v3"},
		{machine: "v2", offered: []string{"v3"}, refused: true},
		{machine: "v1", offered: []string{"v2", "v3"}, refused: true},
	} {
		var entries []string
		o := launchtest.OddImage{Blobs: [][]byte{[]byte(goodConfig)}}
		for _, v := range c.offered {
			m := manifest(v)
			o.Manifests = append(o.Manifests, []byte(m))
			entries = append(entries, fmt.Sprintf(
				`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":%d,"digest":"%s",`+
					`"platform":{"os":"linux","architecture":"amd64","variant":%q}}`, len(m), digest.Of([]byte(m)), v))
		}
		o.Root = []byte(`{"schemaVersion":2,"manifests":[` + strings.Join(entries, ",") + `]}`)
		o.Manifests = append(o.Manifests, o.Root)
		v, err := proveOdd(t, o, v1.Platform{OS: "linux", Architecture: "amd64", Variant: c.machine})
		if c.refused {
			assert.True(t, requireError(t, err, image.Refused).NoPlatform(), "%v", c)
			assert.ErrorContains(t, err, "only for linux/amd64/"+c.offered[0], "%v", c)
			continue
		}
		require.NoError(t, err, "%v", c)
		assert.Equal(t, manifest(c.want), string(v.Manifest()), "%v", c)
	}
}
