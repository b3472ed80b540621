package registry_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// TestLies has registries that say something else than the approved digest does, for ever. Not a
// byte of it may be handed out as proved, and the end is a mismatch after few attempts.
func TestLies(t *testing.T) {
	t.Parallel()
	good, other := small(t), imageOf(t, 2000, 30_000)
	otherManifest, err := other.RawManifest()
	require.NoError(t, err)
	goodManifest, err := good.RawManifest()
	require.NoError(t, err)
	index, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: []v1.Image{other}})
	require.NoError(t, err)
	otherIndex, err := index.RawManifest()
	require.NoError(t, err)
	digestOf := func(img v1.Image) v1.Hash {
		h, err := img.Digest()
		require.NoError(t, err)
		return h
	}
	config, err := good.ConfigName()
	require.NoError(t, err)
	first, second := layerDigest(t, good, 0), layerDigest(t, good, 1)
	const (
		manifestType = "application/vnd.docker.distribution.manifest.v2+json"
		indexType    = "application/vnd.oci.image.index.v1+json"
		prettyjws    = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	)
	for name, lie := range map[string]func(*launchtest.Registry){
		"another manifest":              func(r *launchtest.Registry) { r.Forge(digestOf(good), manifestType, otherManifest) },
		"another manifest as prettyjws": func(r *launchtest.Registry) { r.Forge(digestOf(good), prettyjws, otherManifest) },
		"another index as prettyjws":    func(r *launchtest.Registry) { r.Forge(digestOf(good), prettyjws, otherIndex) },
		"an index for a manifest":       func(r *launchtest.Registry) { r.Forge(digestOf(good), indexType, otherIndex) },
		"the manifest with a byte more": func(r *launchtest.Registry) { r.Forge(digestOf(good), manifestType, append(goodManifest, '\n')) },
		"an oversized manifest":         func(r *launchtest.Registry) { r.Forge(digestOf(good), manifestType, make([]byte, image.MaxManifest+1)) },
		"an empty manifest":             func(r *launchtest.Registry) { r.Forge(digestOf(good), manifestType, nil) },
		"a manifest that never ends":    func(r *launchtest.Registry) { r.Fail(endless(launchtest.RequestManifest)) },
		"another config":                func(r *launchtest.Registry) { r.Forge(config, "application/octet-stream", []byte("{}")) },
		"an oversized config":           func(r *launchtest.Registry) { r.Forge(config, "application/json", make([]byte, image.MaxManifest+1)) },
		"another layer": func(r *launchtest.Registry) {
			r.Forge(first, "application/octet-stream", bytes.Repeat([]byte("x"), 3000))
		},
		"another layer of the same size": func(r *launchtest.Registry) { r.Forge(first, "", bytes.Repeat([]byte("x"), int(sizeOf(t, good, 0)))) },
		"a layer that is too short":      func(r *launchtest.Registry) { r.Forge(second, "", make([]byte, 100)) },
		"a layer that is too long":       func(r *launchtest.Registry) { r.Forge(second, "", make([]byte, sizeOf(t, good, 1)+1)) },
		"a layer that is always damaged": func(r *launchtest.Registry) {
			r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: second, After: 50, Times: -1})
		},
		"a layer without ranges that never ends": func(r *launchtest.Registry) {
			f := endless(launchtest.RequestBlob)
			f.Digest = second
			r.Fail(f)
			r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultNoRange, On: launchtest.RequestBlob, Digest: second, Times: -1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, launchtest.RegistryOptions{})
			ref := push(t, r, good)
			lie(r)
			_, _, err := pull(t.Context(), defaults(new(clock)), ref)
			e := requireError(t, err, image.Mismatch)
			assert.Equal(t, exit.Mismatch, exit.Of(err))
			assert.False(t, e.Restart, "the end")
			assert.NotEmpty(t, e.Hints())
			assert.Less(t, len(r.Requests()), 30, "requests")
			assert.Empty(t, r.Unexpected())
		})
	}
}

