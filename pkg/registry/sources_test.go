package registry_test

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// source is a registry of this machine as the user config names it.
func source(t *testing.T, r *launchtest.Registry) config.Source {
	t.Helper()
	at, err := name.NewRegistry(r.Host())
	require.NoError(t, err)
	return config.Source{Registry: at, Plain: true}
}

// TestFaultTableAtASource has every fault of the table at the first of two sources, once and
// always: no need fails, no attempt of the run either.
func TestFaultTableAtASource(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	for _, c := range launchtest.FaultTable(layerDigest(t, img, 1)) {
		for _, always := range []bool{false, true} {
			name := c.Name
			if always {
				name += ", and for ever"
			}
			t.Run(name, func(t *testing.T) {
				inBubble(t, func(t *testing.T, network *launchtest.Network) {
					first := newRegistry(t, launchtest.RegistryOptions{Network: network})
					whole := newRegistry(t, launchtest.RegistryOptions{Network: network})
					push(t, first, img)
					ref := push(t, whole, img)
					for _, f := range c.Faults {
						if always {
							f.Times = -1
						}
						first.Fail(f)
					}
					p := within(network)
					p.Rounds = 0
					p.Sources = []config.Source{source(t, first)}
					began := time.Now()
					v, digests, err := pull(t.Context(), p, ref)
					require.NoError(t, err)
					requireLayers(t, img, digests)
					assert.Less(t, time.Since(began), 90*time.Second)
					assert.LessOrEqual(t, v.Stats().Fetched, 2*v.Size(), "what is damaged once handed out is read again, from the first layer on, and once")
					assert.Empty(t, first.Unexpected())
					assert.Empty(t, whole.Unexpected())
				})
			})
		}
	}
}

// hash is the digest of a reference.
func hash(t *testing.T, ref name.Digest) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(ref.DigestStr())
	require.NoError(t, err)
	return h
}

// TestSourcesInOrder takes all from the first one that has it, and leaves the others alone.
func TestSourcesInOrder(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		registries := make([]*launchtest.Registry, 3)
		var ref name.Digest
		for i := range registries {
			registries[i] = newRegistry(t, launchtest.RegistryOptions{Network: network})
			ref = push(t, registries[i], img)
		}
		p := within(network)
		p.Sources = []config.Source{source(t, registries[0]), source(t, registries[1])}
		v, digests, err := pull(t.Context(), p, ref)
		require.NoError(t, err)
		requireLayers(t, img, digests)
		assert.Empty(t, registries[1].Requests())
		assert.Empty(t, registries[2].Requests())
		assert.Equal(t, "http://"+registries[0].Host(), v.Stats().From)
		assert.Empty(t, v.Stats().Liars)

		// The registry of the reference has the place that the user config gives it.
		p.Sources = []config.Source{{Registry: ref.Context().Registry}, source(t, registries[0])}
		before := len(registries[0].Requests())
		v, _, err = pull(t.Context(), p, ref)
		require.NoError(t, err)
		assert.Empty(t, v.Stats().From)
		assert.Len(t, registries[0].Requests(), before)
	})
}

// TestASourceThatDies in the middle of a layer: the next one goes on at that very byte.
func TestASourceThatDies(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		first := newRegistry(t, launchtest.RegistryOptions{Network: network, TotalRate: 1_000_000})
		whole := newRegistry(t, launchtest.RegistryOptions{Network: network, TotalRate: 1_000_000})
		push(t, first, img)
		ref := push(t, whole, img)
		p := within(network)
		p.Rounds = 0
		p.Sources = []config.Source{source(t, first)}
		var arrived atomic.Int64
		var died sync.Once
		p.Progress = func(n int64) {
			if arrived.Add(n) > 5_000_000 {
				died.Do(func() { _ = first.Stop() })
			}
		}
		v, err := resolve(t.Context(), p, ref)
		require.NoError(t, err)
		digests, err := read(t.Context(), v, []int{0, 1, 2})
		require.NoError(t, err)
		requireLayers(t, img, digests)
		synctest.Wait()
		assert.Equal(t, v.Size(), v.Stats().Fetched, "nothing is fetched twice")
		assert.Positive(t, whole.BlobBytes())
		assert.Positive(t, v.Stats().Resumes)
		assert.Empty(t, v.Stats().Liars)
	})
}

