package docker_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// prove asks the engine whether it has v.
func (b *bench) prove(v *image.Verified) (docker.ImageID, error) {
	b.t.Helper()
	info, err := b.engine.Info(b.t.Context())
	require.NoError(b.t, err)
	return b.engine.Prove(b.t.Context(), info, v)
}

// noContainers sees to it that nothing is left of a trial.
func (b *bench) noContainers() {
	b.t.Helper()
	assert.Empty(b.t, b.double.Containers(), "a container is left")
}

// TestAnIndexIsLoadedAsTheImageThatWasProved: an engine that got the index would choose among its
// entries by itself, and from 29.1 on misses the attestations if it is asked for a platform.
func TestAnIndexIsLoadedAsTheImageThatWasProved(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			var images []v1.Image
			for seed, architecture := range []string{"s390x", "amd64"} {
				layers, err := launchtest.RandomLayers(uint64(seed), 1000, 500)
				require.NoError(t, err)
				img, err := launchtest.Image(launchtest.ImageOptions{OCI: true, Layers: layers,
					Platform: v1.Platform{OS: "linux", Architecture: architecture}})
				require.NoError(t, err)
				images = append(images, img)
			}
			index, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: images, Attestations: true})
			require.NoError(t, err)
			ref, err := b.registry.PushIndex("nearone/mpc-node", index)
			require.NoError(t, err)
			v := b.resolved(ref)
			require.NotEqual(t, v.Digest(), v.ManifestDigest())

			loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
			require.NoError(t, err)
			want := v.ConfigDigest()
			if options.Containerd {
				want = v.ManifestDigest()
			}
			assert.Equal(t, want.String(), loaded.ID.String())
			assert.Equal(t, 1, b.images())
			id, err := b.prove(v)
			require.NoError(t, err)
			assert.Equal(t, loaded.ID, id)
			assert.NotContains(t, strings.Join(b.double.Requests(), "\n"), "platform=")
			b.noContainers()
		})
	}
}

// odd is a layer of which the manifest says something else than is true.
type odd struct {
	compressed
	diffID    []byte // what has that diffID
	mediaType types.MediaType
}

func (l odd) DiffID() (v1.Hash, error) {
	return v1.Hash{Algorithm: "sha256", Hex: hexOf(l.diffID)}, nil
}
func (l odd) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.diffID)), nil
}
func (l odd) MediaType() (types.MediaType, error) { return l.mediaType, nil }

func hexOf(data []byte) string {
	h, _, _ := v1.SHA256(bytes.NewReader(data)) // memory can't fail
	return h.Hex
}

// variant makes an image one for amd64/v2.
func variant(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.Variant = "v2"
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	return img
}

// packed is the one gzip member of a layer.
func packed(t *testing.T, content []byte) []byte {
	t.Helper()
	r, err := gzipped(t, content).Compressed()
	require.NoError(t, err)
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	return data
}

// TestALayerThatIsNotWhatTheConfigSays: the engine has only its own words for that. Whose fault it is
// is known all the same, and nothing stays that a second run could take for the image.
func TestALayerThatIsNotWhatTheConfigSays(t *testing.T) {
	t.Parallel()
	content, err := launchtest.RandomLayer(1, 9*unit)
	require.NoError(t, err)
	small, err := launchtest.RandomLayer(2, 1000)
	require.NoError(t, err)
	zipped := packed(t, content)
	for store, options := range stores() {
		for what, layer := range map[string]odd{
			"another tar":         {zipped, []byte("another"), types.DockerLayer},
			"junk behind the end": {append(bytes.Clone(zipped), "junk"...), content, types.DockerLayer},
			"cut":                 {zipped[:len(zipped)-2000], content, types.DockerLayer},
		} {
			for link, rate := range map[string]int64{"open": 0, "slow": 40 * unit, "variant": 0} {
				if link == "slow" && options.Containerd {
					continue // which is sent layers as they are, over any link
				}
				t.Run(store+"/"+what+"/"+link, func(t *testing.T) {
					t.Parallel()
					b := newBench(t, options)
					b.linkedBy(launchtest.RegistryOptions{TotalRate: rate})
					img := imageOf(t, gzipped(t, small), layer)
					if link == "variant" { // which a load doesn't unpack
						img = variant(t, img)
					}
					v := b.pushed(img)
					if what == "junk behind the end" && store == "classic 28" {
						_, err := b.load(t.Context(), v, docker.LoadOptions{})
						require.NoError(t, err, "it doesn't mind, and what it unpacked is right")
						return
					}
					for range 2 {
						_, err := b.load(t.Context(), v, docker.LoadOptions{})
						require.Error(t, err)
						var judged *image.Error
						require.ErrorAs(t, err, &judged)
						assert.Contains(t, judged.Part, "layer 2 of 2")
						if what == "another tar" {
							assert.Equal(t, exit.Mismatch, exit.Of(err), "%v", err)
						}
						_, err = b.prove(v)
						require.ErrorIs(t, err, inspect.ErrNoImage)
						assert.LessOrEqual(t, b.double.Loads(), 6, "three for a run, at most")
						b.nothingNamed()
						b.noContainers()
					}
				})
			}
		}
	}
}

