package registry_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/waiting"
)

// front is a server before an open registry. What its hook answers doesn't get there.
type front struct {
	*httptest.Server
	ref  name.Digest
	hook func(w http.ResponseWriter, q *http.Request) bool

	mu   sync.Mutex
	seen []*http.Request
}

func newFront(t *testing.T, secure bool) *front {
	t.Helper()
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, small(t))
	f := &front{hook: func(http.ResponseWriter, *http.Request) bool { return false }}
	proxy := &httputil.ReverseProxy{Rewrite: func(q *httputil.ProxyRequest) {
		q.SetURL(&url.URL{Scheme: "http", Host: r.Host()})
		q.Out.Header.Del("Authorization")
	}}
	handler := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		f.mu.Lock()
		f.seen = append(f.seen, q.Clone(q.Context()))
		f.mu.Unlock()
		if !f.hook(w, q) {
			proxy.ServeHTTP(w, q)
		}
	})
	if secure {
		f.Server = httptest.NewTLSServer(handler)
	} else {
		f.Server = httptest.NewServer(handler)
	}
	t.Cleanup(f.Close)
	f.ref = at(t, strings.TrimPrefix(strings.TrimPrefix(f.URL, "http://"), "https://"), ref)
	return f
}

// requests returns what was asked for.
func (f *front) requests() []*http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*http.Request(nil), f.seen...)
}

func (f *front) client(config keychain) *registry.Client {
	p := defaults(new(clock))
	p.Keychain = config
	return p
}

func refuse(w http.ResponseWriter, status int, message string, challenges ...string) bool {
	for _, c := range challenges {
		w.Header().Add("WWW-Authenticate", c)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":%q}]}`, message)
	return true
}

var basicHeader = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))

const theToken = "Bearer T0KEN"

// token answers at path like a token server for the password, and reports whether it did.
func token(w http.ResponseWriter, q *http.Request, path string) bool {
	if q.URL.Path != path {
		return false
	}
	if q.Header.Get("Authorization") != basicHeader {
		return refuse(w, http.StatusUnauthorized, "who are you?")
	}
	fmt.Fprint(w, `{"token":"T0KEN"}`)
	return true
}

// TestHiddenRepository: many registries say of a private repository to whoever isn't logged in that
// it isn't there, and only at /v2/ how to log in.
func TestHiddenRepository(t *testing.T) {
	t.Parallel()
	for _, wanted := range []string{basicHeader, theToken} {
		for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
			t.Run(fmt.Sprint(wanted[:5], status), func(t *testing.T) {
				t.Parallel()
				f := newFront(t, false)
				f.hook = func(w http.ResponseWriter, q *http.Request) bool {
					switch {
					case token(w, q, "/token"):
					case q.Header.Get("Authorization") == wanted:
						return false
					case q.URL.Path != "/v2/":
						refuse(w, status, "not here")
					case wanted == basicHeader:
						refuse(w, http.StatusUnauthorized, "", `Basic realm="x"`)
					default:
						refuse(w, http.StatusUnauthorized, "", `Bearer realm="`+f.URL+`/token",service="x"`)
					}
					return true
				}
				_, digests, err := pull(t.Context(), f.client(keychain{Username: user, Password: password}), f.ref)
				require.NoError(t, err)
				requireLayers(t, small(t), digests)
			})
		}
	}
}

// TestOpenUntilAsked: a registry that is open at /v2/ may say of a repository that it isn't.
func TestOpenUntilAsked(t *testing.T) {
	t.Parallel()
	for _, ping := range []int{http.StatusOK, http.StatusNotFound, http.StatusForbidden} {
		f := newFront(t, false)
		f.hook = func(w http.ResponseWriter, q *http.Request) bool {
			switch {
			case token(w, q, "/token"):
			case q.URL.Path == "/v2/":
				refuse(w, ping, "")
			case q.Header.Get("Authorization") == theToken:
				return false
			default:
				refuse(w, http.StatusUnauthorized, "", `Bearer realm="`+f.URL+`/token",service="x"`)
			}
			return true
		}
		_, _, err := pull(t.Context(), f.client(keychain{Username: user, Password: password}), f.ref)
		require.NoError(t, err, "/v2/ answers %d", ping)
	}
}

