package registry_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// TestServers pulls from servers of every kind.
func TestServers(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	for name, o := range map[string]launchtest.RegistryOptions{
		"http":                  {},
		"https":                 {TLS: true},
		"HTTP/1.0":              {HTTP10: true},
		"HTTP/1.0 with https":   {HTTP10: true, TLS: true},
		"HTTP/2 only":           {HTTP2Only: true},
		"no ranges":             {NoRanges: true},
		"no ranges with https":  {NoRanges: true, TLS: true},
		"redirects":             {Redirect: launchtest.RedirectHost},
		"redirects with https":  {Redirect: launchtest.RedirectHost, TLS: true},
		"redirects with log-in": {Redirect: launchtest.RedirectHost, TLS: true, Auth: launchtest.RegistryBasic, Username: user, Password: password},
		"redirects, no ranges":  {Redirect: launchtest.RedirectHost, NoRanges: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, o)
			ref := push(t, r, img)
			p := defaults(new(clock))
			p.Tuning.RootCAs, p.Keychain = r.CertPool(), keychain{Username: user, Password: password}
			v, digests, err := pull(t.Context(), p, ref)
			require.NoError(t, err)
			requireLayers(t, img, digests)
			for _, q := range r.Requests() {
				if o.HTTP2Only {
					assert.Equal(t, "HTTP/2.0", q.Proto)
				} else {
					assert.Equal(t, "HTTP/1.1", q.Proto, "ranges go over several connections")
				}
			}
			if o.Redirect != launchtest.RedirectNone {
				layers := map[string]int{}
				for _, q := range r.Requests() {
					if q.Kind == launchtest.RequestBlob && q.Credential == credentialOf(o) {
						layers[q.Path]++
					}
				}
				for path, n := range layers {
					assert.Equal(t, 1, n, "the redirect of %s is resolved once", path)
				}
				for where := range credentials(r) {
					assert.NotContains(t, where, "storage")
				}
			}
			assert.Empty(t, r.Unexpected())
			assert.Equal(t, v.Size(), v.Stats().Fetched)
		})
	}
}

func credentialOf(o launchtest.RegistryOptions) string {
	if o.Auth == launchtest.RegistryBasic {
		return "Basic"
	}
	return ""
}

// TestRangesUseConnections asserts the reason for speed.
func TestRangesUseConnections(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network, Rate: 4_000_000})
		p := within(network)
		p.Tuning.RangeSize = 500_000
		_, digests, err := pull(t.Context(), p, push(t, r, img))
		require.NoError(t, err)
		requireLayers(t, img, digests)
		connections := map[string]bool{}
		for _, q := range r.Requests() {
			connections[q.Remote] = true
		}
		assert.Greater(t, len(connections), 8, "connections at once")
		assert.LessOrEqual(t, len(connections), 18, "and not more than workers")
	})
}

// TestRedirectExpires takes the URLs back on which ranges are fetched.
func TestRedirectExpires(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{Redirect: launchtest.RedirectHost})
	ref := push(t, r, img)
	p := defaults(new(clock))
	p.Tuning.RangeSize, p.Tuning.Workers = 256<<10, 4
	var arrived, expired atomic.Int64
	p.Progress = func(n int64) {
		if before := expired.Load(); arrived.Add(n) > 2e6*(before+1) && expired.CompareAndSwap(before, before+1) {
			r.Expire()
		}
	}
	_, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	assert.Greater(t, expired.Load(), int64(3))
}

// TestFaultsBehindRedirects has the storage host fail, not the registry.
func TestFaultsBehindRedirects(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	for _, c := range launchtest.FaultTable(layerDigest(t, img, 1)) {
		if c.Slow || c.Faults[0].On != launchtest.RequestBlob {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, launchtest.RegistryOptions{Redirect: launchtest.RedirectHost})
			ref := push(t, r, img)
			for _, f := range c.Faults {
				r.Fail(f)
			}
			_, digests, err := pull(t.Context(), defaults(new(clock)), ref)
			require.NoError(t, err)
			requireLayers(t, img, digests)
			assert.Positive(t, r.Hits(c.Faults[0].Kind))
		})
	}
}

// TestRedirectsThatAreNotFollowed end in a refusal, and nobody gets a request.
func TestRedirectsThatAreNotFollowed(t *testing.T) {
	t.Parallel()
	img := small(t)
	elsewhere := newRegistry(t, launchtest.RegistryOptions{})
	for name, c := range map[string]struct {
		secure   bool
		location string
		want     string
	}{
		"from https to http":         {true, "http://" + elsewhere.Host() + "/", "from https to http"},
		"from loopback to elsewhere": {false, "http://elsewhere.test/", "isn't followed"},
		"to a file":                  {false, "file:///etc/passwd", "isn't followed"},
		"with credentials":           {false, "http://user:pw@" + elsewhere.Host() + "/", "there are credentials in its URL"},
		"nowhere":                    {false, "", "without a usable location"},
		"not a URL":                  {false, "http://[", "without a usable location"},
		"in circles":                 {false, "?again", "more than 10 redirects"},
	} {
		for _, on := range []launchtest.RequestKind{launchtest.RequestManifest, launchtest.RequestBlob} {
			t.Run(name+" "+string(on), func(t *testing.T) {
				t.Parallel()
				r := newRegistry(t, launchtest.RegistryOptions{TLS: c.secure})
				ref := push(t, r, img)
				r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultRedirect, On: on, Location: c.location, Times: -1})
				p := defaults(new(clock))
				p.Tuning.RootCAs = r.CertPool()
				_, _, err := pull(t.Context(), p, ref)
				e := requireError(t, err, image.Refused)
				assert.Contains(t, e.Error(), c.want)
				assert.NotContains(t, e.Error(), "pw")
			})
		}
	}
	assert.Empty(t, elsewhere.Requests())

	r := newRegistry(t, launchtest.RegistryOptions{TLS: true, Redirect: launchtest.RedirectHTTP})
	p := defaults(new(clock))
	p.Tuning.RootCAs = r.CertPool()
	_, _, err := pull(t.Context(), p, push(t, r, img))
	requireError(t, err, image.Refused)
	assert.Zero(t, r.Count(launchtest.RequestStorage), "requests in plain")
}

// TestManifestRedirect follows one for a document too.
func TestManifestRedirect(t *testing.T) {
	t.Parallel()
	img := small(t)
	target := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, target, img)
	r := newRegistry(t, launchtest.RegistryOptions{})
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultRedirect, On: launchtest.RequestManifest, Times: -1,
		Location: "http://" + target.Host() + "/v2/test/image/manifests/" + ref.DigestStr()})
	config, err := img.RawConfigFile()
	require.NoError(t, err)
	_, err = r.PushBlob("test/image", config)
	require.NoError(t, err)
	_, err = resolve(t.Context(), defaults(new(clock)), at(t, r.Host(), ref))
	require.NoError(t, err)
	for _, q := range target.Requests() {
		assert.Equal(t, http.MethodGet, q.Method)
		assert.True(t, strings.Contains(q.Path, "/manifests/"))
	}
}
