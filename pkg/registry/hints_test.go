package registry_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// TestWhatWaitingCantChange isn't waited for, and the hint says who can change it.
func TestWhatWaitingCantChange(t *testing.T) {
	t.Parallel()
	plain, secure := newFront(t, false), newFront(t, true)
	for name, c := range map[string]struct {
		host   string
		server *front
		roots  bool
		want   string
	}{
		"plain http":   {host: "registry.test", server: plain, want: "--insecure-registry registry.test"},
		"unknown CA":   {host: "example.com", server: secure, want: "SSL_CERT_FILE"},
		"another name": {host: "registry.test", server: secure, roots: true, want: "check DNS and proxies"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slept := new(clock)
			p := defaults(slept)
			p.Rounds = 5
			dials := 0
			p.Tuning.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				dials++
				return new(net.Dialer).DialContext(ctx, network, c.server.Listener.Addr().String())
			}
			if c.roots {
				p.Tuning.RootCAs = secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
			}
			_, err := resolve(t.Context(), p, at(t, c.host, plain.ref))
			e := requireError(t, err, image.Unavailable)
			assert.Contains(t, strings.Join(e.Hints(), "\n"), c.want)
			assert.LessOrEqual(t, dials, 1, "attempts")
		})
	}
}

// TestHintsOfOutages say what to look at.
func TestHintsOfOutages(t *testing.T) {
	t.Parallel()
	f := newFront(t, false)
	f.hook = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	_, err := resolve(t.Context(), f.client(keychain{}), f.ref)
	assert.Contains(t, strings.Join(requireError(t, err, image.Unavailable).Hints(), "\n"), "overloaded or down")

	down := httptest.NewServer(http.NotFoundHandler())
	host := down.Listener.Addr().String()
	down.Close()
	_, err = resolve(t.Context(), defaults(new(clock)), at(t, host, f.ref))
	assert.Contains(t, strings.Join(requireError(t, err, image.Unavailable).Hints(), "\n"), "nothing listens at "+host)
}

// TestBlobsDigest: a digest that is that of a blob isn't called a config's for certain.
func TestBlobsDigest(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	img := small(t)
	push(t, r, img)
	ref := at(t, r.Host(), push(t, r, img)).Context().Digest(layerDigest(t, img, 0).String())
	_, err := resolve(t.Context(), defaults(new(clock)), ref)
	hints := strings.Join(requireError(t, err, image.Refused).Hints(), "\n")
	assert.Contains(t, hints, "or a layer")
	assert.NotContains(t, hints, "repository's name")
}

// TestDocumentsOverTheLimit are told by their digest from a source that sends anything: TestLies has those.
func TestDocumentsOverTheLimit(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	large := []byte(`{"x":"` + strings.Repeat("y", image.MaxManifest) + `"}`)
	ref, err := r.PushManifest("test/large", large, "v1")
	require.NoError(t, err)
	require.Equal(t, digest.Of(large).String(), ref.DigestStr())
	_, err = resolve(t.Context(), defaults(new(clock)), ref)
	e := requireError(t, err, image.Refused)
	assert.ErrorIs(t, err, image.ErrTooLarge)
	assert.True(t, e.BadForm())
	assert.Equal(t, 1, r.Count(launchtest.RequestManifest), "asked once")
	_, err = defaults(new(clock)).Describe(t.Context(), ref.Context().Tag("v1"))
	requireError(t, err, image.Refused)
}

// proxied is set in a process of its own: Go reads the variables of proxies once.
const proxied = "LAUNCHER_TEST_PROXIED"

// TestProxies names the variable where a proxy is at fault.
func TestProxies(t *testing.T) {
	if host := os.Getenv(proxied); host != "" {
		var log strings.Builder
		p := defaults(new(clock))
		p.Rounds, p.Log = 1, slog.New(slog.NewTextHandler(&log, nil))
		_, err := resolve(t.Context(), p, at(t, host, push(t, newRegistry(t, launchtest.RegistryOptions{}), small(t))))
		e := requireError(t, err, image.Unavailable)
		fmt.Printf("\nattempts %d\n%s\n%s\n%s\n", e.Attempts, e, strings.Join(e.Hints(), "\n"), log.String())
		return
	}
	t.Parallel()
	refusing := func(status int) string {
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		t.Cleanup(proxy.Close)
		return strings.Replace(proxy.URL, "//", "//somebody:sesame@", 1)
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, c := range map[string]struct {
		environ string
		want    []string
	}{
		"login":       {"HTTPS_PROXY=" + refusing(407), []string{"attempts 1\n", "407 Proxy Auth", "wants a login", "HTTPS_PROXY"}},
		"refuses":     {"https_proxy=" + refusing(502), []string{"502 Bad Gateway", "https_proxy", "NO_PROXY"}},
		"isn't there": {"HTTPS_PROXY=" + gone.URL, []string{"HTTPS_PROXY", "NO_PROXY"}},
		"isn't a URL": {"HTTPS_PROXY=http://somebody:sesame@proxy:port", []string{"doesn't hold the URL of a proxy", "HTTPS_PROXY"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxies$", "-test.v")
			child.Env = append(os.Environ(), proxied+"=registry.invalid", c.environ)
			out, err := child.CombinedOutput()
			require.NoError(t, err, "%s", out)
			for _, want := range c.want {
				assert.Contains(t, string(out), want)
			}
			assert.NotContains(t, string(out), "sesame")
		})
	}
}
