package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"tee-launcher/pkg/waiting"
)

// login is go-containerregistry's, above the guard: challenge, token exchange, renewal. What it
// adds is that credentials are looked for when the registry asks and not before, that many requests
// that are refused at once make one exchange, and that the next way to log in is tried where one
// fails.
type login struct {
	source *remote

	turn chan struct{} // held by the request that asks the registry how to log in, or logs in

	mu         sync.Mutex
	through    *loginTransport // of the last login
	session    *session        // nil until the registry was asked
	exchanges  int             // attempts to log in or renew
	failed     *failure        // of the last one
	credential *credential
}

// session is how requests to the registry are sent.
type session struct {
	transport http.RoundTripper
	loggedIn  bool
	token     bool // it can be renewed
}

func newLogin(s *remote) *login {
	return &login{source: s, turn: make(chan struct{}, 1)}
}

// credentialSource says where the credentials in use came from.
func (l *login) credentialSource() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.credential == nil {
		return anonymous
	}
	return l.credential.source
}

// own reports whether the credentials in use are the user config's.
func (l *login) own() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.credential != nil && l.credential.own
}

// explanation says for a hint what was used and, if that is nothing, where it was looked for.
func (l *login) explanation() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.credential == nil:
		return "none were asked for"
	case l.credential.note != "":
		return l.credential.source + ", " + l.credential.note
	}
	return l.credential.source
}

func (l *login) take(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *login) release() { <-l.turn }

func (l *login) state() (*session, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session, l.exchanges
}

func (l *login) set(session *session, f *failure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.exchanges++
	l.failed = f
	if f == nil {
		l.session = session
	}
}

// once does what needs the turn, unless another request did it since seen: they share its end,
// instead of asking a broken token server in turn.
func (l *login) once(ctx context.Context, seen int, do func() (*session, *failure)) (*session, *failure) {
	if err := l.take(ctx); err != nil {
		return nil, &failure{err: err}
	}
	defer l.release()
	if current, exchanges := l.state(); exchanges != seen {
		l.mu.Lock()
		defer l.mu.Unlock()
		return current, l.failed
	}
	made, f := do()
	if ctx.Err() != nil {
		return nil, &failure{err: context.Cause(ctx)} // no other request's end
	}
	l.set(made, f)
	return made, f
}

// begin returns how requests to the registry are sent. The first time, that is asked at /v2/: what
// hides a repository from strangers says there how to log in, and only there.
func (l *login) begin(ctx context.Context, t *tries) (*session, *failure) {
	current, seen := l.state()
	if current != nil {
		return current, nil
	}
	return l.once(ctx, seen, func() (*session, *failure) {
		a, f := l.source.ping(ctx, t)
		if f != nil {
			return nil, f
		}
		refused := l.source.rejected(a)
		ways := usable(a.Header.Values("WWW-Authenticate"))
		if origin(a.url) != origin(l.source.guard.base()) {
			ways = nil // how to log in is for the registry itself to say, not for whom it leads to
		}
		switch {
		case a.StatusCode == http.StatusUnauthorized && len(ways) > 0:
			return l.in(ctx, t, ways)
		case a.StatusCode >= 400 && refused.class == transient:
			return nil, refused
		}
		return &session{transport: l.source.guard}, nil // open, or it will say so
	})
}

// in logs in by the first of the ways on offer that works; there has to be one.
func (l *login) in(ctx context.Context, t *tries, ways []string) (*session, *failure) {
	s := l.source
	host := s.ref.Context().RegistryStr()
	var options []name.Option
	if s.guard.base().Scheme == "http" {
		options = append(options, name.Insecure)
	}
	registry, err := name.NewRegistry(host, options...)
	if err != nil {
		return nil, &failure{class: permanent, host: host, err: err}
	}
	var first *failure
	for _, way := range ways {
		through := &loginTransport{guard: s.guard, challenge: way}
		l.mu.Lock()
		l.through = through
		l.mu.Unlock()
		inside, err := transport.NewWithContext(t.with(ctx, nil), registry, authenticator{l}, through,
			[]string{s.ref.Context().Scope(transport.PullScope)})
		if err == nil {
			return &session{transport: inside, loggedIn: true, token: isToken(way)}, nil
		}
		if ctx.Err() != nil {
			return nil, &failure{err: context.Cause(ctx)}
		}
		if f := l.failure(err); first == nil {
			first = f
		}
	}
	return nil, first
}

// renew is for a registry that answered 401 to a request of used: it returns a better session, or
// nil if there can't be any.
func (l *login) renew(ctx context.Context, t *tries, used *session, seen int, challenged []string,
	again func() *failure) (*session, *failure) {
	switch ways := usable(challenged); {
	case !used.loggedIn && len(ways) > 0:
		return l.once(ctx, seen, func() (*session, *failure) { return l.in(ctx, t, ways) })
	case used.token:
		return l.once(ctx, seen, func() (*session, *failure) {
			return &session{transport: used.transport, loggedIn: true, token: true}, again()
		})
	}
	return nil, nil
}

var errNoTokenServer = errors.New("the registry names no token server that may be asked: " +
	"it has to be https, and neither on this machine nor in a private network")

// failure says why logging in failed. The texts of go-containerregistry may hold what a token
// server said, so they aren't used.
func (l *login) failure(err error) *failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.through
	d.mu.Lock()
	defer d.mu.Unlock()
	var route *routeError
	var network *netError
	var status *transport.Error
	switch {
	case errors.As(err, &route):
		return &failure{class: permanent, host: route.host, err: route}
	case errors.As(err, &network):
		f := l.source.networkFailure(network.host, network.err)
		f.err = fmt.Errorf("token: %w", f.err)
		return f
	case errors.As(err, &status) && d.refused != nil:
		d.refused.err, d.refused.token = errors.New("the token server refused"), true
		return d.refused
	case d.led:
		return &failure{class: permanent, host: d.host, token: true,
			err: errors.New("the token server redirects to where no token may be got")}
	case d.host == "":
		return &failure{class: permanent, host: l.source.host(), err: errNoTokenServer}
	}
	return &failure{host: d.host, err: errors.New("token: the answer is not the JSON of a token")}
}

