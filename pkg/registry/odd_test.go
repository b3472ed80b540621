package registry_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// TestCompressedOnTheWay: proxies and servers compress what nobody wanted compressed, or say so of
// what isn't. That is no lie.
func TestCompressedOnTheWay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		what     string
		compress bool
		ranges   bool
		length   bool
	}{
		"manifests":                        {"/manifests/", true, false, true},
		"blobs":                            {"/blobs/", true, false, true},
		"blobs without a length":           {"/blobs/", true, false, false},
		"blobs with ranges":                {"/blobs/", true, true, true},
		"blobs that only say so":           {"/blobs/", false, false, true},
		"blobs with ranges, only say so":   {"/blobs/", false, true, true},
		"manifests that only say so":       {"/manifests/", false, false, true},
		"both, compressed":                 {"/", true, false, true},
		"both, compressed, without length": {"/", true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFront(t, false)
			inner := f.Config.Handler
			f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				if !strings.Contains(q.URL.Path, c.what) || q.URL.Path == "/v2/" {
					inner.ServeHTTP(w, q)
					return
				}
				assert.Equal(t, "identity", q.Header.Get("Accept-Encoding"))
				asked := q.Header.Get("Range")
				q.Header.Del("Range")
				whole := httptest.NewRecorder()
				inner.ServeHTTP(whole, q)
				body := whole.Body.Bytes()
				if c.compress {
					body = gzipped(t, body)
				}
				w.Header().Set("Content-Encoding", "gzip")
				var start, last int
				if n, _ := fmt.Sscanf(asked, "bytes=%d-%d", &start, &last); c.ranges && n == 2 {
					last = min(last, len(body)-1)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, last, len(body)))
					w.WriteHeader(http.StatusPartialContent)
					body = body[start : last+1]
				} else if c.length {
					w.Header().Set("Content-Length", strconv.Itoa(len(body)))
				}
				_, _ = w.Write(body[:len(body)/2])
				_ = http.NewResponseController(w).Flush()
				_, _ = w.Write(body[len(body)/2:])
			})
			_, digests, err := pull(t.Context(), f.client(keychain{}), f.ref)
			require.NoError(t, err)
			requireLayers(t, small(t), digests)
		})
	}
}

// TestNextToNothing has a registry that always answers, and never with enough to get anywhere.
func TestNextToNothing(t *testing.T) {
	img := threeLayers(t)
	for name, fault := range map[string]launchtest.RegistryFault{
		"a byte for each answer":     {Kind: launchtest.FaultShortRange, After: 1},
		"a byte, and it breaks off":  {Kind: launchtest.FaultCut, After: 1},
		"100 bytes in ten seconds":   {Kind: launchtest.FaultDrip, Rate: 10},
		"ten bytes for each answer":  {Kind: launchtest.FaultShortRange, After: 10},
		"2 KB, and it stalls":        {Kind: launchtest.FaultStall, After: 2000},
		"2 KB, and it is reset":      {Kind: launchtest.FaultReset, After: 2000},
		"1,000 bytes for each range": {Kind: launchtest.FaultShortRange, After: 1000},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, network *launchtest.Network) {
				r := newRegistry(t, launchtest.RegistryOptions{Network: network})
				ref := push(t, r, img)
				fault.On, fault.Digest, fault.Times = launchtest.RequestBlob, layerDigest(t, img, 1), -1
				r.Fail(fault)
				began := time.Now()
				_, _, err := pull(t.Context(), within(network), ref)
				requireError(t, err, image.Unavailable)
				assert.Less(t, time.Since(began), 30*time.Minute)
				assert.Less(t, r.Count(launchtest.RequestBlob), 1000, "requests")
			})
		})
	}
}

// TestHeads: HEAD is a courtesy that many get wrong.
func TestHeads(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]func(w http.ResponseWriter){
		"length 0":     func(w http.ResponseWriter) { w.Header().Set("Content-Length", "0") },
		"no length":    func(w http.ResponseWriter) { w.Header().Set("Transfer-Encoding", "chunked") },
		"wrong length": func(w http.ResponseWriter) { w.Header().Set("Content-Length", "17") },
		"400":          func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadRequest) },
		"403":          func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) },
		"404":          func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) },
		"405":          func(w http.ResponseWriter) { w.WriteHeader(http.StatusMethodNotAllowed) },
		"501":          func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotImplemented) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFront(t, false)
			f.hook = func(w http.ResponseWriter, q *http.Request) bool {
				if q.Method != http.MethodHead || !strings.Contains(q.URL.Path, "/blobs/") {
					return false
				}
				head(w)
				return true
			}
			v, err := resolve(t.Context(), f.client(keychain{}), f.ref)
			require.NoError(t, err)
			layers := []int{}
			for i := range v.Layers() {
				layers = append(layers, i)
			}
			assert.NoError(t, v.source.CheckLayers(t.Context(), v.Verified, layers))
		})
	}
}

// TestWhoSaidNo: the hint of a refusal is for whoever refused.
func TestWhoSaidNo(t *testing.T) {
	t.Parallel()
	store := newFront(t, false)
	store.hook = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, "<?xml version='1.0'?>\n<Error><Code>X</Code><Message>the clock is wrong</Message></Error>")
		return true
	}
	f := newFront(t, false)
	f.hook = func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Location", store.URL+q.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	}
	_, _, err := pull(t.Context(), f.client(keychain{Username: user, Password: password}), f.ref)
	e := requireError(t, err, image.Refused)
	assert.Equal(t, strings.TrimPrefix(store.URL, "http://"), e.Host)
	assert.Equal(t, "the clock is wrong", e.Message)
	assert.Contains(t, strings.Join(e.Hints(), "\n"), "no credentials are sent there")

	f = newFront(t, false)
	f.hook = func(w http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path == "/nowhere" {
			return refuse(w, http.StatusNotFound, "")
		}
		return refuse(w, http.StatusUnauthorized, "", `Bearer realm="`+f.URL+`/nowhere",service="x"`)
	}
	_, _, err = pull(t.Context(), f.client(keychain{Username: user, Password: password}), f.ref)
	hints := strings.Join(requireError(t, err, image.Refused).Hints(), "\n")
	assert.Contains(t, hints, "token server")
	assert.NotContains(t, hints, "repository")
}
