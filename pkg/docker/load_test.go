package docker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// bench is an engine double and a registry double with one image.
type bench struct {
	t        *testing.T
	engine   *docker.Engine
	double   *launchtest.Engine
	registry *launchtest.Registry
	client   registry.Client
	effects  *launchtest.Recorder
	ref      name.Digest
	layers   []v1.Hash
}

func newBench(t *testing.T, o launchtest.EngineOptions) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "docker") // short: a socket's path has to fit into 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, effects: &launchtest.Recorder{}}
	o.Recorder = b.effects
	b.double, err = launchtest.NewEngine(filepath.Join(dir, "docker.sock"), o)
	require.NoError(t, err)
	b.registry, err = launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.Empty(t, b.double.Unexpected())
		b.double.Close()
		b.registry.Close()
	})
	b.engine, err = docker.New(b.double.Host())
	require.NoError(t, err)
	b.engine.LoadSize = 8 * unit
	b.client.Tuning.RangeSize = 2 * unit
	b.engine.Sleep = func(context.Context, time.Duration) error { return nil }
	layers, err := launchtest.RandomLayers(7, 30_000, 20_000, 10)
	require.NoError(t, err)
	layers = append(layers, layers[0]) // a layer that occurs twice
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers, OCI: true})
	require.NoError(t, err)
	manifest, err := img.Manifest()
	require.NoError(t, err)
	for _, l := range manifest.Layers {
		b.layers = append(b.layers, l.Digest)
	}
	b.ref, err = b.registry.Push("nearone/mpc-node", img)
	require.NoError(t, err)
	return b
}

// TestAnImageOfAnIPv6Registry gets a name that every engine takes.
func TestAnImageOfAnIPv6Registry(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	v := b.resolve()
	ref, err := name.NewDigest("[fd00::1]:5000/nearone/mpc-node@" + v.Digest().String())
	require.NoError(t, err)
	there, err := image.Restore(ref, v1.Platform{}, v.Kept())
	require.NoError(t, err)
	_, err = b.engine.Load(t.Context(), there, b.client.Source(b.ref), docker.LoadOptions{})
	require.NoError(t, err)
	images := b.double.Images()
	require.Len(t, images, 1)
	assert.Equal(t, []string{"localhost/nearone/mpc-node:sha256-" + v.Digest().Hex()}, images[0].Names)
}

func (b *bench) resolve() *image.Verified {
	b.t.Helper()
	return b.resolved(b.ref)
}

func (b *bench) resolved(ref name.Digest) *image.Verified {
	b.t.Helper()
	v, err := b.client.Source(ref).Resolve(b.t.Context())
	require.NoError(b.t, err)
	return v
}

// load loads v from where it was resolved.
func (b *bench) load(ctx context.Context, v *image.Verified, o docker.LoadOptions) (docker.Loaded, error) {
	return b.engine.Load(ctx, v, b.client.Source(v.Reference()), o)
}

// tally adds up what progress is told.
type tally struct {
	mu                      sync.Mutex
	missing, sent, unpacked int64
}

func (p *tally) Missing(n int64, _ bool) { p.add(&p.missing, n) }
func (p *tally) Sent(n int64)            { p.add(&p.sent, n) }
func (p *tally) Unpacked(n int64)        { p.add(&p.unpacked, n) }

func (p *tally) add(to *int64, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*to += n
}

// stores are the engines that differ in what they do with a load.
func stores() map[string]launchtest.EngineOptions {
	return map[string]launchtest.EngineOptions{
		"classic 20.10": {APIVersion: "1.41"},
		"classic 28":    {APIVersion: "1.51"},
		"containerd 26": {APIVersion: "1.45", Containerd: true},
		"containerd 28": {APIVersion: "1.51", Containerd: true},
		"containerd 29": {APIVersion: "1.52", Containerd: true},
	}
}

func TestLoadProvesWhatItLoaded(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			v := b.resolve()
			progress := &tally{}
			loaded, err := b.load(t.Context(), v, docker.LoadOptions{Progress: progress})
			require.NoError(t, err)
			id := loaded.ID
			want := v.ConfigDigest()
			if options.Containerd {
				want = v.ManifestDigest()
			}
			assert.Equal(t, want.String(), id.String())
			assert.Equal(t, v.Size()-v.Layers()[3].Size, progress.sent, "every layer once")
			assert.Equal(t, progress.sent, progress.missing)
			info, err := b.engine.Info(t.Context())
			require.NoError(t, err)
			again, err := b.engine.Prove(t.Context(), info, v)
			require.NoError(t, err)
			assert.Equal(t, id, again)
			assert.Equal(t, 1, b.double.Loads())
		})
	}
}

