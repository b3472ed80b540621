package docker_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// unit is to the bench what a mebibyte is elsewhere: its loads and the parts in which layers are fetched are as much smaller. It is so large
// that nine don't fit into a socket's buffers, so whoever has sent as many has begun a load that the engine knows of.
const unit = 64 << 10

// push puts an image of random layers into the registry and resolves it.
func (b *bench) push(o launchtest.ImageOptions, seeds []uint64, sizes ...int) *image.Verified {
	b.t.Helper()
	for i, seed := range seeds {
		layer, err := launchtest.RandomLayer(seed, sizes[i])
		require.NoError(b.t, err)
		o.Layers = append(o.Layers, layer)
	}
	img, err := launchtest.Image(o)
	require.NoError(b.t, err)
	return b.pushed(img)
}

func (b *bench) pushed(img v1.Image) *image.Verified {
	b.t.Helper()
	ref, err := b.registry.Push("nearone/mpc-node", img)
	require.NoError(b.t, err)
	return b.resolved(ref)
}

// images returns how many images the engine has, the nameless ones included.
func (b *bench) images() int {
	b.t.Helper()
	data, err := b.double.Call("GET", "/images/json?all=1", nil)
	require.NoError(b.t, err)
	var list []json.RawMessage
	require.NoError(b.t, json.Unmarshal(data, &list))
	return len(list)
}

func TestAnUpgradeMovesOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			old := b.push(launchtest.ImageOptions{OCI: true}, []uint64{1, 2, 3}, 400_000, 300_000, 200_000)
			_, err := b.load(t.Context(), old, docker.LoadOptions{})
			require.NoError(t, err)
			// The registry counts an answer once all of it is gone.
			all := old.Size() + int64(len(old.Config()))
			require.Eventually(t, func() bool { return b.registry.BlobBytes() >= all }, time.Minute, time.Millisecond)
			before := b.registry.BlobBytes()

			upgrade := b.push(launchtest.ImageOptions{OCI: true}, []uint64{1, 2, 9}, 400_000, 300_000, 200_000)
			loaded, err := b.load(t.Context(), upgrade, docker.LoadOptions{Known: []*image.Verified{old}})
			require.NoError(t, err)
			// An engine with a containerd store that can't be asked for its blobs gets everything.
			if store == "containerd 26" {
				assert.Zero(t, loaded.Reused)
				return
			}
			assert.Equal(t, upgrade.Layers()[0].Size+upgrade.Layers()[1].Size, loaded.Reused)
			assert.Less(t, b.registry.BlobBytes()-before, int64(220_000), "more than the changed layer was fetched")
		})
	}
}

func TestLayersThatAreGoneAfterAllAreSent(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	v := b.push(launchtest.ImageOptions{}, []uint64{1, 2}, 1000, 1000)
	other := b.push(launchtest.ImageOptions{}, []uint64{3}, 1000)
	_, err := b.load(t.Context(), other, docker.LoadOptions{})
	require.NoError(t, err)
	// The engine says once that the other image begins as ours does.
	b.double.Fail(launchtest.EngineFault{Match: "GET /images/*/json", Edit: func(body []byte) []byte {
		return []byte(strings.Replace(string(body), other.Layers()[0].DiffID.String(), v.Layers()[0].DiffID.String(), 1))
	}})
	loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
	require.NoError(t, err)
	assert.Zero(t, loaded.Reused)
	assert.Equal(t, 3, b.double.Loads(), "one for the other image, one that failed, one with everything")
}

// TestUnpackingGoesOnWhileTheRestIsFetched: large layers are loaded one after another, and nothing but the image stays.
func TestUnpackingGoesOnWhileTheRestIsFetched(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			v := b.push(launchtest.ImageOptions{OCI: true, Compression: launchtest.Uncompressed}, []uint64{1, 2, 3, 4}, 9*unit, 9*unit, 9*unit, 1000)
			progress := &tally{}
			loaded, err := b.load(t.Context(), v, docker.LoadOptions{Progress: progress})
			require.NoError(t, err)
			assert.Equal(t, 4, b.double.Loads())
			assert.Equal(t, 1, b.images(), "an image of our own making stays")
			assert.Equal(t, inspect.ID(storeOf(options), v).String(), loaded.ID.String())
			assert.InDelta(t, v.Size(), progress.sent, 10)
		})
	}
}

