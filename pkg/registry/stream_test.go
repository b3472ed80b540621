package registry_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// TestOrder asks for layers in any order, some twice, in parts of odd sizes, by readers of every
// kind.
func TestOrder(t *testing.T) {
	t.Parallel()
	img := imageOf(t, 1, 100_000, 3000, 50_000)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	for _, rangeSize := range []int64{997, 4096, 100_000, 1 << 20} {
		p := defaults(new(clock))
		p.Tuning.RangeSize = rangeSize
		v, err := resolve(t.Context(), p, ref)
		require.NoError(t, err)
		order := []int{3, 1, 1, 0, 2, 3}
		stream := v.Open(t.Context(), order)
		for n, i := range order {
			layer, err := stream.Next()
			require.NoError(t, err)
			reader := io.Reader(layer)
			switch n {
			case 0:
				reader = iotest.OneByteReader(layer)
			case 1:
				reader = iotest.HalfReader(layer)
			}
			h, size, err := v1.SHA256(reader)
			require.NoError(t, err)
			assert.Equal(t, layerDigest(t, img, i), h)
			assert.Equal(t, v.Layers()[i].Size, size)
			n, err := layer.Read(make([]byte, 1))
			assert.Zero(t, n)
			assert.ErrorIs(t, err, io.EOF)
			assert.NoError(t, layer.Close())
		}
		_, err = stream.Next()
		assert.ErrorIs(t, err, io.EOF)
		assert.NoError(t, stream.Close())
	}
}

// TestMisuse has every use that Stream doesn't allow end in an error.
func TestMisuse(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	v, err := resolve(t.Context(), defaults(new(clock)), push(t, r, img))
	require.NoError(t, err)

	for _, bad := range [][]int{{-1}, {3}, {0, 99}} {
		stream := v.Open(t.Context(), bad)
		_, err = stream.Next()
		assert.Error(t, err, "layers %v", bad)
		assert.NoError(t, stream.Close())
	}
	stream := v.Open(t.Context(), nil)
	_, err = stream.Next()
	assert.ErrorIs(t, err, io.EOF, "no layers")
	assert.NoError(t, stream.Close())

	stream = v.Open(t.Context(), []int{0, 1})
	layer, err := stream.Next()
	require.NoError(t, err)
	_, err = io.ReadFull(layer, make([]byte, 1000))
	require.NoError(t, err)
	_, err = stream.Next()
	assert.Error(t, err, "the next layer before the end of this one")
	assert.Error(t, layer.Close(), "a layer that wasn't read to its end isn't proved")
	require.NoError(t, stream.Close())
	_, err = layer.Read(make([]byte, 10))
	assert.Error(t, err, "reading from a closed stream")
	_, err = stream.Next()
	assert.Error(t, err, "the next layer of a closed stream")
	assert.NoError(t, stream.Close(), "closing twice")
}

// TestCloseEndsEverything closes a stream that somebody reads from, at any time, and looks for
// goroutines afterwards. It is not parallel, so that no other test has a bubble meanwhile.
func TestCloseEndsEverything(t *testing.T) {
	img := threeLayers(t)
	synctest.Test(t, func(t *testing.T) {
		network := new(launchtest.Network)
		r := newRegistry(t, launchtest.RegistryOptions{Network: network, Rate: 20_000_000})
		synctest.Wait()
		before := inBubbles()
		v, err := resolve(t.Context(), within(network), push(t, r, img))
		require.NoError(t, err)
		for n := range 30 {
			stream := v.Open(t.Context(), []int{0, 1, 2})
			ended := make(chan error)
			go func() {
				for {
					layer, err := stream.Next()
					if err == nil {
						_, err = io.Copy(io.Discard, layer)
					}
					if err != nil {
						ended <- err
						return
					}
				}
			}()
			<-time.After(time.Duration(n) * 3 * time.Millisecond)
			require.NoError(t, stream.Close())
			assert.Error(t, <-ended)
		}
		<-time.After(time.Minute) // connections are kept for a while
		synctest.Wait()
		assert.LessOrEqual(t, inBubbles(), before, "goroutines")
	})
}

// inBubbles counts the goroutines in bubbles.
func inBubbles() int {
	stacks := make([]byte, 8<<20)
	return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("synctest bubble"))
}

