package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

func TestDescribe(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	one := small(t)
	other, err := launchtest.Image(launchtest.ImageOptions{OCI: true, Platform: v1.Platform{OS: "linux", Architecture: "s390x"}, Layers: [][]byte{make([]byte, 512)}})
	require.NoError(t, err)
	index, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: []v1.Image{one, other}, Attestations: true})
	require.NoError(t, err)
	foreign, err := r.Push("test/foreign", other, "v1")
	require.NoError(t, err)
	ref, err := r.PushIndex("test/image", index, "v1")
	require.NoError(t, err)
	tag := func(repo string) name.Reference {
		tag, err := name.NewTag(r.Host() + "/" + repo + ":v1")
		require.NoError(t, err)
		return tag
	}
	p := defaults(new(clock))
	for _, ref := range []name.Reference{ref, tag("test/image")} {
		d, err := p.Describe(t.Context(), ref)
		require.NoError(t, err)
		want, err := index.Digest()
		require.NoError(t, err)
		assert.Equal(t, want, image.Hash(d.Digest))
		assert.True(t, d.IsIndex())
		assert.Equal(t, types.OCIImageIndex, d.MediaType)
		require.Len(t, d.Images, 2, "without attestations")
		for i, img := range []v1.Image{one, other} {
			want, err := img.Digest()
			require.NoError(t, err)
			assert.Equal(t, want, image.Hash(d.Images[i].ManifestDigest))
			config, err := img.ConfigName()
			require.NoError(t, err)
			assert.Equal(t, config, image.Hash(d.Images[i].ConfigDigest))
		}
	}
	for _, ref := range []name.Reference{foreign, tag("test/foreign")} {
		d, err := p.Describe(t.Context(), ref)
		require.NoError(t, err, "an image for other machines can be described")
		assert.False(t, d.IsIndex())
		assert.Equal(t, foreign.DigestStr(), d.Digest.String())
		require.Len(t, d.Images, 1)
		assert.Equal(t, "s390x", d.Images[0].Platform.Architecture)
		assert.Equal(t, 1, d.Images[0].Layers)
		assert.Nil(t, d.Here)
	}
	_, err = resolve(t.Context(), p, foreign)
	requireError(t, err, image.Refused)

	h, err := other.Digest()
	require.NoError(t, err)
	r.Forge(h, "application/vnd.oci.image.manifest.v1+json", otherManifest(t))
	d, err := p.Describe(t.Context(), tag("test/image"))
	require.NoError(t, err, "what is wrong with an image for other machines is told of that one")
	require.Len(t, d.Images, 2)
	requireError(t, d.Images[1].Err, image.Mismatch)
	assert.Equal(t, d.Images[0], *d.Here)
	assert.NoError(t, d.Here.Err)
	h, err = one.Digest()
	require.NoError(t, err)
	r.Forge(h, "application/vnd.oci.image.manifest.v1+json", otherManifest(t))
	_, err = p.Describe(t.Context(), tag("test/image"))
	requireError(t, err, image.Mismatch)
	missing, err := name.NewTag(r.Host() + "/test/image:v2")
	require.NoError(t, err)
	_, err = p.Describe(t.Context(), missing)
	assert.Equal(t, http.StatusNotFound, requireError(t, err, image.Refused).Status)
}

func TestCheckLayers(t *testing.T) {
	img := small(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) { testCheckLayers(t, network, img) })
}