func storeOf(o launchtest.EngineOptions) inspect.Store {
	if o.Containerd {
		return inspect.Containerd
	}
	return inspect.Classic
}

func TestAnEngineThatBreaksDownIsTriedAgainWithWhatItHas(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]launchtest.EngineFault{
		"the connection ends": {Load: launchtest.LoadCut, LoadBytes: 600},
		"a server error":      {Status: 503, Message: "busy"},
		"a truncated answer":  {Load: launchtest.LoadTruncated},
		"no answer":           {Close: true},
		"it hangs":            {Hang: true},
	} {
		for store, options := range stores() {
			t.Run(name+"/"+store, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, options)
				stalled := make(chan struct{})
				b.engine.AfterFunc = (&timers{stalled: stalled}).afterFunc
				v := b.push(launchtest.ImageOptions{OCI: true, Compression: launchtest.Uncompressed}, []uint64{1, 2, 3}, 9*unit, 9*unit, 1000)
				// The third load goes wrong, once the engine has the two before.
				second := make(chan struct{})
				b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Skip: 1, Edit: func(answer []byte) []byte {
					close(second)
					return answer
				}})
				fault := fault
				fault.Match, fault.Skip = "POST /images/load", 1
				fault.Before = func() {
					<-second
					if fault.Hang {
						close(stalled)
					}
				}
				b.double.Fail(fault)
				_, err := b.load(t.Context(), v, docker.LoadOptions{})
				require.NoError(t, err)
				assert.Equal(t, 1, b.images())
				assert.Less(t, b.registry.BlobBytes(), v.Size()+10_000, "what the engine had was fetched again")
			})
		}
	}
	t.Run("for ever", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, launchtest.EngineOptions{})
		b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Close: true})
		_, err := b.load(t.Context(), b.resolve(), docker.LoadOptions{})
		assert.Equal(t, exit.Engine, exit.Of(err), "%v", err)
		asked := 0
		for _, request := range b.double.Requests() {
			if strings.HasPrefix(request, "POST /images/load") {
				asked++
			}
		}
		assert.Equal(t, 4, asked)
	})
}

// timers makes timers that never end by themselves. The one of the third load ends when stalled is closed.
type timers struct {
	stalled chan struct{}
	made    atomic.Int32
}

func (t *timers) afterFunc(_ time.Duration, f func()) docker.Timer {
	if t.made.Add(1) == 3 {
		go func() {
			<-t.stalled
			f()
		}()
	}
	return endless{}
}

type endless struct{}

func (endless) Reset(time.Duration) bool { return true }
func (endless) Stop() bool               { return true }

// TestWhatContainerdClearsAwayMeanwhile is sent once more.
func TestWhatContainerdClearsAwayMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{Containerd: true, APIVersion: "1.52"})
	b.engine.Sleep = func(context.Context, time.Duration) error { return nil }
	b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: 3, Load: launchtest.LoadErrorLine,
		Message: `failed to prepare extraction snapshot "x": NotFound: parent snapshot sha256:ab does not exist: not found`})
	_, err := b.load(t.Context(), b.resolve(), docker.LoadOptions{})
	require.NoError(t, err)
	assert.Equal(t, 1, b.images())
}