// TestSlowReader asserts that a reader that takes its time is no stall, and that nothing is fetched
// beyond the buffers.
func TestSlowReader(t *testing.T) {
	img := threeLayers(t)
	for _, noRanges := range []bool{false, true} {
		t.Run(fmt.Sprintf("no ranges: %t", noRanges), func(t *testing.T) {
			inBubble(t, func(t *testing.T, network *launchtest.Network) {
				r := newRegistry(t, launchtest.RegistryOptions{Network: network, NoRanges: noRanges})
				p := within(network)
				p.Tuning.Workers, p.Tuning.RangeSize = 2, 500_000
				v, err := resolve(t.Context(), p, push(t, r, img))
				require.NoError(t, err)
				stream := v.Open(t.Context(), []int{1})
				defer stream.Close()
				<-time.After(time.Minute)
				assert.Equal(t, int64(4*500_000), v.Stats().Fetched, "fetched ahead of the reader")
				layer, err := stream.Next()
				require.NoError(t, err)
				_, err = io.ReadFull(layer, make([]byte, 3_000_000))
				require.NoError(t, err)
				<-time.After(time.Minute)
				_, err = io.Copy(io.Discard, layer)
				require.NoError(t, err)
				require.NoError(t, layer.Close())
				assert.Zero(t, v.Stats().Resumes, "resumes")
			})
		})
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	p := defaults(new(clock))
	grown := make(chan int64, 1<<16)
	p.Progress = func(n int64) { grown <- n }
	v, _, err := pull(t.Context(), p, push(t, r, img))
	require.NoError(t, err)
	close(grown)
	var sum int64
	for n := range grown {
		sum += n
	}
	assert.Equal(t, v.Size(), sum)
	assert.Equal(t, v.Size(), v.Stats().Fetched)
}

func TestPlain(t *testing.T) {
	t.Parallel()
	layers, err := launchtest.RandomLayers(1, 0, 3_000_000, 64<<10, 64<<10-1)
	require.NoError(t, err)
	for name, o := range map[string]launchtest.ImageOptions{
		"gzip": {}, "zstd": {OCI: true, Compression: launchtest.Zstd}, "none": {Compression: launchtest.Uncompressed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Layers = layers
			img, err := launchtest.Image(o)
			require.NoError(t, err)
			r := newRegistry(t, launchtest.RegistryOptions{})
			v, err := resolve(t.Context(), defaults(new(clock)), push(t, r, img))
			require.NoError(t, err)
			stream := v.Open(t.Context(), []int{0, 1, 2, 3})
			defer stream.Close()
			for i, want := range layers {
				layer, err := stream.NextPlain()
				require.NoError(t, err)
				got, err := io.ReadAll(layer)
				require.NoError(t, err)
				assert.True(t, bytes.Equal(want, got), "bytes of layer %d", i)
				assert.Equal(t, digest.Of(got), v.Layers()[i].DiffID)
				assert.NoError(t, layer.Close())
			}
			_, err = stream.NextPlain()
			assert.ErrorIs(t, err, io.EOF)
		})
	}
}

// layer is one layer of an image that no tool would build.
type layer struct {
	mediaType types.MediaType
	content   []byte // in the registry
	diffID    digest.Digest
}

// publish stores an image of such layers, whose manifest and config are right.
func publish(t *testing.T, r *launchtest.Registry, layers ...layer) *pulled {
	t.Helper()
	config := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, l := range layers {
		h, err := r.PushBlob("test/odd", l.content)
		require.NoError(t, err)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, image.Hash(l.diffID))
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: l.mediaType, Size: int64(len(l.content)), Digest: h})
	}
	raw, err := json.Marshal(config)
	require.NoError(t, err)
	h, err := r.PushBlob("test/odd", raw)
	require.NoError(t, err)
	manifest.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(raw)), Digest: h}
	raw, err = json.Marshal(manifest)
	require.NoError(t, err)
	ref, err := r.PushManifest("test/odd", raw)
	require.NoError(t, err)
	v, err := resolve(t.Context(), defaults(new(clock)), ref)
	require.NoError(t, err)
	return v
}

func gzipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = w.Write(content)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func zstandard(t *testing.T, content []byte, options ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, options...)
	require.NoError(t, err)
	_, err = w.Write(content)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

// TestPlainRefuses unpacks layers whose digest is right and whose tar is not what the config says.
func TestPlainRefuses(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("tar"), 50_000)
	right, wrong := digest.Of(content), digest.Of([]byte("something else"))
	zeros := make([]byte, 1<<20)
	var bomb bytes.Buffer
	w, err := zstd.NewWriter(&bomb)
	require.NoError(t, err)
	for range 200 {
		_, err := w.Write(zeros)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.Less(t, bomb.Len(), 60_000, "size of the bomb")
	for name, c := range map[string]struct {
		layer layer
		want  string
	}{
		"another tar":           {layer{types.OCILayer, gzipped(t, content), wrong}, "diffID"},
		"another tar, zstd":     {layer{types.OCILayerZStd, zstandard(t, content), wrong}, "diffID"},
		"another tar, plain":    {layer{types.OCIUncompressedLayer, content, wrong}, "diffID"},
		"cut gzip":              {layer{types.OCILayer, gzipped(t, content)[:200], right}, "unpacking"},
		"cut zstd":              {layer{types.OCILayerZStd, zstandard(t, content)[:15], right}, "unpacking"},
		"bzip2":                 {layer{types.OCILayer, []byte("BZh91AY&SY"), right}, "bzip2"},
		"xz":                    {layer{types.OCILayer, []byte("\xfd7zXZ\x00"), right}, "xz"},
		"bytes behind the gzip": {layer{types.OCILayer, append(gzipped(t, content), "garbage"...), right}, "unpacking"},
		"window of 16 MiB":      {layer{types.OCILayerZStd, zstandard(t, make([]byte, 20<<20), zstd.WithWindowSize(16<<20)), right}, "zstd window is larger than 8 MiB"},
		"bomb":                  {layer{types.OCILayerZStd, bomb.Bytes(), right}, "unpacks to more than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, launchtest.RegistryOptions{})
			v := publish(t, r, c.layer)
			stream := v.Open(t.Context(), []int{0})
			defer stream.Close()
			plain, err := stream.NextPlain()
			require.NoError(t, err)
			got, err := io.Copy(io.Discard, plain)
			kind := image.Refused // the bytes are those that were approved
			if c.want == "diffID" {
				kind = image.Mismatch
			}
			e := requireError(t, err, kind)
			assert.Contains(t, e.Error(), c.want)
			assert.False(t, e.Restart, "the image itself is wrong")
			assert.NotContains(t, strings.Join(e.Hints(), "\n"), "suspect")
			requireError(t, plain.Close(), kind)
			if c.want == "diffID" {
				assert.Less(t, got, int64(len(content)), "the last bytes stay here")
			}
		})
	}
}

// TestPlainLooksAtTheBytes: how a layer is packed shows in its bytes, whatever it is called.
func TestPlainLooksAtTheBytes(t *testing.T) {
	t.Parallel()
	content, err := launchtest.RandomLayer(7, 50_000)
	require.NoError(t, err)
	skippable := append([]byte("\x50\x2a\x4d\x18\x02\x00\x00\x00ab"), zstandard(t, content)...)
	for name, l := range map[string]layer{
		"gzip called zstd":          {types.OCILayerZStd, gzipped(t, content), digest.Of(content)},
		"gzip called tar":           {types.OCIUncompressedLayer, gzipped(t, content), digest.Of(content)},
		"zstd called gzip":          {types.OCILayer, zstandard(t, content), digest.Of(content)},
		"tar called gzip":           {types.DockerLayer, content, digest.Of(content)},
		"tar called zstd":           {types.OCILayerZStd, content, digest.Of(content)},
		"skippable frame at first":  {types.OCILayerZStd, skippable, digest.Of(content)},
		"gzip called nothing":       {"application/octet-stream", gzipped(t, content), digest.Of(content)},
		"less than any form's head": {types.OCILayer, []byte("x"), digest.Of([]byte("x"))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := publish(t, newRegistry(t, launchtest.RegistryOptions{}), l)
			stream := v.Open(t.Context(), []int{0})
			defer stream.Close()
			plain, err := stream.NextPlain()
			require.NoError(t, err)
			got, err := io.ReadAll(plain)
			require.NoError(t, err)
			assert.Equal(t, l.diffID, digest.Of(got))
			assert.NoError(t, plain.Close())
		})
	}
}

// TestPlainDamagedOnTheWay tells damage on the way from an image that is wrong.
func TestPlainDamagedOnTheWay(t *testing.T) {
	t.Parallel()
	content, err := launchtest.RandomLayer(7, 5_000_000)
	require.NoError(t, err)
	for _, after := range []int64{0, 100, 2_000_000} {
		r := newRegistry(t, launchtest.RegistryOptions{})
		v := publish(t, r, layer{types.OCILayer, gzipped(t, content), digest.Of(content)})
		r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, After: after})
		stream := v.Open(t.Context(), []int{0})
		plain, err := stream.NextPlain()
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, plain)
		assert.True(t, requireError(t, err, image.Mismatch).Restart, "damage at byte %d", after)
		assert.Error(t, plain.Close())
		require.NoError(t, stream.Close())

		stream = v.Open(t.Context(), []int{0})
		plain, err = stream.NextPlain()
		require.NoError(t, err)
		h, _, err := v1.SHA256(plain)
		require.NoError(t, err)
		assert.Equal(t, image.Hash(digest.Of(content)), h)
		assert.NoError(t, plain.Close())
		require.NoError(t, stream.Close())
	}
}
