package launchtest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

// asker speaks to a registry double without following anything.
type asker struct {
	t      *testing.T
	r      *launchtest.Registry
	client *http.Client
	base   string
}

func newAsker(t *testing.T, o launchtest.RegistryOptions) *asker {
	t.Helper()
	r, err := launchtest.NewRegistry(o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	base := "http://" + r.Host()
	if o.TLS || o.HTTP2Only {
		base = "https://" + r.Host()
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.CertPool()}, ForceAttemptHTTP2: o.HTTP2Only}
	t.Cleanup(transport.CloseIdleConnections)
	return &asker{t, r, &http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, base}
}

// ask returns the answer and what could be read of its body.
func (a *asker) ask(method, path string, header http.Header) (*http.Response, []byte, error) {
	a.t.Helper()
	target := path
	if !strings.Contains(path, "://") {
		target = a.base + path
	}
	q, err := http.NewRequestWithContext(a.t.Context(), method, target, nil)
	require.NoError(a.t, err)
	for k, v := range header {
		q.Header[k] = v
	}
	resp, err := a.client.Do(q)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func (a *asker) get(path string) (*http.Response, []byte) {
	a.t.Helper()
	resp, body, err := a.ask(http.MethodGet, path, nil)
	require.NoError(a.t, err)
	return resp, body
}

func ranged(value string) http.Header { return http.Header{"Range": {value}} }

// blob stores content and returns its path.
func (a *asker) blob(content []byte) string {
	a.t.Helper()
	h, err := a.r.PushBlob("a/b", content)
	require.NoError(a.t, err)
	return "/v2/a/b/blobs/" + h.String()
}

func TestRegistryServes(t *testing.T) {
	t.Parallel()
	for _, o := range []launchtest.RegistryOptions{{}, {TLS: true}, {HTTP2Only: true}, {HTTP10: true}, {NoRanges: true}} {
		a := newAsker(t, o)
		layers, err := launchtest.RandomLayers(1, 1000)
		require.NoError(t, err)
		img, err := launchtest.Image(launchtest.ImageOptions{OCI: true, Layers: layers})
		require.NoError(t, err)
		index, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: []v1.Image{img}, Attestations: true})
		require.NoError(t, err)
		ref, err := a.r.PushIndex("a/b", index, "v1")
		require.NoError(t, err)
		want, err := index.Digest()
		require.NoError(t, err)
		assert.Equal(t, a.r.Host()+"/a/b@"+want.String(), ref.String())

		resp, _ := a.get("/v2/")
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		for _, target := range []string{"v1", want.String()} {
			resp, body := a.get("/v2/a/b/manifests/" + target)
			assert.Equal(t, http.StatusOK, resp.StatusCode)
			raw, err := index.RawManifest()
			require.NoError(t, err)
			assert.Equal(t, string(raw), string(body))
			assert.Equal(t, "application/vnd.oci.image.index.v1+json", resp.Header.Get("Content-Type"))
		}
		resp, body := a.get("/v2/a/b/manifests/nothing")
		assert.Equal(t, http.StatusNotFound, resp.StatusCode)
		assert.Contains(t, string(body), "MANIFEST_UNKNOWN")

		content := []byte("0123456789")
		path := a.blob(content)
		resp, body = a.get(path)
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.Equal(t, content, body)
		resp, body, err = a.ask(http.MethodHead, path, nil)
		require.NoError(t, err)
		assert.Equal(t, int64(10), resp.ContentLength)
		assert.Empty(t, body)
		resp, body, err = a.ask(http.MethodGet, path, ranged("bytes=2-4"))
		require.NoError(t, err)
		if o.HTTP10 || o.NoRanges {
			assert.Equal(t, http.StatusOK, resp.StatusCode)
			assert.Equal(t, content, body)
		} else {
			assert.Equal(t, http.StatusPartialContent, resp.StatusCode)
			assert.Equal(t, "234", string(body))
			assert.Equal(t, "bytes 2-4/10", resp.Header.Get("Content-Range"))
		}
		if o.HTTP10 {
			assert.Equal(t, "HTTP/1.0", resp.Proto)
		} else if o.HTTP2Only {
			assert.Equal(t, "HTTP/2.0", resp.Proto)
		}
		assert.Empty(t, a.r.Unexpected())
		assert.Equal(t, 3, a.r.Count(launchtest.RequestManifest))
	}
}