// TestRedirectsAndCredentials: they go along within the registry's own origin, and nowhere else.
func TestRedirectsAndCredentials(t *testing.T) {
	t.Parallel()
	for _, wanted := range []string{basicHeader, theToken} {
		for _, relative := range []bool{true, false} {
			for _, what := range []string{"/manifests/", "/blobs/"} {
				t.Run(fmt.Sprint(wanted[:5], relative, what), func(t *testing.T) {
					t.Parallel()
					store := newFront(t, false)
					f := newFront(t, false)
					f.hook = func(w http.ResponseWriter, q *http.Request) bool {
						if token(w, q, "/token") {
							return true
						}
						if q.Header.Get("Authorization") != wanted {
							challenge := `Bearer realm="` + f.URL + `/token",service="x"`
							if wanted == basicHeader {
								challenge = `Basic realm="x"`
							}
							return refuse(w, http.StatusUnauthorized, "", challenge)
						}
						if rest, ok := strings.CutPrefix(q.URL.Path, "/moved"); ok {
							q.URL.Path = rest
							if strings.HasSuffix(q.URL.Path, "/elsewhere") {
								w.Header().Set("Location", store.URL+strings.TrimSuffix(q.URL.Path, "/elsewhere"))
								w.WriteHeader(http.StatusTemporaryRedirect)
								return true
							}
							return false
						}
						if strings.Contains(q.URL.Path, what) {
							to := "/moved" + q.URL.Path
							if what == "/blobs/" {
								to += "/elsewhere"
							}
							if !relative {
								to = f.URL + to
							}
							w.Header().Set("Location", to)
							w.WriteHeader(http.StatusTemporaryRedirect)
							return true
						}
						return false
					}
					_, digests, err := pull(t.Context(), f.client(keychain{Username: user, Password: password}), f.ref)
					require.NoError(t, err)
					requireLayers(t, small(t), digests)
					for _, q := range store.requests() {
						assert.Empty(t, q.Header.Get("Authorization"), "credentials at %s", q.URL.Path)
					}
					assert.Equal(t, what == "/blobs/", len(store.requests()) > 0)
				})
			}
		}
	}
}

// TestARedirectedRefreshToken isn't sent to another origin, however many redirects lead there.
func TestARedirectedRefreshToken(t *testing.T) {
	t.Parallel()
	thief := newFront(t, false)
	thief.hook = func(w http.ResponseWriter, q *http.Request) bool {
		body, _ := io.ReadAll(q.Body)
		assert.NotContains(t, string(body), identity, "%s", q.URL)
		http.Redirect(w, q, thief.URL+q.URL.Path+"/next", http.StatusTemporaryRedirect)
		return true
	}
	for _, first := range []string{thief.URL + "/token", "/again"} {
		f := newFront(t, false)
		var asked atomic.Int64
		f.hook = func(w http.ResponseWriter, q *http.Request) bool {
			switch q.URL.Path {
			case "/token":
				asked.Add(1)
				http.Redirect(w, q, first, http.StatusTemporaryRedirect)
			case "/again":
				http.Redirect(w, q, thief.URL+"/token", http.StatusTemporaryRedirect)
			default:
				refuse(w, http.StatusUnauthorized, "", `Bearer realm="`+f.URL+`/token",service="x"`)
			}
			return true
		}
		_, _, err := pull(t.Context(), f.client(keychain{IdentityToken: identity}), f.ref)
		require.Error(t, err)
		assert.Positive(t, asked.Load())
	}
}