// TestLoadIsNotTakenIn: whatever the engine does or says, there is an ID only for a proved image, and nothing is left that has a name.
func TestLoadIsNotTakenIn(t *testing.T) {
	t.Parallel()
	lies := map[string]launchtest.EngineFault{
		"an error line":                  {Load: launchtest.LoadErrorLine},
		"only the old kind of error":     {Load: launchtest.LoadErrorOnly},
		"only the new kind of error":     {Load: launchtest.LoadErrorDetail},
		"success, then an unpack line":   {Load: launchtest.LoadUnpackLine},
		"a truncated answer":             {Load: launchtest.LoadTruncated},
		"no answer at all, and no image": {Load: launchtest.LoadSilent},
		"success, and the image is gone": {Load: launchtest.LoadVanishes},
		"a full disk":                    {Load: launchtest.LoadDiskFull, LoadBytes: 10_000},
		"a connection that ends":         {Load: launchtest.LoadCut, LoadBytes: 10_000},
		"a server error":                 {Status: 500, Message: "boom"},
	}
	for store, options := range stores() {
		for lie, fault := range lies {
			t.Run(store+"/"+lie, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, options)
				fault.Match, fault.Times = "POST /images/load", -1
				b.double.Fail(fault)
				loaded, err := b.load(t.Context(), b.resolve(), docker.LoadOptions{})
				require.Error(t, err)
				assert.Equal(t, exit.Engine, exit.Of(err), "%v", err)
				assert.True(t, loaded.ID.IsZero())
				assert.NotContains(t, err.Error(), "\n")
				if fault.Load != launchtest.LoadTruncated {
					b.nothingNamed() // of a truncated answer the image may well be whole, and then it stays
				}
				if fault.Load == launchtest.LoadDiskFull {
					assert.Contains(t, err.Error(), "no space left on device", "the engine's own words")
					assert.NotEmpty(t, exit.Hints(err))
				}
			})
		}
	}
}

func (b *bench) nothingNamed() {
	b.t.Helper()
	data, err := b.double.Call("GET", "/images/json", nil)
	require.NoError(b.t, err)
	assert.NotContains(b.t, string(data), "mpc-node", "a name is left")
}

// TestLoadBreaksOffForWhatIsNotProved: a byte that isn't proved ends the upload, so that the engine never loads it. Of the large
// layer most bytes were handed on before that shows.
func TestLoadBreaksOffForWhatIsNotProved(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		for layer, size := range map[string]int{"small": 20_000, "large": 9 * unit} {
			t.Run(store+"/"+layer, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, options)
				v := b.push(launchtest.ImageOptions{OCI: true, Compression: launchtest.Uncompressed}, []uint64{1, 2}, size, 100)
				// The right bytes but for the last ones.
				forged, err := launchtest.RandomLayer(1, size)
				require.NoError(t, err)
				forged[len(forged)-2000] ^= 1
				b.registry.Forge(image.Hash(v.Layers()[0].Digest), "", forged)
				loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
				require.Error(t, err)
				assert.Equal(t, exit.Mismatch, exit.Of(err), "%v", err)
				assert.True(t, loaded.ID.IsZero())
				assert.Empty(t, b.effects.Effects())
				assert.Zero(t, b.images())
			})
		}
	}
}

func TestProveRefusesAnotherImage(t *testing.T) {
	t.Parallel()
	other := "sha256:" + strings.Repeat("00", 32)
	for store, options := range stores() {
		for what, edit := range map[string]func(*bench, *image.Verified) func([]byte) []byte{
			"another ID": func(_ *bench, v *image.Verified) func([]byte) []byte {
				return func(b []byte) []byte {
					text := strings.Replace(string(b), `"Id":"`+v.ConfigDigest().String(), `"Id":"`+other, 1)
					return []byte(strings.Replace(text, `"Id":"`+v.Digest().String(), `"Id":"`+other, 1))
				}
			},
			"another layer": func(_ *bench, v *image.Verified) func([]byte) []byte {
				return func(b []byte) []byte {
					return []byte(strings.Replace(string(b), v.Layers()[2].DiffID.String(), other, 1))
				}
			},
			"no layers": func(*bench, *image.Verified) func([]byte) []byte {
				return func(b []byte) []byte { return []byte(strings.Replace(string(b), `"RootFS"`, `"NoRootFS"`, 1)) }
			},
		} {
			t.Run(store+"/"+what, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, options)
				v := b.resolve()
				_, err := b.load(t.Context(), v, docker.LoadOptions{})
				require.NoError(t, err)
				b.double.Fail(launchtest.EngineFault{Match: "GET /images/*/json", Times: -1, Edit: edit(b, v)})
				info, err := b.engine.Info(t.Context())
				require.NoError(t, err)
				id, err := b.engine.Prove(t.Context(), info, v)
				var unproved *inspect.UnprovedError
				assert.ErrorAs(t, err, &unproved)
				assert.True(t, id.IsZero())
			})
		}
	}
}

func TestProveWithoutAnImage(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	info, err := b.engine.Info(t.Context())
	require.NoError(t, err)
	_, err = b.engine.Prove(t.Context(), info, b.resolve())
	assert.ErrorIs(t, err, inspect.ErrNoImage)
	_, err = b.engine.Prove(t.Context(), info, nil)
	assert.Error(t, err, "no proof given")
	_, err = b.engine.Prove(t.Context(), info, &image.Verified{})
	assert.Error(t, err, "the zero value proves nothing")
}

func TestUnreachableEngine(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"tcp://127.0.0.1:2375", "unix://relative", "", "unix://", "http://x", "/var/run/docker.sock"} {
		_, err := docker.New(host)
		assert.Error(t, err, "%q", host)
	}
	e, err := docker.New("unix:///nonexistent/docker.sock")
	require.NoError(t, err)
	_, err = e.Info(t.Context())
	var engineError *docker.Error
	require.ErrorAs(t, err, &engineError)
	assert.Equal(t, exit.Engine, exit.Of(err))
	assert.NotEmpty(t, exit.Hints(err))
	assert.True(t, errors.Is(err, os.ErrNotExist), "%v", err)
	assert.NotContains(t, fmt.Sprint(err), "http://docker", "a URL that doesn't exist")
}