func testCheckLayers(t *testing.T, network *launchtest.Network, img v1.Image) {
	for _, o := range []launchtest.RegistryOptions{{}, {Redirect: launchtest.RedirectHost}, {TLS: true, Auth: launchtest.RegistryBearer, Public: true}} {
		o.Network = network
		r := newRegistry(t, o)
		p := within(network)
		p.Tuning.RootCAs = r.CertPool()
		v, err := resolve(t.Context(), p, push(t, r, img))
		require.NoError(t, err)
		synctest.Wait() // the registry counts an answer once all of it is gone
		sent := r.BlobBytes()
		require.NoError(t, v.source.CheckLayers(t.Context(), v.Verified, []int{0, 1}))
		synctest.Wait()
		assert.Equal(t, sent, r.BlobBytes(), "bytes of layers")
		assert.Empty(t, r.Unexpected())

		r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: http.StatusNotFound, On: launchtest.RequestBlob,
			Digest: layerDigest(t, img, 1), Times: -1})
		if o.Redirect != launchtest.RedirectNone {
			continue // a redirect is the registry's word that it is there
		}
		e := requireError(t, v.source.CheckLayers(t.Context(), v.Verified, []int{0, 1}), image.Refused)
		assert.Equal(t, "layer 2 of 2", e.Part)
		r.Heal()
		r.Forge(layerDigest(t, img, 0), "", []byte("short"))
		wrong := requireError(t, v.source.CheckLayers(t.Context(), v.Verified, []int{0, 1}), image.Mismatch)
		assert.Equal(t, "layer 1 of 2", wrong.Part)
	}
}

// TestLog asserts that the source of credentials is logged, retries are, and secrets are not.
func TestLog(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	r, p, ref := bearerAt(t, launchtest.RegistryOptions{}, small(t))
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestBlob})
	p.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	_, err := resolve(t.Context(), p, ref)
	require.NoError(t, err)
	assert.Contains(t, log.String(), `credentials="the given keychain"`)
	assert.Contains(t, log.String(), "503 Service Unavailable")
	assert.NotContains(t, log.String(), password)
	assert.NotContains(t, log.String(), "token-")
}

// TestRetriesSayWhichAndOfHowMany: who reads the log sees how long there is still hope.
func TestRetriesSayWhichAndOfHowMany(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status, of int
	}{{503, 24}, {404, 18}, {400, 3}} {
		var log bytes.Buffer
		r, p := newRegistry(t, launchtest.RegistryOptions{}), defaults(new(clock))
		ref := push(t, r, small(t))
		r.Fail(launchtest.RegistryFault{
			Kind: launchtest.FaultStatus, Status: c.status, On: launchtest.RequestManifest, Times: -1,
		})
		p.Rounds = 5
		p.Log = slog.New(slog.NewJSONHandler(&log, nil))
		_, err := resolve(t.Context(), p, ref)
		require.Error(t, err)
		next := 2
		for line := range strings.Lines(log.String()) {
			var record struct {
				Level, Msg        string
				Attempt, Attempts int
			}
			require.NoError(t, json.Unmarshal([]byte(line), &record))
			if record.Attempts == 0 {
				continue
			}
			assert.Equal(t, "WARN", record.Level)
			assert.Equal(t, fmt.Sprintf("trying again, attempt %d of %d", next, c.of), record.Msg)
			assert.Equal(t, []int{next, c.of}, []int{record.Attempt, record.Attempts})
			next++
		}
		assert.Equal(t, c.of+1, next)
	}
}

// TestBytesCountAsTheyArrive and not only once a part is whole, or has failed.
func TestBytesCountAsTheyArrive(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	r.Fail(launchtest.RegistryFault{
		Kind: launchtest.FaultStall, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 0),
		After: 1000, Times: -1,
	})
	p := defaults(new(clock))
	p.Tuning.Window = time.Hour
	grown := make(chan struct{}, 1)
	p.Progress = func(int64) {
		select {
		case grown <- struct{}{}:
		default:
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	v, err := resolve(ctx, p, push(t, r, img))
	require.NoError(t, err)
	ended := make(chan error)
	go func() {
		_, err := read(ctx, v, []int{0})
		ended <- err
	}()
	select {
	case <-grown:
	case <-time.After(time.Minute):
		assert.Fail(t, "no byte counts")
	}
	cancel()
	assert.ErrorIs(t, <-ended, context.Canceled)
}