func TestRegistryRemembersOddRequests(t *testing.T) {
	t.Parallel()
	a := newAsker(t, launchtest.RegistryOptions{})
	path := a.blob([]byte("0123456789"))
	for _, q := range []struct {
		method, path string
		header       http.Header
	}{
		{http.MethodGet, "/v2/_catalog", nil},
		{http.MethodDelete, path, nil},
		{http.MethodPut, "/v2/a/b/manifests/x", nil},
		{http.MethodGet, path, ranged("bytes=2-")},
		{http.MethodGet, path, ranged("bytes=10-11")},
		{http.MethodGet, path, http.Header{"Authorization": {"Basic eDp5"}}},
	} {
		before := len(a.r.Unexpected())
		_, _, err := a.ask(q.method, q.path, q.header)
		require.NoError(t, err)
		assert.Len(t, a.r.Unexpected(), before+1, "%s %s %v", q.method, q.path, q.header)
	}
}

func TestRegistryFaults(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789"), 1000)
	type result struct {
		resp *http.Response
		body []byte
		err  error
	}
	for name, c := range map[string]struct {
		fault launchtest.RegistryFault
		check func(t *testing.T, got result)
	}{
		"status": {launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 429, RetryAfter: "7"}, func(t *testing.T, got result) {
			require.NoError(t, got.err)
			assert.Equal(t, 429, got.resp.StatusCode)
			assert.Equal(t, "7", got.resp.Header.Get("Retry-After"))
		}},
		"redirect": {launchtest.RegistryFault{Kind: launchtest.FaultRedirect, Location: "/x"}, func(t *testing.T, got result) {
			require.NoError(t, got.err)
			assert.Equal(t, http.StatusTemporaryRedirect, got.resp.StatusCode)
		}},
		"cut": {launchtest.RegistryFault{Kind: launchtest.FaultCut, After: 500}, func(t *testing.T, got result) {
			require.ErrorIs(t, got.err, io.ErrUnexpectedEOF)
			assert.Len(t, got.body, 500)
		}},
		"reset": {launchtest.RegistryFault{Kind: launchtest.FaultReset, After: 500}, func(t *testing.T, got result) {
			op := new(net.OpError)
			require.ErrorAs(t, got.err, &op)
		}},
		"garbage": {launchtest.RegistryFault{Kind: launchtest.FaultGarbage}, func(t *testing.T, got result) {
			require.Error(t, got.err)
			assert.Nil(t, got.resp)
		}},
		"flip": {launchtest.RegistryFault{Kind: launchtest.FaultFlip, After: 3}, func(t *testing.T, got result) {
			require.NoError(t, got.err)
			assert.Equal(t, "0122", string(got.body[:4]))
			assert.Len(t, got.body, 4000)
		}},
		"no range": {launchtest.RegistryFault{Kind: launchtest.FaultNoRange}, func(t *testing.T, got result) {
			require.NoError(t, got.err)
			assert.Equal(t, http.StatusOK, got.resp.StatusCode)
			assert.Equal(t, content, got.body)
		}},
		"short range": {launchtest.RegistryFault{Kind: launchtest.FaultShortRange, After: 10}, func(t *testing.T, got result) {
			require.NoError(t, got.err)
			assert.Equal(t, "bytes 1000-1009/10000", got.resp.Header.Get("Content-Range"))
			assert.Len(t, got.body, 10)
		}},
		"shift body": {launchtest.RegistryFault{Kind: launchtest.FaultShiftBody}, func(t *testing.T, got result) {
			require.NoError(t, got.err)
			assert.Equal(t, "bytes 1000-4999/10000", got.resp.Header.Get("Content-Range"))
			assert.Equal(t, "123", string(got.body[:3]))
			assert.Len(t, got.body, 4000)
		}},
		"shift range": {launchtest.RegistryFault{Kind: launchtest.FaultShiftRange}, func(t *testing.T, got result) {
			require.NoError(t, got.err)
			assert.Equal(t, "bytes 1001-5000/10000", got.resp.Header.Get("Content-Range"))
			assert.Equal(t, "123", string(got.body[:3]))
		}},
		"long length": {launchtest.RegistryFault{Kind: launchtest.FaultLongLength}, func(t *testing.T, got result) {
			require.ErrorIs(t, got.err, io.ErrUnexpectedEOF)
			assert.Len(t, got.body, 4000)
		}},
		"short length": {launchtest.RegistryFault{Kind: launchtest.FaultShortLength}, func(t *testing.T, got result) {
			require.NoError(t, got.err)
			assert.Len(t, got.body, 2000)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAsker(t, launchtest.RegistryOptions{})
			path := a.blob(content)
			c.fault.On, c.fault.Skip = launchtest.RequestBlob, 1
			a.r.Fail(c.fault)
			for n, wantHits := range []int{0, 1, 1} {
				resp, body, err := a.ask(http.MethodGet, path, ranged("bytes=1000-4999"))
				assert.Equal(t, wantHits, a.r.Hits(c.fault.Kind), "after request %d", n)
				if n == 1 {
					c.check(t, result{resp, body, err})
					continue
				}
				require.NoError(t, err)
				assert.Equal(t, content[1000:5000], body)
			}
		})
	}
}