// TestAPruneBetweenTwoLoads: dstack runs `docker image prune -af` while a launcher loads, which takes the nameless images that a load
// builds on.
func TestAPruneBetweenTwoLoads(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			v := b.push(launchtest.ImageOptions{OCI: true, Compression: launchtest.Uncompressed}, []uint64{1, 2, 3}, 9*unit, 9*unit, 9*unit)
			b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Edit: func(answer []byte) []byte {
				assert.Equal(t, 1, b.images(), "what the first load left")
				_, err := b.double.Call("POST", `/images/prune?filters={"dangling":["false"]}`, nil)
				assert.NoError(t, err)
				assert.Zero(t, b.images())
				return answer
			}})
			loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
			require.NoError(t, err)
			assert.False(t, loaded.ID.IsZero())
			assert.Equal(t, 1, b.images())
		})
	}
}

// TestALoadLeavesTheImagesOfAnotherOneAlone: two pulls at once, of different images, on one engine.
func TestALoadLeavesTheImagesOfAnotherOneAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	first := b.push(launchtest.ImageOptions{Compression: launchtest.Uncompressed}, []uint64{1, 2}, 9*unit, 1000)
	second := b.push(launchtest.ImageOptions{Compression: launchtest.Uncompressed}, []uint64{3, 4}, 9*unit, 1000)
	// The first one stops after its first layer.
	b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Skip: 1, Load: launchtest.LoadDiskFull})
	b.registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 503, On: launchtest.RequestBlob, Digest: image.Hash(first.Layers()[1].Digest), Times: -1})
	_, err := b.load(t.Context(), first, docker.LoadOptions{})
	require.Error(t, err)
	b.double.Heal()
	require.Equal(t, 1, b.images(), "what the engine has of it stays for the next try")
	_, err = b.load(t.Context(), second, docker.LoadOptions{})
	require.NoError(t, err)
	assert.Equal(t, 2, b.images())
	b.registry.Heal()
	loaded, err := b.load(t.Context(), first, docker.LoadOptions{})
	require.NoError(t, err)
	assert.Equal(t, first.Layers()[0].Size, loaded.Reused)
	assert.Equal(t, 2, b.images())
}

// TestWhatIsProvedStaysForTheNextTry, whatever was wrong with what came after it.
func TestWhatIsProvedStaysForTheNextTry(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]launchtest.RegistryFault{
		"unavailable": {Kind: launchtest.FaultStatus, Status: 503},
		"refused":     {Kind: launchtest.FaultStatus, Status: 404},
		"a lie":       {Kind: launchtest.FaultFlip},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, launchtest.EngineOptions{})
			v := b.push(launchtest.ImageOptions{Compression: launchtest.Uncompressed}, []uint64{1, 2}, 9*unit, 1000)
			fault.On, fault.Digest, fault.Times = launchtest.RequestBlob, image.Hash(v.Layers()[1].Digest), -1
			b.registry.Fail(fault)
			_, err := b.load(t.Context(), v, docker.LoadOptions{})
			require.Error(t, err)
			b.registry.Heal()
			loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
			require.NoError(t, err)
			assert.Equal(t, v.Layers()[0].Size, loaded.Reused)
			assert.Equal(t, 1, b.images(), "nothing is left of the way")
		})
	}
}

func TestAnImageThatCannotBeInspectedIsNoHindrance(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	_, err := b.load(t.Context(), b.push(launchtest.ImageOptions{}, []uint64{8}, 1000), docker.LoadOptions{})
	require.NoError(t, err)
	b.double.Fail(launchtest.EngineFault{Match: "GET /images/*/json", Status: 500, Message: "layer does not exist"})
	_, err = b.load(t.Context(), b.push(launchtest.ImageOptions{}, []uint64{9}, 1000), docker.LoadOptions{})
	assert.NoError(t, err)
}

// TestAnEnginesRefusalIsToldAtOnce, and not what the registry did meanwhile.
func TestAnEnginesRefusalIsToldAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	// Three parts arrive, more than a server reads of a request that it has refused, and the next one never.
	b.client.Tuning.Workers, b.client.Tuning.HeaderTimeout, b.client.Tuning.Window = 1, time.Hour, time.Hour
	v := b.push(launchtest.ImageOptions{Compression: launchtest.Uncompressed}, []uint64{1}, 9*unit)
	b.registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStall, On: launchtest.RequestBlob, Digest: image.Hash(v.Layers()[0].Digest), Skip: 3, Times: -1})
	b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Status: 500, Message: "no space left on device"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := b.load(ctx, v, docker.LoadOptions{})
	assert.Equal(t, exit.Engine, exit.Of(err), "%v", err)
	require.Error(t, err)
	assert.Contains(t, err.Error(), "no space left on device")
}