// TestALyingSource costs at most the layer that it lied in, is named, and comes last from then on.
func TestALyingSource(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	for name, lies := range map[string]func(r *launchtest.Registry, ref name.Digest){
		"in the manifest": func(r *launchtest.Registry, ref name.Digest) { r.Forge(hash(t, ref), "", []byte("{}")) },
		"in a whole layer": func(r *launchtest.Registry, _ name.Digest) {
			r.Forge(layerDigest(t, img, 1), "", make([]byte, sizeOf(t, img, 1)))
		},
		"in a small layer": func(r *launchtest.Registry, _ name.Digest) {
			r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 2), Times: -1})
		},
		"in a layer's bytes": func(r *launchtest.Registry, _ name.Digest) {
			r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1), Times: -1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, network *launchtest.Network) {
				liar := newRegistry(t, launchtest.RegistryOptions{Network: network})
				whole := newRegistry(t, launchtest.RegistryOptions{Network: network})
				push(t, liar, img)
				ref := push(t, whole, img)
				lies(liar, ref)
				p := within(network)
				p.Rounds, p.Ledger = 0, new(registry.Ledger)
				p.Sources = []config.Source{source(t, liar)}
				v, digests, err := pull(t.Context(), p, ref)
				require.NoError(t, err)
				requireLayers(t, img, digests)
				assert.Equal(t, []string{"http://" + liar.Host()}, v.Stats().Liars)
				assert.LessOrEqual(t, v.Stats().Fetched, 2*v.Size())

				asked := len(liar.Requests())
				_, _, err = pull(t.Context(), p, ref)
				require.NoError(t, err)
				assert.Len(t, liar.Requests(), asked, "it comes last from then on, in further attempts too")
			})
		})
	}
}

// TestALiarIsAskedLast: that the others have a bad moment is no reason to ask it.
func TestALiarIsAskedLast(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		liar := newRegistry(t, launchtest.RegistryOptions{Network: network})
		whole := newRegistry(t, launchtest.RegistryOptions{Network: network})
		push(t, liar, img)
		ref := push(t, whole, img)
		liar.Forge(hash(t, ref), "", []byte("{}"))
		whole.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1), Times: 2})
		p := within(network)
		p.Sources = []config.Source{source(t, liar)}
		_, digests, err := pull(t.Context(), p, ref)
		require.NoError(t, err)
		requireLayers(t, img, digests)
		assert.Equal(t, 1, liar.Count(launchtest.RequestManifest))
		assert.Zero(t, liar.Count(launchtest.RequestBlob))
	})
}

// TestALayerOfSeveral that is wrong says of none of them that it lied: it is fetched again from one
// alone.
func TestALayerOfSeveral(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		first := newRegistry(t, launchtest.RegistryOptions{Network: network})
		whole := newRegistry(t, launchtest.RegistryOptions{Network: network})
		push(t, first, img)
		ref := push(t, whole, img)
		layer := layerDigest(t, img, 1)
		first.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layer})
		first.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestBlob, Digest: layer, Skip: 2, Times: -1})
		p := within(network)
		p.Rounds, p.Sources = 0, []config.Source{source(t, first)}
		v, digests, err := pull(t.Context(), p, ref)
		require.NoError(t, err)
		requireLayers(t, img, digests)
		assert.Positive(t, first.Hits(launchtest.FaultFlip))
		assert.Positive(t, first.Hits(launchtest.FaultStatus))
		assert.Empty(t, v.Stats().Liars)
		assert.LessOrEqual(t, v.Stats().Fetched, 3*v.Size())
	})
}