func endless(on launchtest.RequestKind) launchtest.RegistryFault {
	return launchtest.RegistryFault{Kind: launchtest.FaultEndless, On: on, Times: -1}
}

func sizeOf(t *testing.T, img v1.Image, i int) int64 {
	t.Helper()
	layers, err := img.Layers()
	require.NoError(t, err)
	size, err := layers[i].Size()
	require.NoError(t, err)
	return size
}

// TestLargeLayerThatAlwaysLies is handed out up to the lie, restarted twice and given up.
func TestLargeLayerThatAlwaysLies(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	for name, fault := range map[string]launchtest.RegistryFault{
		"damage":        {Kind: launchtest.FaultFlip, After: 1e6},
		"shifted bytes": {Kind: launchtest.FaultShiftBody},
		"other ranges":  {Kind: launchtest.FaultShiftRange},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, launchtest.RegistryOptions{})
			ref := push(t, r, img)
			fault.On, fault.Digest, fault.Times = launchtest.RequestBlob, layerDigest(t, img, 1), -1
			r.Fail(fault)
			v, err := resolve(t.Context(), defaults(new(clock)), ref)
			require.NoError(t, err)
			restarts := 0
			for {
				stream := v.Open(t.Context(), []int{1, 2})
				layer, err := stream.Next()
				require.NoError(t, err)
				got, err := io.Copy(io.Discard, layer)
				e := requireError(t, err, image.Mismatch)
				assert.Less(t, got, v.Layers()[1].Size, "the last bytes stay here")
				assert.ErrorIs(t, layer.Close(), e, "Close says so again")
				_, err = layer.Read(make([]byte, 1))
				assert.ErrorIs(t, err, e, "and so does a further Read")
				_, err = stream.Next()
				assert.ErrorIs(t, err, e, "and the stream")
				require.NoError(t, stream.Close())
				if !e.Restart {
					break
				}
				restarts++
			}
			if fault.Kind == launchtest.FaultFlip || fault.Kind == launchtest.FaultShiftBody {
				assert.Equal(t, 2, restarts, "restarts")
			} else {
				assert.Zero(t, restarts, "what shows before it is handed out needs no restart")
			}
		})
	}
}

// TestExactSize reads a layer the way that finds readers out which prove only at io.EOF.
func TestExactSize(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 0), After: 5, Times: -1})
	v, err := resolve(t.Context(), defaults(new(clock)), ref)
	require.NoError(t, err)
	stream := v.Open(t.Context(), []int{0})
	defer stream.Close()
	layer, err := stream.Next()
	require.NoError(t, err)
	_, err = io.ReadFull(layer, make([]byte, v.Layers()[0].Size))
	requireError(t, err, image.Mismatch)
	requireError(t, layer.Close(), image.Mismatch)
}

// TestContentTypeDoesNotMatter has an honest registry that is wrong about types.
func TestContentTypeDoesNotMatter(t *testing.T) {
	t.Parallel()
	img := small(t)
	manifest, err := img.RawManifest()
	require.NoError(t, err)
	for _, contentType := range []string{"", "text/html", "application/vnd.oci.image.index.v1+json"} {
		r := newRegistry(t, launchtest.RegistryOptions{})
		ref := push(t, r, img)
		h, err := img.Digest()
		require.NoError(t, err)
		r.Forge(h, contentType, manifest)
		_, digests, err := pull(t.Context(), defaults(new(clock)), ref)
		require.NoError(t, err, "content type %q", contentType)
		requireLayers(t, img, digests)
	}
}

