package launchtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Compression says how the layers of a test image are compressed.
type Compression string

// The compressions that registries hold.
const (
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd" // OCI images only
	Uncompressed Compression = "none"
)

// File is a regular file of a layer. Its directories are made as needed.
type File struct {
	Path string // relative to the root
	Data []byte
	Mode int64 // 0644 if zero
}

// must is for what can't fail because all of it is in memory.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// FileLayer returns the uncompressed tar of a layer that holds files, always the same for the same files.
func FileLayer(files ...File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{}
	for _, f := range files {
		for i, c := range f.Path {
			if dir := f.Path[:i]; c == '/' && !made[dir] {
				made[dir] = true
				err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: imageTime()})
				if err != nil {
					return nil, err
				}
			}
		}
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: mode, Size: int64(len(f.Data)), ModTime: imageTime()}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		must(w.Write(f.Data))
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// RandomLayer returns the uncompressed tar of a layer with one file of size bytes that no compression makes smaller,
// always the same for the same seed.
func RandomLayer(seed uint64, size int) ([]byte, error) {
	data := make([]byte, size)
	var key [32]byte
	binary.LittleEndian.PutUint32(key[:], uint32(seed))
	must(rand.NewChaCha8(key).Read(data))
	return FileLayer(File{Path: fmt.Sprintf("random/%d", seed), Data: data})
}

// RandomLayers returns one RandomLayer for each size; equal seeds and sizes make equal layers.
func RandomLayers(seed uint64, sizes ...int) ([][]byte, error) {
	var layers [][]byte
	for i, size := range sizes {
		layers = append(layers, must(RandomLayer(seed+uint64(i), size)))
	}
	return layers, nil
}

// ImageOptions describes a test image.
type ImageOptions struct {
	OCI         bool        // OCI media types; if not set those of Docker's schema 2
	Compression Compression // Gzip if empty
	Platform    v1.Platform // Linux on this architecture if zero
	Config      v1.Config   // entrypoint, command, labels …
	Layers      [][]byte    // uncompressed tars, the lowest first
}

// Image builds an image, always the same for the same options. What it holds stays in memory.
func Image(o ImageOptions) (v1.Image, error) {
	if o.Platform.OS == "" {
		o.Platform = hostPlatform()
	}
	mediaType, err := o.layerType()
	if err != nil {
		return nil, err
	}
	img := v1.Image(empty.Image)
	if o.OCI {
		img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	created := v1.Time{Time: imageTime()}
	img = must(mutate.ConfigFile(img, &v1.ConfigFile{
		OS: o.Platform.OS, Architecture: o.Platform.Architecture, Variant: o.Platform.Variant, OSVersion: o.Platform.OSVersion,
		Created: created, Config: o.Config, RootFS: v1.RootFS{Type: "layers"},
	}))
	for i, content := range o.Layers {
		img = must(mutate.Append(img, mutate.Addendum{
			Layer: o.layer(content, mediaType), MediaType: mediaType,
			History: v1.History{Created: created, CreatedBy: fmt.Sprintf("layer %d", i)},
		}))
	}
	return img, nil
}

func (o ImageOptions) layerType() (types.MediaType, error) {
	switch {
	case o.Compression == Zstd && o.OCI:
		return types.OCILayerZStd, nil
	case o.Compression == Uncompressed && o.OCI:
		return types.OCIUncompressedLayer, nil
	case o.Compression == Uncompressed:
		return types.DockerUncompressedLayer, nil
	case (o.Compression == Gzip || o.Compression == "") && o.OCI:
		return types.OCILayer, nil
	case o.Compression == Gzip || o.Compression == "":
		return types.DockerLayer, nil
	}
	return "", fmt.Errorf("no media type for %q layers (OCI: %t)", o.Compression, o.OCI)
}

// layer compresses once and keeps the bytes, so that nothing depends on a compressor that gives the same bytes twice.
func (o ImageOptions) layer(content []byte, mediaType types.MediaType) v1.Layer {
	var buf bytes.Buffer
	var w io.WriteCloser
	switch o.Compression {
	case Uncompressed:
		return static.NewLayer(content, mediaType)
	case Zstd:
		w = must(zstd.NewWriter(&buf, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1)))
	default:
		w = must(gzip.NewWriterLevel(&buf, gzip.BestSpeed))
	}
	must(w.Write(content))
	must(0, w.Close())
	return must(tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithMediaType(mediaType)))
}

// IndexOptions describes a test index.
type IndexOptions struct {
	OCI          bool       // an OCI index; if not set a Docker manifest list
	Images       []v1.Image // each is listed with the platform that its config names
	Attestations bool       // an attestation manifest for each image, as BuildKit adds
}

// Index builds an index.
func Index(o IndexOptions) (v1.ImageIndex, error) {
	mediaType := types.DockerManifestList
	if o.OCI {
		mediaType = types.OCIImageIndex
	}
	index := mutate.IndexMediaType(empty.Index, mediaType)
	for _, img := range o.Images {
		platform := must(img.ConfigFile()).Platform()
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	if !o.Attestations {
		return index, nil
	}
	for _, img := range o.Images {
		digest := must(img.Digest())
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: attestationFor(digest), Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{
				"vnd.docker.reference.type":   "attestation-manifest",
				"vnd.docker.reference.digest": digest.String(),
			},
		}})
	}
	return index, nil
}

func attestationFor(digest v1.Hash) v1.Image {
	statement := must(json.Marshal(map[string]any{
		"_type":   "https://in-toto.io/Statement/v0.1",
		"subject": []any{map[string]any{"name": "test", "digest": map[string]string{digest.Algorithm: digest.Hex}}},
	}))
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img = must(mutate.ConfigFile(img, &v1.ConfigFile{OS: "unknown", Architecture: "unknown", RootFS: v1.RootFS{Type: "layers"}}))
	return must(mutate.AppendLayers(img, static.NewLayer(statement, "application/vnd.in-toto+json")))
}

// NodeImage builds the program in the folder node with the Go command goTool ("go" if empty) and returns a small image
// that a real engine runs as a workload. The working directory must lie within this module.
func NodeImage(ctx context.Context, goTool string) (v1.Image, error) {
	if goTool == "" {
		goTool = "go"
	}
	dir, err := os.MkdirTemp("", "node-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "mpc-node")
	build := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", program,
		"tee-launcher/pkg/launchtest/node")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if output, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the node: %w: %s", err, strings.TrimSpace(string(output)))
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	layers := must(RandomLayers(1, 256<<10, 64<<10))
	top := must(FileLayer(File{Path: "app/mpc-node", Data: data, Mode: 0o755}))
	return Image(ImageOptions{
		Config: v1.Config{Cmd: []string{"/app/mpc-node"}, Labels: map[string]string{"org.opencontainers.image.title": "mpc-node test double"}},
		Layers: append(layers, top),
	})
}

// imageTime is the one time that stands in test images: a clock would make every build another image.
func imageTime() time.Time { return time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC) }
