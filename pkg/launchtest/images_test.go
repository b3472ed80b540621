package launchtest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"io"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

func TestImagesAreWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	layers, err := launchtest.RandomLayers(1, 5000, 300)
	require.NoError(t, err)
	cases := []struct {
		o               launchtest.ImageOptions
		manifest, layer types.MediaType
		config          types.MediaType
	}{
		{launchtest.ImageOptions{}, types.DockerManifestSchema2, types.DockerLayer, types.DockerConfigJSON},
		{launchtest.ImageOptions{Compression: launchtest.Uncompressed},
			types.DockerManifestSchema2, types.DockerUncompressedLayer, types.DockerConfigJSON},
		{launchtest.ImageOptions{OCI: true}, types.OCIManifestSchema1, types.OCILayer, types.OCIConfigJSON},
		{launchtest.ImageOptions{OCI: true, Compression: launchtest.Zstd}, types.OCIManifestSchema1, types.OCILayerZStd, types.OCIConfigJSON},
		{launchtest.ImageOptions{OCI: true, Compression: launchtest.Uncompressed},
			types.OCIManifestSchema1, types.OCIUncompressedLayer, types.OCIConfigJSON},
	}
	for _, c := range cases {
		c.o.Layers = layers
		img, err := launchtest.Image(c.o)
		require.NoError(t, err)
		assertWhole(t, img)
		manifest, err := img.Manifest()
		require.NoError(t, err)
		assert.Equal(t, c.manifest, manifest.MediaType)
		assert.Equal(t, c.config, manifest.Config.MediaType)
		require.Len(t, manifest.Layers, 2)
		assert.Equal(t, c.layer, manifest.Layers[0].MediaType)
		assert.GreaterOrEqual(t, manifest.Layers[0].Size, int64(5000), "the content can't be compressed")
		config, err := img.ConfigFile()
		require.NoError(t, err)
		assert.Equal(t, "linux/"+runtime.GOARCH, config.Platform().String())
		assert.Len(t, config.RootFS.DiffIDs, 2)
		assert.Len(t, config.History, 2)

		again, err := launchtest.Image(c.o)
		require.NoError(t, err)
		assert.Equal(t, digestOf(t, img), digestOf(t, again), "equal options make equal images")
	}
	_, err = launchtest.Image(launchtest.ImageOptions{Compression: launchtest.Zstd})
	require.Error(t, err, "Docker's schema 2 has no zstd")
	_, err = launchtest.Image(launchtest.ImageOptions{Compression: "xz"})
	require.Error(t, err)
}

// assertWhole proves that manifest, config and layers of an image fit together.
func assertWhole(t *testing.T, img v1.Image) {
	t.Helper()
	manifest, err := img.Manifest()
	require.NoError(t, err)
	config, err := img.RawConfigFile()
	require.NoError(t, err)
	assert.Equal(t, manifest.Config.Digest, hashOf(config))
	parsed, err := img.ConfigFile()
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	require.Len(t, layers, len(manifest.Layers))
	for i, layer := range layers {
		compressed, err := layer.Compressed()
		require.NoError(t, err)
		data, err := io.ReadAll(compressed)
		require.NoError(t, err)
		assert.Equal(t, manifest.Layers[i].Digest, hashOf(data))
		assert.EqualValues(t, manifest.Layers[i].Size, len(data))
		plain, err := layer.Uncompressed()
		require.NoError(t, err)
		data, err = io.ReadAll(plain)
		require.NoError(t, err)
		assert.Equal(t, parsed.RootFS.DiffIDs[i], hashOf(data))
	}
}

func digestOf(t *testing.T, x interface{ Digest() (v1.Hash, error) }) v1.Hash {
	t.Helper()
	h, err := x.Digest()
	require.NoError(t, err)
	return h
}

func TestLayers(t *testing.T) {
	t.Parallel()
	layer, err := launchtest.FileLayer(launchtest.File{Path: "a/b/c", Data: []byte("x"), Mode: 0o755}, launchtest.File{Path: "a/d"})
	require.NoError(t, err)
	var names []string
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		names = append(names, header.Name)
	}
	assert.Equal(t, []string{"a/", "a/b/", "a/b/c", "a/d"}, names, "directories come before what they hold, once")
	assert.Equal(t, make([]byte, 1024), layer[len(layer)-1024:], "a tar has an end")

	one, err := launchtest.RandomLayer(1, 100)
	require.NoError(t, err)
	two, err := launchtest.RandomLayer(2, 100)
	require.NoError(t, err)
	assert.NotEqual(t, one, two)
}

func TestIndex(t *testing.T) {
	t.Parallel()
	var images []v1.Image
	for _, architecture := range []string{"amd64", "arm64"} {
		img, err := launchtest.Image(launchtest.ImageOptions{Platform: v1.Platform{OS: "linux", Architecture: architecture}})
		require.NoError(t, err)
		images = append(images, img)
	}
	for oci, mediaType := range map[bool]types.MediaType{true: types.OCIImageIndex, false: types.DockerManifestList} {
		index, err := launchtest.Index(launchtest.IndexOptions{OCI: oci, Images: images, Attestations: true})
		require.NoError(t, err)
		manifest, err := index.IndexManifest()
		require.NoError(t, err)
		assert.Equal(t, mediaType, manifest.MediaType)
		require.Len(t, manifest.Manifests, 4)
		assert.Equal(t, "linux/arm64", manifest.Manifests[1].Platform.String())
		assert.Equal(t, digestOf(t, images[1]), manifest.Manifests[1].Digest)
		assert.Equal(t, "unknown/unknown", manifest.Manifests[3].Platform.String())
		assert.Equal(t, digestOf(t, images[1]).String(), manifest.Manifests[3].Annotations["vnd.docker.reference.digest"])
	}
}

func TestNodeImage(t *testing.T) {
	t.Parallel()
	img, err := launchtest.NodeImage(t.Context(), "")
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 3, "several layers, so that a pull has something to do")
	compressed, err := layers[2].Compressed()
	require.NoError(t, err)
	plain, err := gzip.NewReader(compressed)
	require.NoError(t, err)
	r := tar.NewReader(plain)
	_, err = r.Next()
	require.NoError(t, err)
	header, err := r.Next()
	require.NoError(t, err)
	assert.Equal(t, "app/mpc-node", header.Name)
	assert.EqualValues(t, 0o755, header.Mode)
	program, err := io.ReadAll(r)
	require.NoError(t, err)
	file, err := elf.NewFile(bytes.NewReader(program))
	require.NoError(t, err)
	assert.Nil(t, file.Section(".interp"), "it needs nothing that the image hasn't got")

	_, err = launchtest.NodeImage(t.Context(), "/nosuch/go")
	require.Error(t, err)
}