// TestRegistryWaits has the faults that only end with the client's patience, or with the registry.
func TestRegistryWaits(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("x"), 100_000)
	for kind, comes := range map[launchtest.RegistryFaultKind]int64{
		launchtest.FaultNoHeader: 0, launchtest.FaultStall: 10, launchtest.FaultDrip: 1, launchtest.FaultEndless: 200_000,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			a := newAsker(t, launchtest.RegistryOptions{})
			path := a.blob(content)
			a.r.Fail(launchtest.RegistryFault{Kind: kind, On: launchtest.RequestBlob, After: 10})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if kind == launchtest.FaultNoHeader {
				go func() {
					assert.Eventually(t, func() bool { return a.r.Hits(kind) == 1 }, patience, time.Millisecond)
					cancel()
				}()
			}
			q, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
			require.NoError(t, err)
			resp, err := a.client.Do(q)
			if comes == 0 {
				require.ErrorIs(t, err, context.Canceled)
				return
			}
			require.NoError(t, err)
			defer resp.Body.Close()
			_, err = io.CopyN(io.Discard, resp.Body, comes)
			require.NoError(t, err)
			cancel()
			rest, err := io.Copy(io.Discard, resp.Body)
			require.ErrorIs(t, err, context.Canceled)
			if kind == launchtest.FaultStall {
				assert.Zero(t, rest)
			}
		})
	}
}

func TestRegistryLies(t *testing.T) {
	t.Parallel()
	a := newAsker(t, launchtest.RegistryOptions{})
	path := a.blob([]byte("0123456789"))
	h, err := v1.NewHash(path[strings.LastIndex(path, "/")+1:])
	require.NoError(t, err)
	a.r.Forge(h, "text/plain", []byte("lie"))
	for _, p := range []string{path, "/v2/a/b/manifests/" + h.String()} {
		resp, body := a.get(p)
		assert.Equal(t, "lie", string(body))
		assert.Equal(t, "text/plain", resp.Header.Get("Content-Type"))
		assert.Equal(t, h.String(), resp.Header.Get("Docker-Content-Digest"))
	}
	a.r.Heal()
	_, body := a.get(path)
	assert.Equal(t, "0123456789", string(body))
}

func TestRegistryLogIn(t *testing.T) {
	t.Parallel()
	basic := http.Header{"Authorization": {"Basic dXNlcjpwYXNz"}}
	a := newAsker(t, launchtest.RegistryOptions{Auth: launchtest.RegistryBasic, Username: "user", Password: "pass"})
	path := a.blob([]byte("x"))
	resp, _ := a.get(path)
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	assert.Contains(t, resp.Header.Get("WWW-Authenticate"), "Basic realm=")
	resp, _, err := a.ask(http.MethodGet, path, basic)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode)

	a = newAsker(t, launchtest.RegistryOptions{Auth: launchtest.RegistryBearer, Username: "user", Password: "pass", IdentityToken: "id"})
	path = a.blob([]byte("x"))
	resp, _ = a.get(path)
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	assert.Equal(t, `Bearer realm="`+a.base+`/token",service="test registry",scope="repository:a/b:pull"`, resp.Header.Get("WWW-Authenticate"))
	const query = "/token?service=s&scope=repository:a/b:pull"
	resp, _ = a.get(query)
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode, "nobody gets nothing")
	resp, body, err := a.ask(http.MethodGet, query, basic)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	var token struct{ Token string }
	require.NoError(t, json.Unmarshal(body, &token))
	form, err := a.client.PostForm(a.base+"/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"id"}, "service": {"s"}, "scope": {"x"}})
	require.NoError(t, err)
	require.NoError(t, form.Body.Close())
	assert.Equal(t, http.StatusOK, form.StatusCode)

	bearer := http.Header{"Authorization": {"Bearer " + token.Token}}
	resp, _, err = a.ask(http.MethodGet, path, bearer)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	a.r.Expire()
	resp, _, err = a.ask(http.MethodGet, path, bearer)
	require.NoError(t, err)
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode, "a token that was taken back")
	assert.Empty(t, a.r.Unexpected())
}

