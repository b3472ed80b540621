package registry_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

const (
	user, password, identity = "user", "correct horse", "identity-token"
	remote                   = "registry.test" // a host that isn't this machine, by its name
)

// keychain is a keychain with one answer.
type keychain authn.AuthConfig

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig(k)), nil
}

// away makes p reach hosts by name: host:port to an address.
func away(p *registry.Client, r *launchtest.Registry, hosts map[string]string) *registry.Client {
	p.Tuning.RootCAs = r.CertPool()
	dial := new(net.Dialer).DialContext
	if network := r.Network(); network != nil {
		dial = network.Dial
	}
	p.Tuning.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, ok := hosts[addr]
		if !ok && addr != r.StorageHost() {
			return nil, errors.New("nobody may go to " + addr)
		} else if !ok {
			to = addr
		}
		return dial(ctx, network, to)
	}
	return p
}

// credentials lists where credentials were seen: kind of request, scheme, and whether the
// connection was plain.
func credentials(r *launchtest.Registry) map[string]int {
	seen := map[string]int{}
	for _, q := range r.Requests() {
		if q.Credential != "" {
			where := string(q.Kind) + " " + q.Credential
			if !q.TLS {
				where += " plain"
			}
			seen[where]++
		}
	}
	return seen
}

func TestLogIn(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	secure := launchtest.RegistryOptions{TLS: true, Username: user, Password: password, IdentityToken: identity}
	basic, bearer, public := secure, secure, secure
	basic.Auth, bearer.Auth, public.Auth, public.Public = launchtest.RegistryBasic, launchtest.RegistryBearer, launchtest.RegistryBearer, true
	for name, c := range map[string]struct {
		options  launchtest.RegistryOptions
		keychain authn.Keychain
		source   string
		first    string // a place of credentials that has to be there
		tokens   int
	}{
		"open":                          {launchtest.RegistryOptions{TLS: true}, keychain{Username: user, Password: password}, "anonymous", "", 0},
		"basic":                         {basic, keychain{Username: user, Password: password}, "the given keychain", "blob Basic", 0},
		"bearer":                        {bearer, keychain{Username: user, Password: password}, "the given keychain", "token Basic", 1},
		"bearer with identity token":    {bearer, keychain{IdentityToken: identity}, "the given keychain", "token identity token", 1},
		"bearer for anybody":            {public, keychain{}, "anonymous", "blob Bearer", 1},
		"bearer for anybody and for us": {public, keychain{Username: user, Password: password}, "the given keychain", "token Basic", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, c.options)
			ref := at(t, remote, push(t, r, img))
			p := away(defaults(new(clock)), r, map[string]string{remote + ":443": r.Host()})
			// The token server is on this machine, but not by its name: what the registry names is
			// below.
			if c.options.Auth == launchtest.RegistryBearer {
				p = away(p, r, map[string]string{remote + ":443": r.Host(), "token.test:443": r.Host()})
				c.options.Realm = "https://token.test/token"
				r = newRegistry(t, c.options)
				ref = at(t, remote, push(t, r, img))
				p = away(p, r, map[string]string{remote + ":443": r.Host(), "token.test:443": r.Host()})
			}
			p.Keychain = c.keychain
			v, digests, err := pull(t.Context(), p, ref)
			require.NoError(t, err)
			requireLayers(t, img, digests)
			assert.Equal(t, c.source, v.Stats().Credential)
			assert.Equal(t, c.tokens, r.Count(launchtest.RequestToken), "one exchange, whatever asks at once")
			seen := credentials(r)
			if c.first == "" {
				assert.Empty(t, seen)
			} else {
				assert.Contains(t, seen, c.first)
			}
			assert.Empty(t, r.Unexpected())
		})
	}
}

// bearerAt is a registry called registry.test whose token server is called token.test, and a puller
// with its password.
func bearerAt(t *testing.T, o launchtest.RegistryOptions, img v1.Image) (*launchtest.Registry, *registry.Client, name.Digest) {
	t.Helper()
	o.TLS, o.Auth, o.Username, o.Password = true, launchtest.RegistryBearer, user, password
	if o.Realm == "" {
		o.Realm = "https://token.test/token"
	}
	r := newRegistry(t, o)
	p := away(defaults(new(clock)), r, map[string]string{remote + ":443": r.Host(), "token.test:443": r.Host()})
	p.Keychain = keychain{Username: user, Password: password}
	return r, p, at(t, remote, push(t, r, img))
}

