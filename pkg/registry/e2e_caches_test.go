//go:build e2e

package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/launchtest"
)

// TestE2ECaches has real pull-through caches in front of the double: CNCF Distribution's registry,
// and Debian's where it is installed. Of two at once one lies and one dies.
func TestE2ECaches(t *testing.T) {
	t.Parallel()
	tool := exec.Command("../../hack/tool", "registry")
	tool.Stderr = os.Stderr
	built, err := tool.Output()
	require.NoError(t, err)
	programs := map[string]string{"distribution": strings.TrimSpace(string(built))}
	if debian, err := exec.LookPath("docker-registry"); err == nil {
		programs["docker-registry"] = debian
	}
	for name, program := range programs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := imageOf(t, 3<<20, 12_000_000, 5_000)
			double := newRegistry(t, launchtest.RegistryOptions{})
			ref := push(t, double, img)
			first, _ := startCache(t, program, double.Host())
			second, kill := startCache(t, program, double.Host())

			p := defaults(new(clock))
			p.Sources = []config.Source{plain(t, first)}
			v, digests, err := pull(t.Context(), p, ref)
			require.NoError(t, err)
			requireLayers(t, img, digests)
			assert.Equal(t, "http://"+first, v.Stats().From)

			liar := lyingProxy(t, first, layerDigest(t, img, 1).String())
			var arrived atomic.Int64
			var died sync.Once
			p = defaults(new(clock))
			p.Progress = func(n int64) {
				if arrived.Add(n) > 18_000_000 { // once the liar's layer was fetched
					died.Do(kill)
				}
			}
			p.Sources = []config.Source{plain(t, liar), plain(t, second)}
			v, digests, err = pull(t.Context(), p, ref)
			require.NoError(t, err)
			requireLayers(t, img, digests)
			assert.Equal(t, []string{"http://" + liar}, v.Stats().Liars)
		})
	}
}

func plain(t *testing.T, host string) config.Source {
	t.Helper()
	at, err := name.NewRegistry(host)
	require.NoError(t, err)
	return config.Source{Registry: at, Plain: true}
}

// startCache starts a pull-through cache of a registry, and returns its address and what kills it.
func startCache(t *testing.T, program, of string) (address string, kill func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address = listener.Addr().String()
	require.NoError(t, listener.Close())
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nhttp: {addr: '%s'}\n"+
		"storage: {filesystem: {rootdirectory: %s/storage}}\nproxy: {remoteurl: 'http://%s'}\n", address, dir, of), 0o600))
	cmd := exec.Command(program, "serve", path)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "OTEL_TRACES_EXPORTER=none"}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	var once sync.Once
	kill = func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	t.Cleanup(kill)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, time.Minute, 20*time.Millisecond, "it doesn't listen")
	return address, kill
}

// lyingProxy hands on what a registry says, but for the first byte of each answer about a blob.
func lyingProxy(t *testing.T, host, blob string) string {
	t.Helper()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(q *httputil.ProxyRequest) { q.SetURL(&url.URL{Scheme: "http", Host: host}) },
		ModifyResponse: func(a *http.Response) error {
			if strings.HasSuffix(a.Request.URL.Path, blob) {
				a.Body = &flipped{body: a.Body}
			}
			return nil
		},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &http.Server{Handler: proxy}
	go server.Serve(listener)
	t.Cleanup(func() { _ = server.Close() })
	return listener.Addr().String()
}

type flipped struct {
	body io.ReadCloser
	done bool
}

func (f *flipped) Read(p []byte) (int, error) {
	n, err := f.body.Read(p)
	if n > 0 && !f.done {
		p[0] ^= 1
		f.done = true
	}
	return n, err
}

func (f *flipped) Close() error { return f.body.Close() }