// TestALeftoverThatCannotBeUnpackedProvesNothing: it may be of a launcher that was killed.
func TestALeftoverThatCannotBeUnpackedProvesNothing(t *testing.T) {
	t.Parallel()
	for store, options := range stores() {
		if !options.Containerd {
			continue // what can't be unpacked is no image there
		}
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			v := b.resolve()
			b.double.Fail(launchtest.EngineFault{Match: "POST /images/load", Load: launchtest.LoadUnpackFull, Times: -1})
			b.double.Fail(launchtest.EngineFault{Match: "DELETE /images/*", Status: 500, Message: "busy", Times: -1})
			_, err := b.load(t.Context(), v, docker.LoadOptions{})
			require.Error(t, err)
			require.Equal(t, 1, b.images(), "the leftover")
			b.double.Heal()

			_, err = b.prove(v)
			var unproved *inspect.UnprovedError
			require.ErrorAs(t, err, &unproved)
			b.noContainers()
			loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
			require.NoError(t, err)
			assert.False(t, loaded.ID.IsZero())
			b.noContainers()
		})
	}
}

// TestAVariantIsUnpackedByATrial: a load unpacks what is for the engine's own platform.
func TestAVariantIsUnpackedByATrial(t *testing.T) {
	t.Parallel()
	small, err := launchtest.RandomLayer(3, 1000)
	require.NoError(t, err)
	for store, options := range stores() {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, options)
			v := b.push(launchtest.ImageOptions{OCI: true,
				Platform: v1.Platform{OS: "linux", Architecture: "amd64", Variant: "v2"},
				Config:   v1.Config{Volumes: map[string]struct{}{"/data": {}}},
			}, []uint64{1, 2}, 1000, 500)
			// One of that name, of a launcher that was killed.
			img, err := launchtest.Image(launchtest.ImageOptions{
				Layers: [][]byte{small}, Config: v1.Config{Cmd: []string{"/other"}},
			})
			require.NoError(t, err)
			other, err := b.double.AddImage(img, "other:latest")
			require.NoError(t, err)
			name := "mpc-node-holder-trial-" + v.ManifestDigest().Hex()[:12]
			_, err = b.double.Call("POST", "/containers/create?name="+name, map[string]any{"Image": other})
			require.NoError(t, err)

			loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
			require.NoError(t, err)
			assert.False(t, loaded.ID.IsZero())
			assert.Equal(t, 1, b.double.Loads())
			if options.Containerd {
				b.noContainers()
			}
			assert.Empty(t, b.double.Volumes(), "the trial made an anonymous volume")
		})
	}
}

