package registry_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

func TestNotice(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, small(t))
	headers := http.Header{}
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(q *httputil.ProxyRequest) { q.SetURL(&url.URL{Scheme: "http", Host: r.Host()}) },
		ModifyResponse: func(a *http.Response) error {
			for name := range headers {
				a.Header.Set(name, headers.Get(name))
			}
			return nil
		},
	})
	defer proxy.Close()
	through, err := name.NewDigest(strings.Replace(ref.String(), r.Host(), strings.TrimPrefix(proxy.URL, "http://"), 1))
	require.NoError(t, err)
	p := defaults(new(clock))
	v, err := resolve(t.Context(), p, through)
	require.NoError(t, err)

	n, err := v.source.Notice(t.Context())
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now(), n.Date, time.Minute)
	assert.False(t, n.Limited)
	for _, c := range []struct {
		limit, remaining string
		want             registry.Notice
	}{
		{"100;w=21600", "76;w=21600", registry.Notice{Limited: true, Limit: 100, Remaining: 76}},
		{"100", "0", registry.Notice{Limited: true, Limit: 100}},
		{"100", "", registry.Notice{}}, {"many", "76", registry.Notice{}}, {"100", "-1", registry.Notice{}},
	} {
		headers.Set("RateLimit-Limit", c.limit)
		headers.Set("RateLimit-Remaining", c.remaining)
		n, err := v.source.Notice(t.Context())
		require.NoError(t, err)
		n.Date = time.Time{}
		assert.Equal(t, c.want, n, "%+v", c)
	}
	requests := r.Requests()
	assert.Equal(t, http.MethodHead, requests[len(requests)-1].Method, "what isn't counted against a limit")

	require.NoError(t, r.Stop())
	proxy.Close()
	_, err = v.source.Notice(t.Context())
	requireError(t, err, image.Unavailable)
}

func TestNoPlatform(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	foreign, err := launchtest.Image(launchtest.ImageOptions{Platform: v1.Platform{OS: "linux", Architecture: "s390x"}, Layers: [][]byte{make([]byte, 512)}})
	require.NoError(t, err)
	p := defaults(new(clock))
	_, err = resolve(t.Context(), p, push(t, r, foreign))
	assert.True(t, requireError(t, err, image.Refused).NoPlatform())
	missing, err := name.NewDigest(r.Host() + "/test/image@sha256:" + strings.Repeat("0", 64))
	require.NoError(t, err)
	_, err = resolve(t.Context(), p, missing)
	assert.False(t, requireError(t, err, image.Refused).NoPlatform())
}