// TestTokenEndsInTheMiddle takes all tokens back while layers arrive.
func TestTokenEndsInTheMiddle(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r, p, ref := bearerAt(t, launchtest.RegistryOptions{}, img)
	p.Tuning.RangeSize = 256 << 10
	var arrived, ends atomic.Int64
	p.Progress = func(n int64) {
		if before := ends.Load(); arrived.Add(n) > 3e6*(before+1) && ends.CompareAndSwap(before, before+1) {
			r.Expire()
		}
	}
	_, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	assert.Positive(t, ends.Load())
	assert.LessOrEqual(t, r.Count(launchtest.RequestToken), int(ends.Load())+1, "one exchange for each end")
}

// TestManyRefusalsMakeOneExchange takes the token back from sixteen requests at once.
func TestManyRefusalsMakeOneExchange(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r, p, ref := bearerAt(t, launchtest.RegistryOptions{Network: network, RoundTrip: time.Second}, img)
		p.Tuning.RangeSize = 256 << 10
		var first sync.Once // by then the others are on their way
		p.Progress = func(int64) { first.Do(r.Expire) }
		v, err := resolve(t.Context(), p, ref)
		require.NoError(t, err)
		tokens, blobs := r.Count(launchtest.RequestToken), r.Count(launchtest.RequestBlob)
		_, err = read(t.Context(), v, []int{1})
		require.NoError(t, err)
		assert.Equal(t, tokens+1, r.Count(launchtest.RequestToken))
		parts := int(v.Layers()[1].Size+p.Tuning.RangeSize-1) / int(p.Tuning.RangeSize)
		assert.Greater(t, r.Count(launchtest.RequestBlob)-blobs, parts+10, "many were refused")
		<-time.After(time.Minute) // until all connections have ended
	})
}

func TestTokenServerFaults(t *testing.T) {
	t.Parallel()
	img := small(t)
	for name, c := range map[string]struct {
		fault launchtest.RegistryFault
		kind  image.Kind
	}{
		"503 twice":      {launchtest.RegistryFault{Kind: launchtest.FaultStatus, Times: 2}, 0},
		"403 once":       {launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: http.StatusForbidden}, 0},
		"silent once":    {launchtest.RegistryFault{Kind: launchtest.FaultNoHeader}, 0},
		"stalls once":    {launchtest.RegistryFault{Kind: launchtest.FaultStall, After: 5}, 0},
		"silent always":  {launchtest.RegistryFault{Kind: launchtest.FaultNoHeader, Times: -1}, image.Unavailable},
		"stalls always":  {launchtest.RegistryFault{Kind: launchtest.FaultStall, Times: -1}, image.Unavailable},
		"503 always":     {launchtest.RegistryFault{Kind: launchtest.FaultStatus, Times: -1}, image.Unavailable},
		"endless always": {launchtest.RegistryFault{Kind: launchtest.FaultEndless, Times: -1}, image.Unavailable},
		"403 always":     {launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: http.StatusForbidden, Times: -1}, image.Refused},
		"sent on to its own host": {launchtest.RegistryFault{Kind: launchtest.FaultRedirect,
			Location: "/token?service=test+registry&scope=repository:test/image:pull"}, 0},
		"sent elsewhere, with an identity token": {launchtest.RegistryFault{Kind: launchtest.FaultRedirect,
			Location: "https://elsewhere.test/token", Times: -1}, image.Refused},
		"sent elsewhere": {launchtest.RegistryFault{Kind: launchtest.FaultRedirect, Location: "https://elsewhere.test/token", Times: -1}, image.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, network *launchtest.Network) {
				r, p, ref := bearerAt(t, launchtest.RegistryOptions{Network: network}, img)
				elsewhere := newRegistry(t, launchtest.RegistryOptions{
					Network: network, TLS: true, Auth: launchtest.RegistryBearer, Username: user, Password: password,
				})
				both := r.CertPool()
				require.True(t, both.AppendCertsFromPEM(elsewhere.CertPEM()))
				p = away(p, r, map[string]string{remote + ":443": r.Host(), "token.test:443": r.Host(), "elsewhere.test:443": elsewhere.Host()})
				p.Tuning.RootCAs = both
				if strings.Contains(name, "identity") {
					p.Keychain = keychain{IdentityToken: identity}
				}
				p.Rounds, p.Tuning.QuickTries = 1, 2
				c.fault.On = launchtest.RequestToken
				r.Fail(c.fault)
				_, err := resolve(t.Context(), p, ref)
				if c.kind == 0 {
					require.NoError(t, err)
					return
				}
				e := requireError(t, err, c.kind)
				assert.Equal(t, map[bool]string{false: "token.test", true: "elsewhere.test"}[c.fault.Kind == launchtest.FaultRedirect], e.Host)
				for where := range credentials(elsewhere) {
					assert.Fail(t, "credentials came elsewhere", where)
				}
			})
		})
	}
}