func TestAFullDiskLeavesNothing(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		for _, fault := range []launchtest.EngineFault{{Skip: 1, Load: launchtest.LoadDiskFull, LoadBytes: unit}, {Skip: 2, Load: launchtest.LoadUnpackFull}} {
			if fault.Load == launchtest.LoadUnpackFull && !options.Containerd {
				continue // a classic store unpacks before it knows an image
			}
			t.Run(store+", "+string(fault.Load), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, options)
				v := b.push(launchtest.ImageOptions{OCI: true, Compression: launchtest.Uncompressed}, []uint64{1, 2, 3}, 9*unit, 9*unit, 1000)
				fault.Match, fault.Times = "POST /images/load", -1
				b.double.Fail(fault)
				_, err := b.load(t.Context(), v, docker.LoadOptions{})
				assert.Equal(t, exit.Engine, exit.Of(err))
				require.Error(t, err)
				assert.Contains(t, err.Error(), "no space left on device")
				assert.Zero(t, b.images())
			})
		}
	}
}

func TestZstdIsSentPlainWhereTheEngineIsTooOld(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			v := b.push(launchtest.ImageOptions{OCI: true, Compression: launchtest.Zstd}, []uint64{1, 2}, 50_000, 1000)
			loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
			require.NoError(t, err)
			assert.Equal(t, inspect.ID(storeOf(options), v).String(), loaded.ID.String())
		})
	}
}

// TestALayerThatClaimsAnotherSize: gzip's own size is only that of its last member.
func TestALayerThatClaimsAnotherSize(t *testing.T) {
	t.Parallel()
	first, err := launchtest.RandomLayer(1, 9*unit)
	require.NoError(t, err)
	second, err := launchtest.RandomLayer(2, 20*unit)
	require.NoError(t, err)
	liar := gzipped(t, second[:5*unit], second[5*unit:])
	for name, c := range map[string]struct {
		rate   int64
		layers []v1.Layer
	}{
		"in a later load":                {0, []v1.Layer{gzipped(t, first), liar}},
		"in the first, over a slow link": {40 * unit, []v1.Layer{liar}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, launchtest.EngineOptions{})
			b.linkedBy(launchtest.RegistryOptions{TotalRate: c.rate})
			_, err := b.load(t.Context(), b.pushed(imageOf(t, c.layers...)), docker.LoadOptions{})
			require.NoError(t, err)
			assert.Equal(t, 1, b.images())
			assert.Equal(t, len(c.layers)+1, b.double.Loads(), "it was sent once more, as it is")
		})
	}
}

// TestADiskThatIsTooSmallForWhatIsUnpackedHere: an uncompressed layer lies on the engine's disk twice.
func TestADiskThatIsTooSmallForWhatIsUnpackedHere(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	b.linkedBy(launchtest.RegistryOptions{TotalRate: 40 * unit})
	v := b.pushed(imageOf(t, gzipped(t, halfRandom(t))))
	b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: 1, Load: launchtest.LoadDiskFull, LoadBytes: 12 * unit})
	_, err := b.load(t.Context(), v, docker.LoadOptions{})
	require.NoError(t, err)
	assert.Equal(t, 2, b.double.Loads())
	assert.Equal(t, 1, b.images())
}