// TestOnlyALieIsSix: where no source has the truth, a lie is one; where one may have it later, it
// isn't known.
func TestOnlyALieIsSix(t *testing.T) {
	t.Parallel()
	img := small(t)
	for name, c := range map[string]struct {
		status int // of the registry
		kind   image.Kind
	}{"gone": {http.StatusNotFound, image.Mismatch}, "down": {http.StatusServiceUnavailable, image.Unavailable}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			liar, broken := newRegistry(t, launchtest.RegistryOptions{}), newRegistry(t, launchtest.RegistryOptions{})
			push(t, liar, img)
			ref := push(t, broken, img)
			liar.Forge(hash(t, ref), "", []byte("{}"))
			broken.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: c.status, On: launchtest.RequestManifest, Times: -1})
			p := defaults(new(clock))
			p.Rounds, p.Sources = 0, []config.Source{source(t, liar)}
			_, err := resolve(t.Context(), p, ref)
			e := requireError(t, err, c.kind)
			assert.True(t, e.Answered)
			assert.Equal(t, ref.String(), e.Ref)
		})
	}
}

// TestAMirrorsName holds path and query to what mirrors understand.
func TestAMirrorsName(t *testing.T) {
	t.Parallel()
	img := small(t)
	mirror := newRegistry(t, launchtest.RegistryOptions{})
	pushed, err := mirror.Push("hub/library/thing", img)
	require.NoError(t, err)
	ref, err := name.NewDigest("index.docker.io/library/thing@" + pushed.DigestStr())
	require.NoError(t, err)
	at := source(t, mirror)
	at.Prefix, at.NS = "hub/", true
	p := defaults(new(clock))
	p.Sources = []config.Source{at}
	v, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	assert.Equal(t, "http://"+mirror.Host()+"/hub/", v.Stats().From)
	for _, q := range mirror.Requests() {
		if q.Kind != launchtest.RequestPing {
			assert.Equal(t, "ns=docker.io", q.Query, q.Path)
		}
	}
}

// TestCredentialsStayWithTheirSource: what one is shown, no other sees.
func TestCredentialsStayWithTheirSource(t *testing.T) {
	t.Parallel()
	img := small(t)
	secure := launchtest.RegistryOptions{TLS: true, Auth: launchtest.RegistryBasic, Username: user, Password: password}
	mirror, primary := newRegistry(t, secure), newRegistry(t, secure)
	push(t, mirror, img)
	ref := at(t, remote, push(t, primary, img))
	p := away(defaults(new(clock)), primary, map[string]string{remote + ":443": primary.Host(), "mirror.test:443": mirror.Host()})
	p.Tuning.RootCAs.AppendCertsFromPEM(mirror.CertPEM())
	there, err := name.NewRegistry("mirror.test")
	require.NoError(t, err)
	p.Sources = []config.Source{{Registry: there}}
	p.Credentials = own(remote, config.Credential{Username: user, Password: password})
	_, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	assert.Positive(t, mirror.Count(launchtest.RequestManifest))
	assert.Empty(t, credentials(mirror))
	assert.Contains(t, credentials(primary), "manifest Basic")
}

// TestALittleOfEachLayer is spoiled by a source that leaves the rest to another one: nobody can be
// accused, and the image comes all the same.
func TestALittleOfEachLayer(t *testing.T) {
	var sizes []int
	for i := range 16 { // what is fetched ahead is spoiled too, and fetched again in the same restart
		sizes = append(sizes, 210_000+i)
	}
	img := imageOf(t, sizes...)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		first := newRegistry(t, launchtest.RegistryOptions{Network: network})
		whole := newRegistry(t, launchtest.RegistryOptions{Network: network})
		push(t, first, img)
		ref := push(t, whole, img)
		for i := range sizes {
			layer := layerDigest(t, img, i)
			first.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layer})
			first.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestBlob, Digest: layer, Skip: 1, Times: -1})
		}
		p := within(network)
		p.Rounds, p.Tuning.RangeSize, p.Tuning.Workers = 0, 100_000, 1
		p.Sources = []config.Source{source(t, first)}
		p.Tuning.Now = func() time.Time { // none steps back for longer than a request takes
			return time.Now().Add(time.Hour * time.Duration(first.Count(launchtest.RequestBlob)+whole.Count(launchtest.RequestBlob)))
		}
		v, digests, err := pull(t.Context(), p, ref)
		require.NoError(t, err)
		requireLayers(t, img, digests)
		assert.Equal(t, len(sizes), first.Hits(launchtest.FaultFlip))
		assert.Empty(t, v.Stats().Liars)
	})
}