func TestRegistryRedirects(t *testing.T) {
	t.Parallel()
	for _, o := range []launchtest.RegistryOptions{{Redirect: launchtest.RedirectHost}, {Redirect: launchtest.RedirectHost, TLS: true},
		{Redirect: launchtest.RedirectHTTP, TLS: true}} {
		a := newAsker(t, o)
		path := a.blob([]byte("0123456789"))
		resp, _ := a.get(path)
		require.Equal(t, http.StatusTemporaryRedirect, resp.StatusCode)
		location, err := resp.Location()
		require.NoError(t, err)
		assert.Equal(t, a.r.StorageHost(), location.Host)
		assert.Equal(t, o.TLS && o.Redirect == launchtest.RedirectHost, location.Scheme == "https")

		a.r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestBlob})
		resp, _ = a.get(path)
		assert.Equal(t, http.StatusTemporaryRedirect, resp.StatusCode, "faults of blobs strike where they are")
		resp, _ = a.get(location.String())
		assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
		resp, body := a.get(location.String())
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.Equal(t, "0123456789", string(body))
		a.r.Expire()
		resp, _ = a.get(location.String())
		assert.Equal(t, http.StatusForbidden, resp.StatusCode)
		assert.Empty(t, a.r.Unexpected())
		_, _, err = a.ask(http.MethodGet, location.String(), http.Header{"Authorization": {"Bearer x"}})
		require.NoError(t, err)
		assert.Len(t, a.r.Unexpected(), 1, "credentials at the storage host")
	}
}

func TestRegistryLink(t *testing.T) {
	t.Parallel()
	a := newAsker(t, launchtest.RegistryOptions{Rate: 1_000_000, RoundTrip: 50 * time.Millisecond})
	path := a.blob(make([]byte, 300_000))
	began := time.Now()
	_, body := a.get(path)
	assert.Len(t, body, 300_000)
	assert.GreaterOrEqual(t, time.Since(began), 340*time.Millisecond, "300 kB at 1 MB/s, and a round trip")
	began = time.Now()
	a.get("/v2/")
	assert.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond, "a round trip")
}

func TestRegistryStopsAndStarts(t *testing.T) {
	t.Parallel()
	a := newAsker(t, launchtest.RegistryOptions{})
	path := a.blob([]byte("x"))
	host := a.r.Host()
	assert.Error(t, a.r.Start(), "it is up")
	require.NoError(t, a.r.Stop())
	_, _, err := a.ask(http.MethodGet, path, nil)
	require.Error(t, err)
	op := new(net.OpError)
	require.True(t, errors.As(err, &op))
	require.NoError(t, a.r.Start())
	assert.Equal(t, host, a.r.Host())
	resp, _ := a.get(path)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
}

func TestRegistryCertificate(t *testing.T) {
	t.Parallel()
	a := newAsker(t, launchtest.RegistryOptions{TLS: true, Expired: true})
	_, _, err := a.ask(http.MethodGet, "/v2/", nil)
	certificate := new(tls.CertificateVerificationError)
	require.ErrorAs(t, err, &certificate)
	assert.Contains(t, string(a.r.CertPEM()), "BEGIN CERTIFICATE")
	plain := newAsker(t, launchtest.RegistryOptions{})
	assert.Nil(t, plain.r.CertPEM())
	assert.Nil(t, plain.r.CertPool())
}

func TestFaultTableIsWhole(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, c := range launchtest.FaultTable(v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}) {
		assert.NotEmpty(t, c.Faults, c.Name)
		names[c.Name] = true
	}
	assert.Len(t, names, 22)
}
