package launchtest_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launchtest"
)

// sample is a test image with its parts.
type sample struct {
	repository       string
	manifest, config []byte
	layers           [][]byte
	diffIDs          []string
	mediaType        types.MediaType
}

func newSample(t *testing.T, o launchtest.ImageOptions) sample {
	t.Helper()
	img, err := launchtest.Image(o)
	require.NoError(t, err)
	s := sample{repository: "registry.example:5000/node"}
	s.manifest, err = img.RawManifest()
	require.NoError(t, err)
	s.config, err = img.RawConfigFile()
	require.NoError(t, err)
	s.mediaType, err = img.MediaType()
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	for _, layer := range layers {
		r, err := layer.Compressed()
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		s.layers = append(s.layers, data)
		diffID, err := layer.DiffID()
		require.NoError(t, err)
		s.diffIDs = append(s.diffIDs, diffID.String())
	}
	return s
}

func (s sample) man() string { return digest.Of(s.manifest).String() }
func (s sample) cfg() string { return digest.Of(s.config).String() }

// hashOf is a digest as go-containerregistry writes it.
func hashOf(data []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: digest.Of(data).Hex()} }

func (s sample) tag() string { return s.repository + ":" + strings.Replace(s.man(), ":", "-", 1) }

// relayered is the image with other bytes for its first layer, and a config that doesn't know.
func (s sample) relayered(t *testing.T, layer []byte) sample {
	t.Helper()
	manifest, err := v1.ParseManifest(bytes.NewReader(s.manifest))
	require.NoError(t, err)
	manifest.Layers[0].Digest, manifest.Layers[0].Size = hashOf(layer), int64(len(layer))
	s.manifest = marshal(t, manifest)
	s.layers = append([][]byte{layer}, s.layers[1:]...)
	return s
}

// entry is a file of a tar.
type entry struct {
	name string
	data []byte
}

func blob(data []byte) entry { return entry{blobName(data), data} }

func blobName(data []byte) string { return "blobs/sha256/" + digest.Of(data).Hex() }

func archive(t *testing.T, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.name,
			Size: int64(len(e.data)), Mode: 0o644}))
		_, err := w.Write(e.data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// hybrid is the form that loads everywhere: blobs first, the documents that name them last.
func (s sample) hybrid(t *testing.T) []entry {
	t.Helper()
	return append(s.blobs(), s.documents(t)...)
}

func (s sample) blobs() []entry {
	var entries []entry
	for _, layer := range s.layers {
		entries = append(entries, blob(layer))
	}
	return append(entries, blob(s.config), blob(s.manifest))
}

func (s sample) documents(t *testing.T) []entry {
	t.Helper()
	return append([]entry{s.dockerIndex(t, s.tag())}, s.ociIndex(t, s.repository+"@"+s.man())...)
}

func (s sample) dockerIndex(t *testing.T, tags ...string) entry {
	t.Helper()
	item := map[string]any{"Config": blobName(s.config), "RepoTags": tags}
	var layers []string
	for _, layer := range s.layers {
		layers = append(layers, blobName(layer))
	}
	item["Layers"] = layers
	return entry{"manifest.json", marshal(t, []any{item})}
}

func (s sample) ociIndex(t *testing.T, name string) []entry {
	t.Helper()
	d := v1.Descriptor{MediaType: s.mediaType, Digest: hashOf(s.manifest),
		Size: int64(len(s.manifest))}
	d.Annotations = map[string]string{"io.containerd.image.name": name}
	return []entry{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", marshal(t, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{d}})},
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return text
}

func without(entries []entry, name string) []entry {
	return slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return e.name == name })
}

func with(entries []entry, name string, data []byte) []entry {
	changed := slices.Clone(entries)
	for i := range changed {
		if changed[i].name == name {
			changed[i].data = data
		}
	}
	return changed
}