// TestTokenServers are as token servers are.
func TestTokenServers(t *testing.T) {
	t.Parallel()
	const path = "/token"
	for name, c := range map[string]struct {
		config     keychain
		challenges func(f *front) []string
		hook       func(w http.ResponseWriter, q *http.Request) bool
		wanted     string
	}{
		"redirect with 301": {
			hook: func(w http.ResponseWriter, q *http.Request) bool {
				if q.URL.Path == path {
					http.Redirect(w, q, "/token/?"+q.URL.RawQuery, http.StatusMovedPermanently)
					return true
				}
				return token(w, q, "/token/")
			},
		},
		"redirect with 307": {
			hook: func(w http.ResponseWriter, q *http.Request) bool {
				if q.URL.Path == path {
					http.Redirect(w, q, "/service/token?"+q.URL.RawQuery, http.StatusTemporaryRedirect)
					return true
				}
				return token(w, q, "/service/token")
			},
		},
		"no POST": {
			config: keychain{Username: user, Password: password, IdentityToken: identity},
			hook: func(w http.ResponseWriter, q *http.Request) bool {
				if q.Method == http.MethodPost {
					return refuse(w, http.StatusNotFound, "")
				}
				return token(w, q, path)
			},
		},
		"no token server, and a password does": {
			challenges: func(f *front) []string {
				return []string{`Bearer realm="` + f.URL + `/nothing",service="x"`, `Basic realm="x"`}
			},
			wanted: basicHeader,
		},
		"the same in one header": {
			challenges: func(f *front) []string {
				return []string{`Bearer realm="` + f.URL + `/nothing",service="x", Basic realm="x"`}
			},
			wanted: basicHeader,
		},
		"Negotiate with data before": {
			challenges: func(*front) []string { return []string{`Negotiate YIIabc==, Basic realm="x"`} },
			wanted:     basicHeader,
		},
		"Negotiate in a header of its own": {
			challenges: func(*front) []string { return []string{"Negotiate", `Basic realm="x"`} },
			wanted:     basicHeader,
		},
		"the token server last": {
			challenges: func(f *front) []string {
				return []string{`Basic realm="x", Bearer realm="` + f.URL + `/token",service="x"`}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.config == (keychain{}) {
				c.config = keychain{Username: user, Password: password}
			}
			if c.wanted == "" {
				c.wanted = theToken
			}
			f := newFront(t, false)
			f.hook = func(w http.ResponseWriter, q *http.Request) bool {
				hook := c.hook
				if hook == nil {
					hook = func(w http.ResponseWriter, q *http.Request) bool { return token(w, q, path) }
				}
				switch {
				case hook(w, q):
				case !strings.HasPrefix(q.URL.Path, "/v2/"):
					refuse(w, http.StatusNotFound, "no token server")
				case q.Header.Get("Authorization") == c.wanted:
					return false
				default:
					challenges := []string{`Bearer realm="` + f.URL + `/token",service="x"`}
					if c.challenges != nil {
						challenges = c.challenges(f)
					}
					refuse(w, http.StatusUnauthorized, "", challenges...)
				}
				return true
			}
			_, digests, err := pull(t.Context(), f.client(c.config), f.ref)
			require.NoError(t, err)
			requireLayers(t, small(t), digests)
		})
	}
}

// TestSecretsStayInside: what a registry or a token server repeats of what it was sent is shown
// nowhere.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	secrets := []string{password, url.QueryEscape(password), strings.TrimPrefix(basicHeader, "Basic "), identity, "T0KEN", "hunter2"}
	bearer := func(f *front) string { return `Bearer realm="` + f.URL + `/token",service="x"` }
	for name, c := range map[string]struct {
		config keychain
		hook   func(f *front, w http.ResponseWriter, q *http.Request) bool
	}{
		"a registry that repeats the password": {hook: func(_ *front, w http.ResponseWriter, q *http.Request) bool {
			if sent := q.Header.Get("Authorization"); sent != "" {
				return refuse(w, http.StatusForbidden, "you sent "+sent+" and "+password)
			}
			return refuse(w, http.StatusUnauthorized, "", `Basic realm="x"`)
		}},
		"a registry that repeats the token": {hook: func(f *front, w http.ResponseWriter, q *http.Request) bool {
			switch {
			case token(w, q, "/token"):
			case q.Header.Get("Authorization") == theToken:
				refuse(w, http.StatusForbidden, "you sent "+theToken)
			default:
				refuse(w, http.StatusUnauthorized, "", bearer(f))
			}
			return true
		}},
		"a token server that repeats the password": {hook: func(f *front, w http.ResponseWriter, q *http.Request) bool {
			if q.URL.Path == "/token" {
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprintf(w, `{"details":%q}`, "bad "+q.Header.Get("Authorization"))
				return true
			}
			return refuse(w, http.StatusUnauthorized, "", bearer(f))
		}},
		"a token server that repeats the identity token": {config: keychain{IdentityToken: identity},
			hook: func(f *front, w http.ResponseWriter, q *http.Request) bool {
				if q.Method == http.MethodPost {
					body, _ := io.ReadAll(q.Body)
					return refuse(w, http.StatusBadRequest, string(body))
				}
				return refuse(w, http.StatusUnauthorized, "", bearer(f))
			}},
		"half a token": {hook: func(f *front, w http.ResponseWriter, q *http.Request) bool {
			if q.URL.Path == "/token" {
				fmt.Fprint(w, `{"token":"T0KEN`)
				return true
			}
			return refuse(w, http.StatusUnauthorized, "", bearer(f))
		}},
		"no token in the answer": {hook: func(f *front, w http.ResponseWriter, q *http.Request) bool {
			if q.URL.Path == "/token" {
				fmt.Fprint(w, `{"other":"T0KEN"}`)
				return true
			}
			return refuse(w, http.StatusUnauthorized, "", bearer(f))
		}},
		"a realm with a password": {hook: func(_ *front, w http.ResponseWriter, q *http.Request) bool {
			return refuse(w, http.StatusUnauthorized, "", `Bearer realm="http://user:hunter2@%zz/"`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.config == (keychain{}) {
				c.config = keychain{Username: user, Password: password}
			}
			f := newFront(t, false)
			f.hook = func(w http.ResponseWriter, q *http.Request) bool { return c.hook(f, w, q) }
			var log bytes.Buffer
			p := f.client(c.config)
			p.Rounds = 0
			p.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			_, err := resolve(t.Context(), p, f.ref)
			e := new(image.Error)
			require.ErrorAs(t, err, &e)
			printed := err.Error() + log.String() + strings.Join(e.Hints(), "\n") + e.Message + e.Code
			for _, secret := range secrets {
				assert.NotContains(t, printed, secret)
			}
		})
	}
}