// TestRefusals are the answers that end a pull: after few attempts, or, where a push or a login
// changes them, after as many rounds as an outage gets.
func TestRefusals(t *testing.T) {
	t.Parallel()
	img := small(t)
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusGone, http.StatusUnavailableForLegalReasons, http.StatusBadRequest, http.StatusConflict} {
		attempts, least, most := 18, 2+3+4.5, 45.0 // 35.4 s, and a quarter of jitter
		if status == http.StatusBadRequest || status == http.StatusConflict {
			attempts, least, most = 3, 0, 5
		}
		for part, fault := range map[string]launchtest.RegistryFault{
			"manifest":     {On: launchtest.RequestManifest},
			"layer 2 of 2": {On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1)},
		} {
			r := newRegistry(t, launchtest.RegistryOptions{})
			ref := push(t, r, img)
			fault.Kind, fault.Status, fault.Times = launchtest.FaultStatus, status, -1
			r.Fail(fault)
			clock := new(clock)
			_, _, err := pull(t.Context(), defaults(clock), ref)
			e := requireError(t, err, image.Refused)
			assert.Equal(t, exit.Refused, exit.Of(err))
			assert.Equal(t, status, e.Status)
			assert.Equal(t, part, e.Part)
			assert.Equal(t, attempts, e.Attempts, "attempts for %d", status)
			assert.Equal(t, "UNAVAILABLE", e.Code)
			assert.Equal(t, "the fault was asked for", e.Message)
			assert.Less(t, clock.Slept().Seconds(), most, "delays for %d", status)
			assert.Greater(t, clock.Slept().Seconds(), least, "delays for %d", status)
		}
	}
}

// TestConfigDigest approves what lists of the older convention hold.
func TestConfigDigest(t *testing.T) {
	t.Parallel()
	img := small(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	config, err := img.ConfigName()
	require.NoError(t, err)
	_, err = resolve(t.Context(), defaults(new(clock)), ref.Context().Digest(config.String()))
	e := requireError(t, err, image.Refused)
	require.Len(t, e.Hints(), 2)
	assert.Contains(t, e.Hints()[0], "image ID")
	assert.Contains(t, e.Hints()[1], "launcher digest "+ref.Context().Name())

	_, err = resolve(t.Context(), defaults(new(clock)), ref.Context().Digest("sha256:"+strings.Repeat("a", 64)))
	for _, hint := range requireError(t, err, image.Refused).Hints() {
		assert.NotContains(t, hint, "image ID", "an unknown digest is something else")
	}
}

func TestIndexOverTheNetwork(t *testing.T) {
	t.Parallel()
	img := small(t)
	arm, err := launchtest.Image(launchtest.ImageOptions{Platform: v1.Platform{OS: "linux", Architecture: "s390x"}, Layers: [][]byte{make([]byte, 512)}})
	require.NoError(t, err)
	index, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: []v1.Image{arm, img}, Attestations: true})
	require.NoError(t, err)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref, err := r.PushIndex("test/image", index)
	require.NoError(t, err)
	v, digests, err := pull(t.Context(), defaults(new(clock)), ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	approved, err := index.Digest()
	require.NoError(t, err)
	child, err := img.Digest()
	require.NoError(t, err)
	assert.Equal(t, approved, image.Hash(v.Digest()))
	assert.Equal(t, child, image.Hash(v.ManifestDigest()))

	p := defaults(new(clock))
	p.Platform = v1.Platform{OS: "linux", Architecture: "mips"}
	before := len(r.Requests())
	_, err = resolve(t.Context(), p, ref)
	e := requireError(t, err, image.Refused)
	assert.Contains(t, e.Error(), "linux/s390x")
	assert.Equal(t, before+2, len(r.Requests()), "nothing but /v2/ and the index is asked for")

	r.Forge(child, "application/vnd.oci.image.manifest.v1+json", otherManifest(t))
	_, err = resolve(t.Context(), defaults(new(clock)), ref)
	requireError(t, err, image.Mismatch)
}

// otherManifest is the manifest of another image.
func otherManifest(t *testing.T) []byte {
	t.Helper()
	data, err := imageOf(t, 300).RawManifest()
	require.NoError(t, err)
	return data
}