// loginTransport stands between go-containerregistry's login and the guard. The registry was
// already asked at /v2/, so it answers that itself, with the one challenge that is to be met.
type loginTransport struct {
	guard     *guard
	challenge string

	mu      sync.Mutex
	open    bool     // the challenge was handed over
	host    string   // the one asked last
	led     bool     // it led elsewhere
	refused *failure // its last answer, if that was a refusal
}

// RoundTrip implements http.RoundTripper.
func (d *loginTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	base := d.guard.base()
	d.mu.Lock()
	open := d.open
	d.open = d.open || request.URL.Scheme == base.Scheme
	d.mu.Unlock()
	if !open {
		if request.URL.Scheme != base.Scheme {
			return nil, &routeError{host: base.Host, err: errors.New("the registry speaks " + base.Scheme)}
		}
		return &http.Response{
			StatusCode: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {d.challenge}},
			Body: http.NoBody, Request: request,
		}, nil
	}
	response, err := d.guard.RoundTrip(request)
	at, ours := request.Context().Value(attemptKey{}).(*attempt)
	if err == nil && ours && at.hide && response.StatusCode == http.StatusUnauthorized {
		// One at a time: go-containerregistry would renew for every request.
		at.challenged = response.Header.Values("WWW-Authenticate")
		response.Header.Del("WWW-Authenticate")
		return response, nil
	}
	d.note(request, response, err)
	return response, err
}

// note keeps what a token server says.
func (d *loginTransport) note(request *http.Request, response *http.Response, err error) {
	at, ours := request.Context().Value(attemptKey{}).(*attempt)
	if ours && at.target != nil && at.target.Path == request.URL.Path {
		return // the request for which a token is got
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.host, d.refused = request.URL.Host, nil
	d.led = err == nil && isRedirect(response.StatusCode)
	if err == nil && response.StatusCode >= 400 {
		d.refused = d.guard.source.rejected(&answer{Response: response, url: request.URL, host: request.URL.Host})
		response.Body = http.NoBody
	}
}

// authenticator is the credentials for the registry, once go-containerregistry wants them.
type authenticator struct{ login *login }

// Authorization implements authn.Authenticator.
func (a authenticator) Authorization() (*authn.AuthConfig, error) {
	return a.AuthorizationContext(context.Background())
}

// AuthorizationContext implements authn.ContextAuthenticator. No credentials are no error: many
// images can be had without.
func (a authenticator) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	l := a.login
	l.mu.Lock()
	known := l.credential
	l.mu.Unlock()
	if known == nil {
		known = l.source.findCredential(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		l.source.Log.Info("the registry asks for credentials", "host", l.source.host(),
			"credentials", known.source, "note", known.note)
		l.mu.Lock()
		l.credential = known
		l.mu.Unlock()
	}
	config := known.config
	return &config, nil
}

// schemes finds where in a WWW-Authenticate header a scheme begins that can be met.
var schemes = regexp.MustCompile(`(?i)(?:^|,)\s*(?:bearer|basic)(?:\s|$)`)

// maxWays is how many challenges of one scheme are met in turn, each with a request to whom it names.
const maxWays = 4

// usable returns the challenges that can be met, each alone, those for a token first: a token is
// what can be had without a password. Reading them is left to go-containerregistry, which
// takes one from each header.
func usable(headers []string) []string {
	var tokens, passwords []string
	for _, header := range headers {
		begins := schemes.FindAllStringIndex(header, 8)
		for i, at := range begins {
			end := len(header)
			if i+1 < len(begins) {
				end = begins[i+1][0]
			}
			offer := strings.TrimLeft(header[at[0]:end], ", \t")
			if isToken(offer) {
				tokens = append(tokens, offer)
			} else {
				passwords = append(passwords, offer)
			}
		}
	}
	return append(tokens[:min(maxWays, len(tokens))], passwords[:min(maxWays, len(passwords))]...)
}

// isToken tells the two schemes apart.
func isToken(offer string) bool { return strings.HasPrefix(strings.ToLower(offer), "bearer") }

// findCredential looks into the user config, and then asks the keychain, no longer than the helper time-out. A source that fails is
// none, as for Docker.
func (s *remote) findCredential(ctx context.Context) *credential {
	if own := s.ownCredential(); own != nil {
		return own
	}
	if base := s.guard.base(); base.Scheme != "https" && !isLoopback(base.Host) {
		return none("because credentials are not sent over plain http")
	}
	ctx, cancel := context.WithTimeout(ctx, s.Tuning.HelperTimeout)
	defer cancel()
	if s.Keychain == nil {
		return dockerCredential(ctx, s.ref.Context(), s.ForbiddenHelperDirs)
	}
	defer waiting.For(ctx, givenSource)()
	found := make(chan *credential, 1)
	go func() { found <- givenCredential(ctx, s.Keychain, s.ref.Context()) }()
	select {
	case c := <-found:
		return c
	case <-ctx.Done():
		return none("because %s didn't answer in time", givenSource)
	}
}

// with hands an attempt to the guard.
func (t *tries) with(ctx context.Context, at *attempt) context.Context {
	if at == nil {
		at = &attempt{}
	}
	at.patience = t.patience()
	return context.WithValue(ctx, attemptKey{}, at)
}