// TestNoHostTellsASecret: who redirects chooses the name of the host, and what it answers is told with a
// hint that names it.
func TestNoHostTellsASecret(t *testing.T) {
	t.Parallel()
	for _, status := range []int{0, http.StatusForbidden, http.StatusInternalServerError, http.StatusServiceUnavailable} {
		f := newFront(t, false)
		board := new(waiting.Board)
		var waited, hinted []string
		at := "T0KEN.localhost:" + f.ref.RegistryStr()[strings.LastIndexByte(f.ref.RegistryStr(), ':')+1:]
		f.hook = func(w http.ResponseWriter, q *http.Request) bool {
			what, _ := board.Longest()
			waited = append(waited, what)
			switch {
			case strings.HasSuffix(strings.Split(q.Host, ":")[0], ".localhost"):
				w.WriteHeader(status)
			case token(w, q, "/token"):
			case q.Header.Get("Authorization") != theToken:
				refuse(w, http.StatusUnauthorized, "", `Bearer realm="`+f.URL+`/token",service="x"`)
			default:
				http.Redirect(w, q, "http://"+at+"/x", http.StatusTemporaryRedirect)
			}
			return true
		}
		p := f.client(keychain{Username: user, Password: password})
		p.Rounds, p.Insecure = 0, []string{strings.ToLower(at), at}
		p.Tuning.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if status == 0 && strings.Contains(addr, "localhost") {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			return new(net.Dialer).DialContext(ctx, network, f.ref.RegistryStr())
		}
		_, err := resolve(waiting.With(t.Context(), board), p, f.ref)
		e := new(image.Error)
		require.ErrorAs(t, err, &e)
		hinted = e.Hints()
		assert.NotEmpty(t, hinted)
		assert.NotContains(t, strings.ToUpper(fmt.Sprint(hinted, waited, err)), "T0KEN", "%d", status)
		assert.Contains(t, fmt.Sprint(hinted), "….localhost", "%d: it was led there", status)
	}
}

// TestAHeaderIsCutAfterItsSecrets are out of it: what is left of one at the cut isn't known for one.
func TestAHeaderIsCutAfterItsSecrets(t *testing.T) {
	t.Parallel()
	const digits = "314159265358979"
	f := newFront(t, false)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+digits))
	f.hook = func(w http.ResponseWriter, q *http.Request) bool {
		switch {
		case q.Header.Get("Authorization") != basic:
			return refuse(w, http.StatusUnauthorized, "", `Basic realm="x"`)
		case q.Header.Get("Range") != "" && strings.Contains(q.URL.Path, "/blobs/"):
			w.Header().Set("Content-Range", "bytes "+strings.Repeat("0", 62)+digits+"-999999999999999999/*")
			w.WriteHeader(http.StatusPartialContent)
			return true
		}
		return false
	}
	_, _, err := pull(t.Context(), f.client(keychain{Username: user, Password: digits}), f.ref)
	e := new(image.Error)
	require.ErrorAs(t, err, &e)
	assert.ErrorContains(t, err, "asked for bytes")
	assert.NotContains(t, err.Error()+strings.Join(e.Hints(), ""), digits[:8])
}