// TestNoRoomForWhatIsUnpackedHere, by what the layers claim: they are sent as they are.
func TestNoRoomForWhatIsUnpackedHere(t *testing.T) {
	t.Parallel()
	for room, want := range map[int64]int64{15 * unit: 10 * unit, 25 * unit: 20 * unit} {
		b := newBench(t, launchtest.EngineOptions{})
		b.linkedBy(launchtest.RegistryOptions{TotalRate: 40 * unit})
		v := b.pushed(imageOf(t, gzipped(t, halfRandom(t))))
		_, err := b.load(t.Context(), v, docker.LoadOptions{Space: func(_ inspect.Info, bytes int64) error {
			if bytes > room {
				return errors.New("too little space")
			}
			return nil
		}})
		require.NoError(t, err)
		assert.InDelta(t, want, b.double.LoadedBytes(), unit)
	}
}

// linkedBy puts the registry behind another link.
func (b *bench) linkedBy(o launchtest.RegistryOptions) {
	b.t.Helper()
	require.NoError(b.t, b.registry.Close())
	var err error
	b.registry, err = launchtest.NewRegistry(o)
	require.NoError(b.t, err)
}

func imageOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
	require.NoError(t, err)
	img, err = mutate.AppendLayers(img, layers...)
	require.NoError(t, err)
	return img
}

// halfRandom is a layer of 20 MiB that compresses to 10.
func halfRandom(t *testing.T) []byte {
	t.Helper()
	data := make([]byte, 20*unit)
	_, err := rand.NewChaCha8([32]byte{1}).Read(data[:10*unit])
	require.NoError(t, err)
	layer, err := launchtest.FileLayer(launchtest.File{Path: "half", Data: data})
	require.NoError(t, err)
	return layer
}

// TestASlowLinkLeavesTimeForGunzip: while an only layer trickles in, the engine has nothing to do yet; what is unpacked here by then it is spared.
func TestASlowLinkLeavesTimeForGunzip(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			b.linkedBy(launchtest.RegistryOptions{TotalRate: 40 * unit})
			v := b.pushed(imageOf(t, gzipped(t, halfRandom(t))))
			told := &tally{}
			_, err := b.load(t.Context(), v, docker.LoadOptions{Progress: told})
			require.NoError(t, err)
			want := int64(10 * unit)
			if storeOf(options) == inspect.Classic {
				want = 20 * unit
			}
			assert.InDelta(t, want, b.double.LoadedBytes(), unit)
			assert.Equal(t, v.Size(), told.missing)
			assert.Equal(t, v.Size(), told.sent)
		})
	}
}

// gzipped makes a layer of several gzip members.
func gzipped(t *testing.T, members ...[]byte) v1.Layer {
	t.Helper()
	var blob bytes.Buffer
	for _, member := range members {
		w, err := gzip.NewWriterLevel(&blob, gzip.BestSpeed)
		require.NoError(t, err)
		_, err = w.Write(member)
		require.NoError(t, err)
		require.NoError(t, w.Close())
	}
	layer, err := partial.CompressedToLayer(compressed(blob.Bytes()))
	require.NoError(t, err)
	return layer
}

func TestTooLittleSpaceIsSaidBeforeAnythingIsFetched(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	v := b.resolve()
	fetched := int64(len(v.Config()))
	require.Eventually(t, func() bool { return b.registry.BlobBytes() >= fetched }, time.Minute, time.Millisecond)
	before := b.registry.BlobBytes()
	tooLittle, asked := errors.New("too little space"), int64(0)
	_, err := b.load(t.Context(), v, docker.LoadOptions{Space: func(_ inspect.Info, missing int64) error {
		asked = missing
		return tooLittle
	}})
	require.ErrorIs(t, err, tooLittle)
	assert.Positive(t, asked)
	assert.Equal(t, before, b.registry.BlobBytes())
	assert.Zero(t, b.double.Loads())
	assert.False(t, errors.Is(err, inspect.ErrNoImage))
}

// compressed is the bytes of a gzip layer.
type compressed []byte

func (l compressed) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l))
	return h, err
}

func (l compressed) Compressed() (io.ReadCloser, error)  { return io.NopCloser(bytes.NewReader(l)), nil }
func (l compressed) Size() (int64, error)                { return int64(len(l)), nil }
func (l compressed) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }
