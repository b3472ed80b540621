package registry_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// clock counts the time that was slept instead of sleeping it, so that delays of minutes can be
// tested.
type clock struct {
	mu    sync.Mutex
	slept time.Duration
}

func (c *clock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	c.slept += d
	c.mu.Unlock()
	// A moment, so that waiting has an order and a loop shows.
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(2 * time.Millisecond):
		return nil
	}
}

func (c *clock) Slept() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slept
}

// defaults are the settings that a user config without any has.
func defaults(c *clock) *registry.Client {
	return &registry.Client{
		Rounds: 5, Interval: 2 * time.Second, MaxDelay: time.Minute,
		Keychain: keychain{},
		Tuning:   registry.Tuning{Sleep: c.Sleep},
	}
}

// inBubble runs a test in a bubble of testing/synctest, with a network of its own: nothing that has
// to do with time depends on how busy the machine is.
func inBubble(t *testing.T, test func(t *testing.T, network *launchtest.Network)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { test(t, new(launchtest.Network)) })
}

// within are the defaults on a network in a bubble.
func within(network *launchtest.Network) *registry.Client {
	return &registry.Client{
		Rounds: 5, Interval: 2 * time.Second, MaxDelay: time.Minute,
		Keychain: keychain{},
		Tuning:   registry.Tuning{Dial: network.Dial},
	}
}

// newRegistry starts a registry that is closed with the test.
func newRegistry(t *testing.T, o launchtest.RegistryOptions) *launchtest.Registry {
	t.Helper()
	r, err := launchtest.NewRegistry(o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.Close(), "closing the registry") })
	return r
}

// threeLayers is an image whose second layer is the one that faults are for. It is built once:
// under the race detector that takes longer than most tests.
func threeLayers(t *testing.T) v1.Image {
	t.Helper()
	img, err := builtOnce()
	require.NoError(t, err)
	return img
}

var builtOnce = sync.OnceValues(func() (v1.Image, error) { return build(3<<20, 10_000_000, 100_000) })

// small is an image of two layers that fit into one part each.
func small(t *testing.T) v1.Image {
	t.Helper()
	return imageOf(t, 1000, 20_000)
}

// imageOf has layers of these sizes that are not compressed, which would take time.
func imageOf(t *testing.T, sizes ...int) v1.Image {
	t.Helper()
	img, err := build(sizes...)
	require.NoError(t, err)
	return img
}

func build(sizes ...int) (v1.Image, error) {
	layers, err := launchtest.RandomLayers(1, sizes...)
	if err != nil {
		return nil, err
	}
	return launchtest.Image(launchtest.ImageOptions{Compression: launchtest.Uncompressed, Layers: layers})
}

// push starts nothing: it stores img and returns its reference.
func push(t *testing.T, r *launchtest.Registry, img v1.Image) name.Digest {
	t.Helper()
	ref, err := r.Push("test/image", img, "latest")
	require.NoError(t, err)
	return ref
}

// pull resolves ref and reads all its layers as an engine would: with a restart where the error
// asks for one. It returns the digests of what was handed out.
func pull(ctx context.Context, p *registry.Client, ref name.Digest) (*pulled, []v1.Hash, error) {
	v, err := resolve(ctx, p, ref)
	if err != nil {
		return nil, nil, err
	}
	var all []int
	for i := range v.Layers() {
		all = append(all, i)
	}
	for {
		digests, err := read(ctx, v, all)
		if e := new(image.Error); errors.As(err, &e) && e.Restart {
			continue
		}
		return v, digests, err
	}
}

// pulled is an image and where it came from.
type pulled struct {
	*image.Verified
	source *registry.Source
}

func (p *pulled) Stats() registry.Stats { return p.source.Stats() }

func (p *pulled) Open(ctx context.Context, layers []int) *image.Stream {
	return p.Verified.Open(ctx, p.source, layers)
}

func resolve(ctx context.Context, c *registry.Client, ref name.Digest) (*pulled, error) {
	source := c.Source(ref)
	v, err := source.Resolve(ctx)
	return &pulled{v, source}, err
}

func read(ctx context.Context, v *pulled, layers []int) (digests []v1.Hash, err error) {
	stream := v.Open(ctx, layers)
	defer func() { err = errors.Join(err, stream.Close()) }()
	for {
		r, err := stream.Next()
		if errors.Is(err, io.EOF) {
			return digests, nil
		}
		if err != nil {
			return digests, err
		}
		h, _, err := v1.SHA256(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return digests, err
		}
		digests = append(digests, h)
	}
}

// requireLayers checks what was handed out against the image it has to be.
func requireLayers(t *testing.T, img v1.Image, digests []v1.Hash) {
	t.Helper()
	layers, err := img.Layers()
	require.NoError(t, err)
	require.Len(t, digests, len(layers))
	for i := range layers {
		require.Equal(t, layerDigest(t, img, i), digests[i], "digest of what was handed out as layer %d", i)
	}
}

// layerDigest returns the digest of one layer of img.
func layerDigest(t *testing.T, img v1.Image, i int) v1.Hash {
	t.Helper()
	layers, err := img.Layers()
	require.NoError(t, err)
	h, err := layers[i].Digest()
	require.NoError(t, err)
	return h
}

// requireError returns err as the one typed error of this package, of this kind.
func requireError(t *testing.T, err error, kind image.Kind) *image.Error {
	t.Helper()
	e := new(image.Error)
	require.ErrorAs(t, err, &e)
	require.Equal(t, kind, e.Kind, "kind of %q", err)
	return e
}

// at is ref on another host.
func at(t *testing.T, host string, ref name.Digest) name.Digest {
	t.Helper()
	moved, err := name.NewDigest(host + "/" + ref.RepositoryStr() + "@" + ref.DigestStr())
	require.NoError(t, err)
	return moved
}