// TestPublicHostsDontLeadInside: neither a redirect nor a realm of a public host names a place on
// this machine or in a private network, however that is spelled.
func TestPublicHostsDontLeadInside(t *testing.T) {
	t.Parallel()
	img := small(t)
	inside := newRegistry(t, launchtest.RegistryOptions{TLS: true})
	push(t, inside, img)
	for _, host := range []string{
		inside.Host(), "localhost:1", "10.1.2.3", "192.168.0.1:443", "169.254.169.254", "[::1]:443", "[fd00:ec2::254]",
		"[::ffff:127.0.0.1]", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "sub.localhost",
	} {
		for _, on := range []launchtest.RequestKind{launchtest.RequestPing, launchtest.RequestManifest, launchtest.RequestBlob} {
			r := newRegistry(t, launchtest.RegistryOptions{TLS: true})
			ref := at(t, remote, push(t, r, img))
			r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultRedirect, On: on, Location: "https://" + host + "/x", Times: -1})
			p := away(defaults(new(clock)), r, map[string]string{remote + ":443": r.Host()})
			_, _, err := pull(t.Context(), p, ref)
			e := requireError(t, err, image.Refused)
			assert.Contains(t, e.Error(), "on this machine or in a private network", "%s to %s", on, host)
		}
	}
	assert.Empty(t, inside.Requests())
}

// TestSchemeStays: a registry that answered over https is never spoken to in plain, whatever is
// allowed.
func TestSchemeStays(t *testing.T) {
	t.Parallel()
	img := small(t)
	r := newRegistry(t, launchtest.RegistryOptions{TLS: true, Auth: launchtest.RegistryBasic, Username: user, Password: password})
	plain := newRegistry(t, launchtest.RegistryOptions{Auth: launchtest.RegistryBasic, Username: user, Password: password})
	ref := at(t, remote+":5000", push(t, r, img))
	hosts := map[string]string{remote + ":5000": r.Host()}
	p := away(defaults(new(clock)), r, hosts)
	p.Insecure, p.Keychain = []string{remote}, keychain{Username: user, Password: password}
	source := p.Source(ref)
	v, err := source.Resolve(t.Context())
	require.NoError(t, err)
	require.NoError(t, r.Stop())
	hosts[remote+":5000"] = plain.Host()
	_, err = read(t.Context(), &pulled{v, source}, []int{0})
	requireError(t, err, image.Unavailable)
	assert.Empty(t, plain.Requests())

	// And where it is spoken to in plain from the start, no password goes there.
	_, err = resolve(t.Context(), p, ref)
	requireError(t, err, image.Refused)
	assert.NotEmpty(t, plain.Requests())
	assert.Empty(t, credentials(plain))
}

// TestNoWayIn: a registry that refuses without a way that can be gone is told as it answers.
func TestNoWayIn(t *testing.T) {
	t.Parallel()
	for _, challenges := range [][]string{nil, {"Negotiate"}, {`Digest realm="basics"`}, {""}} {
		f := newFront(t, false)
		f.hook = func(w http.ResponseWriter, q *http.Request) bool {
			return refuse(w, http.StatusUnauthorized, "", challenges...)
		}
		_, err := resolve(t.Context(), f.client(keychain{Username: user, Password: password}), f.ref)
		assert.Equal(t, http.StatusUnauthorized, requireError(t, err, image.Refused).Status, "%q", challenges)
		for _, q := range f.requests() {
			assert.Empty(t, q.Header.Get("Authorization"), "%q", challenges)
		}

		f = newFront(t, false)
		f.hook = func(w http.ResponseWriter, q *http.Request) bool {
			return q.URL.Path == "/v2/" && refuse(w, http.StatusUnauthorized, "", challenges...)
		}
		_, err = resolve(t.Context(), f.client(keychain{}), f.ref)
		assert.NoError(t, err, "what is open is open, whatever /v2/ says: %q", challenges)
	}
}

// TestAnInsecureHostIsNoWayOutOfHTTPS: a registry that speaks https can't have a password sent in
// plain by naming a token server that may be spoken to so.
func TestAnInsecureHostIsNoWayOutOfHTTPS(t *testing.T) {
	t.Parallel()
	img := small(t)
	plain := newRegistry(t, launchtest.RegistryOptions{Auth: launchtest.RegistryBearer, Username: user, Password: password})
	const realm = "http://token.test:5000/token"
	for name, o := range map[string]launchtest.RegistryOptions{"realm": {Realm: realm}, "redirect": {}} {
		for _, config := range []keychain{{Username: user, Password: password}, {IdentityToken: identity}} {
			r, p, ref := bearerAt(t, o, img)
			p = away(p, r, map[string]string{
				remote + ":443": r.Host(), "token.test:443": r.Host(), "token.test:5000": plain.Host(),
			})
			p.Insecure, p.Keychain = []string{"token.test"}, config
			r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultRedirect, On: launchtest.RequestToken, Location: realm, Times: -1})
			_, err := resolve(t.Context(), p, ref)
			requireError(t, err, image.Refused)
			assert.Equal(t, name == "redirect", r.Count(launchtest.RequestToken) > 0, name)
			assert.Empty(t, plain.Requests(), name)
		}
	}
}