// TestBrokenTokenServerIsAskedOnce has many requests wait for one exchange that fails: they share
// its failure.
func TestBrokenTokenServerIsAskedOnce(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r, p, ref := bearerAt(t, launchtest.RegistryOptions{}, img)
	p.Rounds = 0
	v, err := resolve(t.Context(), p, ref)
	require.NoError(t, err)
	r.Expire()
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: http.StatusForbidden, On: launchtest.RequestToken, Times: -1})
	before := r.Count(launchtest.RequestToken)
	_, err = read(t.Context(), v, []int{0, 1, 2})
	requireError(t, err, image.Refused)
	assert.Less(t, r.Count(launchtest.RequestToken)-before, 12, "exchanges for nine parts with three attempts each")
}

// TestWrongCredentials says which ones were used. The environment is the process's, so this test
// isn't parallel.
func TestWrongCredentials(t *testing.T) {
	img := small(t)
	t.Setenv("HOME", "/nowhere")
	t.Setenv("DOCKER_CONFIG", "")
	for _, auth := range []launchtest.RegistryAuth{launchtest.RegistryBasic, launchtest.RegistryBearer} {
		for source, chain := range map[string]authn.Keychain{
			"the given keychain": keychain{Username: user, Password: "wrong"},
			"anonymous":          nil,
		} {
			r := newRegistry(t, launchtest.RegistryOptions{TLS: true, Auth: auth, Username: user, Password: password})
			ref := push(t, r, img)
			p := defaults(new(clock))
			p.Tuning.RootCAs, p.Keychain = r.CertPool(), chain
			p.Rounds = 0 // as for verify; a boot asks on, because somebody may mend them
			_, err := resolve(t.Context(), p, ref)
			e := requireError(t, err, image.Refused)
			assert.Equal(t, http.StatusUnauthorized, e.Status)
			assert.Equal(t, 3, e.Attempts)
			require.Len(t, e.Hints(), 2)
			assert.Contains(t, e.Hints()[0], source)
			if source == "anonymous" {
				assert.Contains(t, e.Hints()[0], "/nowhere/.docker/config.json", "the file that was looked for")
			}
			assert.NotContains(t, e.Error()+e.Hints()[0], "wrong", "the password")
			assert.Less(t, len(r.Requests()), 15, "requests")
		}
	}
}

// TestHostileRealms names token servers that may not have the password.
func TestHostileRealms(t *testing.T) {
	t.Parallel()
	img := small(t)
	const (
		noServer = "names no token server that may be asked"
		local    = "on this machine or in a private network"
	)
	for realm, want := range map[string]string{
		"http://token.test/token":          noServer,
		"https://127.0.0.1:1/token":        noServer,
		"https://10.1.2.3/token":           noServer,
		"https://localhost/token":          local,
		"http://[::1]/token":               noServer,
		"https://user:pw@token.test/token": "there are credentials in its URL",
		"ftp://token.test/token":           noServer,
		"token.test/token":                 noServer,
		"https:///token":                   "no host to be asked",
		"\x7f":                             noServer,
	} {
		r, p, ref := bearerAt(t, launchtest.RegistryOptions{Realm: realm}, img)
		_, err := resolve(t.Context(), p, ref)
		e := requireError(t, err, image.Refused)
		assert.Contains(t, e.Error(), want, "realm %q", realm)
		assert.NotContains(t, e.Error(), "pw")
		assert.Zero(t, r.Count(launchtest.RequestToken))
		assert.Empty(t, credentials(r))
	}
}

