package registry_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// own are credentials of the user config for one host.
func own(host string, c config.Credential) func(string) (config.Credential, bool) {
	return func(asked string) (config.Credential, bool) {
		if asked != host {
			return config.Credential{}, false
		}
		return c, true
	}
}

// TestOwnCredentials go to their host and the token server that it names, before the keychain's,
// and nowhere else.
func TestOwnCredentials(t *testing.T) {
	t.Parallel()
	img := small(t)
	robot := config.Credential{Username: user, Password: password}
	basic := launchtest.RegistryOptions{TLS: true, Auth: launchtest.RegistryBasic, Username: user, Password: password}
	bearer := basic
	bearer.Auth, bearer.Realm, bearer.IdentityToken = launchtest.RegistryBearer, "https://token.test/token", identity
	wrong := keychain{Username: user, Password: "the keychain's, which is wrong"}
	for name, c := range map[string]struct {
		options launchtest.RegistryOptions
		host    string // whose credentials there are
		have    config.Credential
		seen    map[string]int // nil: the pull fails
	}{
		"basic":                  {basic, remote, robot, map[string]int{"manifest Basic": 1, "blob Basic": 3}},
		"a token server":         {bearer, remote, robot, map[string]int{"token Basic": 1, "manifest Bearer": 1, "blob Bearer": 3}},
		"an identity token":      {bearer, remote, config.Credential{IdentityToken: identity}, map[string]int{"token identity token": 1, "manifest Bearer": 1, "blob Bearer": 3}},
		"another port's":         {basic, remote + ":5000", robot, nil},
		"another host's":         {basic, "token.test", robot, nil},
		"wrong, keychain or not": {basic, remote, config.Credential{Username: user, Password: "wrong"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, c.options)
			ref := at(t, remote, push(t, r, img))
			p := away(defaults(new(clock)), r, map[string]string{remote + ":443": r.Host(), "token.test:443": r.Host()})
			p.Rounds, p.Keychain, p.Credentials = 0, wrong, own(c.host, c.have)
			v, digests, err := pull(t.Context(), p, ref)
			if c.seen == nil {
				e := requireError(t, err, image.Refused)
				assert.Contains(t, strings.Join(e.Hints(), "\n"), `[launcher_config.registry_auth."registry.test"]`)
				return
			}
			require.NoError(t, err)
			requireLayers(t, img, digests)
			assert.Equal(t, "registry_auth in the user config", v.Stats().Credential)
			assert.Equal(t, c.seen, credentials(r))
		})
	}
}

// TestOwnCredentialsAreForHTTPS: not even a loopback host gets them without, as it gets a keychain's.
func TestOwnCredentialsAreForHTTPS(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{Auth: launchtest.RegistryBasic, Username: user, Password: password})
	p := defaults(new(clock))
	p.Rounds = 0
	p.Credentials = own(r.Host(), config.Credential{Username: user, Password: password})
	_, err := resolve(t.Context(), p, push(t, r, small(t)))
	e := requireError(t, err, image.Refused)
	assert.Contains(t, strings.Join(e.Hints(), "\n"), "registry_auth in the user config is for https alone")
	assert.Empty(t, credentials(r))
}

// TestOwnCredentialsGoToNoAddress: a registry on a private address may name a token server on
// another one, but that doesn't get the user config's secrets; its own address does.
func TestOwnCredentialsGoToNoAddress(t *testing.T) {
	t.Parallel()
	img := small(t)
	for realm, granted := range map[string]bool{"": true, "https://localhost:1/token": false} {
		r := newRegistry(t, launchtest.RegistryOptions{TLS: true, Auth: launchtest.RegistryBearer, Username: user, Password: password, Realm: realm})
		_, port, _ := strings.Cut(r.Host(), ":")
		ref := at(t, "127.0.0.1:"+port, push(t, r, img))
		p := away(defaults(new(clock)), r, map[string]string{"127.0.0.1:" + port: r.Host(), "127.0.0.1:1": r.Host(), "localhost:1": r.Host()})
		p.Rounds = 0
		p.Credentials = own("127.0.0.1:"+port, config.Credential{Username: user, Password: password})
		_, err := resolve(t.Context(), p, ref)
		if granted {
			require.NoError(t, err)
			continue
		}
		requireError(t, err, image.Refused)
		assert.Positive(t, r.Count(launchtest.RequestToken), "it is asked, without")
		assert.Empty(t, credentials(r))
	}
}

// TestOwnCredentialsAreNotForAStore, which gets none of anybody's.
func TestOwnCredentialsAreNotForAStore(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{TLS: true, Auth: launchtest.RegistryBasic, Username: user, Password: password,
		Redirect: launchtest.RedirectHost})
	p := defaults(new(clock))
	p.Tuning.RootCAs = r.CertPool()
	p.Credentials = own(r.Host(), config.Credential{Username: user, Password: password})
	_, _, err := pull(t.Context(), p, push(t, r, small(t)))
	require.NoError(t, err)
	assert.Positive(t, r.Count(launchtest.RequestStorage))
	assert.NotContains(t, credentials(r), "storage Basic")
}

// TestOwnCredentialsStayAtHome: a redirect to another origin never gets them, whatever it asks for.
func TestOwnCredentialsStayAtHome(t *testing.T) {
	t.Parallel()
	img := small(t)
	secure := launchtest.RegistryOptions{TLS: true, Auth: launchtest.RegistryBasic, Username: user, Password: password}
	thief := newRegistry(t, secure)
	r := newRegistry(t, secure)
	ref := at(t, remote, push(t, r, img))
	push(t, thief, img)
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultRedirect, On: launchtest.RequestManifest, Times: -1,
		Location: "https://thief.test/v2/test/image/manifests/" + ref.DigestStr()})
	p := away(defaults(new(clock)), r, map[string]string{remote + ":443": r.Host(), "thief.test:443": thief.Host()})
	p.Tuning.RootCAs.AppendCertsFromPEM(thief.CertPEM())
	p.Rounds = 0
	p.Credentials = own(remote, config.Credential{Username: user, Password: password})
	_, err := resolve(t.Context(), p, ref)
	e := requireError(t, err, image.Refused)
	assert.Equal(t, http.StatusUnauthorized, e.Status)
	assert.Positive(t, thief.Count(launchtest.RequestManifest))
	assert.Empty(t, credentials(thief))
}

// TestOnlyTheRegistrySaysHowToLogIn: where it leads to another origin at once, nobody there names a token
// server.
func TestOnlyTheRegistrySaysHowToLogIn(t *testing.T) {
	t.Parallel()
	img := small(t)
	r := newRegistry(t, launchtest.RegistryOptions{TLS: true})
	thief := newRegistry(t, launchtest.RegistryOptions{TLS: true, Auth: launchtest.RegistryBearer, Username: user, Password: password,
		Realm: "https://thief.test/token"})
	ref := at(t, remote, push(t, r, img))
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultRedirect, On: launchtest.RequestPing, Times: -1, Location: "https://thief.test/v2/"})
	p := away(defaults(new(clock)), r, map[string]string{remote + ":443": r.Host(), "thief.test:443": thief.Host()})
	p.Tuning.RootCAs.AppendCertsFromPEM(thief.CertPEM())
	p.Rounds = 0
	p.Credentials = own(remote, config.Credential{Username: user, Password: password})
	_, err := resolve(t.Context(), p, ref)
	require.NoError(t, err, "it asks for none itself")
	assert.Positive(t, thief.Count(launchtest.RequestPing))
	assert.Empty(t, credentials(thief))
	assert.Zero(t, thief.Count(launchtest.RequestToken))
}