// TestDamageOnTheWayIsRepaired: a containerd store keeps what came of a layer, appends what comes next
// to it, and refuses that once. Neither this run nor the next one may fail for it.
func TestDamageOnTheWayIsRepaired(t *testing.T) {
	t.Parallel()
	const size = 48 * unit // of which the engine keeps some
	for store, options := range stores() {
		for when, prepare := range map[string]func(*bench, *image.Verified){
			"in this run": func(b *bench, v *image.Verified) {
				b.registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob,
					Digest: image.Hash(v.Layers()[0].Digest), After: 1000})
			},
			"in the run before": func(b *bench, v *image.Verified) {
				forged, err := launchtest.RandomLayer(1, size)
				require.NoError(b.t, err)
				forged[1000] ^= 1
				b.registry.Forge(image.Hash(v.Layers()[0].Digest), "", forged)
				_, err = b.load(b.t.Context(), v, docker.LoadOptions{})
				require.Error(b.t, err)
				assert.Equal(b.t, exit.Mismatch, exit.Of(err), "a lie that persists: %v", err)
				right, err := launchtest.RandomLayer(1, size)
				require.NoError(b.t, err)
				b.registry.Forge(image.Hash(v.Layers()[0].Digest), "", right)
			},
		} {
			t.Run(store+"/"+when, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, options)
				v := b.push(launchtest.ImageOptions{OCI: true, Compression: launchtest.Uncompressed}, []uint64{1, 2}, size, 100)
				prepare(b, v)
				loaded, err := b.load(t.Context(), v, docker.LoadOptions{})
				require.NoError(t, err)
				assert.False(t, loaded.ID.IsZero())
				assert.Equal(t, 1, b.images())
			})
		}
	}
}

// TestMoreLayersThanTheEngineTakes is said before one is fetched: an engine says it after the last.
func TestMoreLayersThanTheEngineTakes(t *testing.T) {
	t.Parallel()
	var seeds []uint64
	var sizes []int
	for i := range 126 {
		seeds, sizes = append(seeds, uint64(i)), append(sizes, 10)
	}
	b := newBench(t, launchtest.EngineOptions{})
	most := b.push(launchtest.ImageOptions{}, seeds[:125], sizes[:125]...)
	over := b.push(launchtest.ImageOptions{}, seeds, sizes...)
	assert.NoError(t, inspect.Takes(inspect.Info{Store: inspect.Classic}, most))
	assert.NoError(t, inspect.Takes(inspect.Info{Store: inspect.Containerd}, over))
	_, err := b.load(t.Context(), over, docker.LoadOptions{})
	require.Error(t, err)
	assert.Equal(t, exit.Refused, exit.Of(err), "%v", err)
	assert.NotEmpty(t, exit.Hints(err))
	assert.Zero(t, b.double.Loads())
}

// TestTheEnginesReadingOfALayerDecides, whether it is unpacked here first or not.
func TestTheEnginesReadingOfALayerDecides(t *testing.T) {
	t.Parallel()
	content, err := launchtest.RandomLayer(1, 9*unit)
	require.NoError(t, err)
	layer := odd{append(packed(t, content), "junk behind the end"...), content, types.DockerLayer}
	for store, options := range stores() {
		options.Pigz = true
		for link, rate := range map[string]int64{"open": 0, "slow": 40 * unit} {
			t.Run(store+"/"+link, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, options)
				b.linkedBy(launchtest.RegistryOptions{TotalRate: rate})
				_, err := b.load(t.Context(), b.pushed(imageOf(t, layer)), docker.LoadOptions{})
				require.NoError(t, err)
				assert.Equal(t, 1, b.images())
			})
		}
	}
}

// TestAZstdLayerThatIsNotWhatTheConfigSays is found where it is unpacked for an engine that can't, and
// told once.
func TestAZstdLayerThatIsNotWhatTheConfigSays(t *testing.T) {
	t.Parallel()
	b := newBench(t, launchtest.EngineOptions{})
	content, err := launchtest.RandomLayer(1, 1000)
	require.NoError(t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{
		OCI: true, Compression: launchtest.Zstd, Layers: [][]byte{content},
	})
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0].Hex = strings.Repeat("ab", 32)
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	_, err = b.load(t.Context(), b.pushed(img), docker.LoadOptions{})
	require.Error(t, err)
	assert.Equal(t, exit.Mismatch, exit.Of(err), "%v", err)
	assert.Equal(t, 1, strings.Count(err.Error(), "diffID"), "%v", err)
	assert.NotContains(t, err.Error(), "\n")
	assert.Zero(t, b.double.Loads())
}