// TestPlainHTTP spells out who is spoken to without encryption, and who gets credentials that way.
func TestPlainHTTP(t *testing.T) {
	t.Parallel()
	img := small(t)
	basic := launchtest.RegistryOptions{Auth: launchtest.RegistryBasic, Username: user, Password: password}

	t.Run("not spoken to", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, launchtest.RegistryOptions{})
		p := away(defaults(new(clock)), r, map[string]string{remote + ":443": r.Host(), remote + ":80": r.Host()})
		_, err := resolve(t.Context(), p, at(t, remote, push(t, r, img)))
		requireError(t, err, image.Unavailable)
		assert.Empty(t, r.Requests())
	})
	t.Run("insecure", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, launchtest.RegistryOptions{})
		p := away(defaults(new(clock)), r, map[string]string{remote + ":5000": r.Host()})
		p.Insecure = []string{"REGISTRY.test"}
		_, digests, err := pull(t.Context(), p, at(t, remote+":5000", push(t, r, img)))
		require.NoError(t, err)
		requireLayers(t, img, digests)
	})
	t.Run("insecure, but another port", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, launchtest.RegistryOptions{})
		p := away(defaults(new(clock)), r, map[string]string{remote + ":5001": r.Host()})
		p.Insecure = []string{remote + ":5000"}
		_, err := resolve(t.Context(), p, at(t, remote+":5001", push(t, r, img)))
		requireError(t, err, image.Unavailable)
		assert.Empty(t, r.Requests())
	})
	t.Run("insecure gets no credentials", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, basic)
		p := away(defaults(new(clock)), r, map[string]string{remote + ":5000": r.Host()})
		p.Insecure, p.Keychain = []string{remote + ":5000"}, keychain{Username: user, Password: password}
		_, err := resolve(t.Context(), p, at(t, remote+":5000", push(t, r, img)))
		e := requireError(t, err, image.Refused)
		assert.Contains(t, strings.Join(e.Hints(), "\n"), "not sent over plain http")
		assert.Empty(t, credentials(r))
	})
	t.Run("insecure with a token for anybody", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, launchtest.RegistryOptions{Auth: launchtest.RegistryBearer, Public: true, Username: user, Password: password,
			Realm: "http://" + remote + ":5000/token"})
		p := away(defaults(new(clock)), r, map[string]string{remote + ":5000": r.Host()})
		p.Insecure, p.Keychain = []string{remote + ":5000"}, keychain{Username: user, Password: password}
		_, err := resolve(t.Context(), p, at(t, remote+":5000", push(t, r, img)))
		require.NoError(t, err)
		assert.NotContains(t, credentials(r), "token Basic plain")
	})
	t.Run("loopback gets credentials", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, basic)
		p := defaults(new(clock))
		p.Keychain = keychain{Username: user, Password: password}
		_, err := resolve(t.Context(), p, push(t, r, img))
		require.NoError(t, err)
		assert.Contains(t, credentials(r), "manifest Basic plain")
	})
	t.Run("loopback with https is never spoken to in plain", func(t *testing.T) {
		t.Parallel()
		o := basic
		o.TLS = true
		r := newRegistry(t, o)
		ref := push(t, r, img)
		r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultReset, On: launchtest.RequestManifest, Times: 2})
		p := defaults(new(clock))
		p.Keychain, p.Tuning.RootCAs = keychain{Username: user, Password: password}, r.CertPool()
		_, err := resolve(t.Context(), p, ref)
		require.NoError(t, err)
		for _, q := range r.Requests() {
			assert.True(t, q.TLS, "%s %s", q.Method, q.Path)
		}
	})
	t.Run("a bad certificate is no reason for plain http", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, launchtest.RegistryOptions{TLS: true})
		p := defaults(new(clock))
		_, err := resolve(t.Context(), p, push(t, r, img))
		e := requireError(t, err, image.Unavailable)
		assert.Contains(t, strings.Join(e.Hints(), "\n"), "SSL_CERT_FILE")
		assert.Empty(t, r.Requests())
	})
}

func TestClockHint(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{TLS: true, Expired: true})
	p := defaults(new(clock))
	p.Tuning.RootCAs = r.CertPool()
	p.Tuning.Now = func() time.Time { return time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC) }
	_, err := resolve(t.Context(), p, push(t, r, small(t)))
	e := requireError(t, err, image.Unavailable)
	require.Len(t, e.Hints(), 1)
	assert.Contains(t, e.Hints()[0], "the clock says 2031-02-03T04:05:06Z")
	assert.Contains(t, e.Hints()[0], "this certificate is valid from")
}

// hangingKeychain never answers.
type hangingKeychain struct{ release chan struct{} }

func (k hangingKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	<-k.release
	return nil, io.EOF
}

func TestKeychainThatHangs(t *testing.T) {
	img := small(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network, Auth: launchtest.RegistryBearer, Public: true})
		ref := push(t, r, img)
		release := make(chan struct{})
		defer close(release)
		p := within(network)
		p.Keychain = hangingKeychain{release}
		v, err := resolve(t.Context(), p, ref)
		require.NoError(t, err, "what anybody may have can be had without")
		assert.Equal(t, "anonymous", v.Stats().Credential)

		r = newRegistry(t, launchtest.RegistryOptions{Network: network, Auth: launchtest.RegistryBasic})
		_, err = resolve(t.Context(), p, push(t, r, img))
		e := requireError(t, err, image.Refused)
		assert.Contains(t, e.Hints()[0], "didn't answer in time")
	})
}
