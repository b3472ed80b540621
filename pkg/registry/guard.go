package registry

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/waiting"
)

// guard is the one way out: every request to a registry, a token server or a redirect's target
// passes it, go-containerregistry's own too. What sends a request doesn't have to know what may
// go where.
//
//   - Plain http goes to loopback hosts and to those that the operator named, and https is never left
//     for it, neither by a redirect nor because a registry that spoke https doesn't for once.
//   - A public host leads neither to this machine nor to an address in a private network.
//   - Nothing secret goes over plain http to another machine, nor where a redirect leads to another
//     origin than it was meant for. What was sent as a secret is known, and redacted in messages.
//   - An answer's header has to come in time, and its body in a steady flow.
type guard struct {
	source *remote

	mu     sync.Mutex
	scheme string // of the registry; empty until it answered
}

// attempt is what the sender of a request has to do with the guard, handed through the context.
type attempt struct {
	patience time.Duration // a factor
	target   *url.URL      // nil for a request that is part of logging in
	hide     bool          // from go-containerregistry, how a 401 says to log in
	// challenged is what was hidden.
	challenged []string
}

type attemptKey struct{}

// routeError is a request that may not be sent.
type routeError struct {
	host string
	err  error
}

func (e *routeError) Error() string { return e.err.Error() }

// netError is a request that got no answer.
type netError struct {
	host string
	err  error
}

func (e *netError) Error() string { return e.err.Error() }
func (e *netError) Unwrap() error { return e.err }

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(request *http.Request) (*http.Response, error) {
	s, host := g.source, request.URL.Host
	if err := g.allowed(request); err != nil {
		return nil, &routeError{host: host, err: err}
	}
	patience := time.Duration(1)
	if at, ok := request.Context().Value(attemptKey{}).(*attempt); ok {
		patience = at.patience
	}
	w := newWatch(request.Context(), patience*s.Tuning.HeaderTimeout, patience*s.Tuning.Window, s.leastBytes)
	sent := request.Clone(w.ctx)
	g.strip(sent)
	g.remember(sent)
	over := waiting.For(request.Context(), g.shown(host))
	// Compressed once more, ranges and digests would be those of something else.
	sent.Header.Set("Accept-Encoding", "identity")
	sent.Header.Set("User-Agent", "tee-launcher")
	s.requests.Add(1)
	begun := s.Tuning.Now()
	response, err := s.do(sent)
	if err != nil {
		over()
		err = &netError{host: host, err: w.cause(err)}
		w.stop()
		if request.Context().Err() == nil { // we ourselves didn't give it up
			s.silence.unheard(begun)
		}
		return nil, err
	}
	s.at.answered.Store(true)
	s.silence.heard(s.Tuning.Now)
	w.body()
	response.Body = &watchedBody{ReadCloser: response.Body, watch: w, over: over, source: s}
	return response, nil
}

// allowed returns why a request may not be sent. Where a redirect or a challenge of the registry
// names another host, its rules are those for the host that named it.
func (g *guard) allowed(request *http.Request) error {
	to, from := request.URL, redirectedFrom(request)
	led := from != nil
	if !led {
		from = g.base()
	}
	refused := func(why string) error {
		scheme := to.Scheme
		if scheme != "http" && scheme != "https" {
			scheme = "another scheme"
		}
		if led {
			return fmt.Errorf("redirect from %s to %s at %s isn't followed: %s",
				from.Scheme, scheme, g.shown(to.Host), why)
		}
		return fmt.Errorf("%s at %s isn't asked: %s", scheme, g.shown(to.Host), why)
	}
	atRegistry := canonical(to) == canonical(&url.URL{Scheme: to.Scheme, Host: g.source.host()})
	switch {
	case to.User != nil:
		return refused("there are credentials in its URL")
	case to.Host == "" || to.Scheme != "https" && to.Scheme != "http":
		return refused("it is no host to be asked over https")
	case atRegistry && from.Scheme != "" && to.Scheme != from.Scheme && !led:
		return refused("the registry speaks " + from.Scheme)
	case to.Scheme == "http" && from.Scheme == "https":
		return refused("https isn't left for plain http")
	case to.Scheme == "http" && !g.source.plainAllowed(to.Host):
		return refused("it isn't https")
	case !atRegistry && isPrivate(to.Hostname()) && !isPrivate(from.Hostname()):
		return refused("it is on this machine or in a private network")
	}
	return nil
}

// redirectedFrom is where a redirect led to the request, nil if none did.
func redirectedFrom(request *http.Request) *url.URL {
	if request.Response == nil || request.Response.Request == nil {
		return nil
	}
	return request.Response.Request.URL
}

// base is the registry as a URL, without a scheme until that is known.
func (g *guard) base() *url.URL {
	g.mu.Lock()
	defer g.mu.Unlock()
	return &url.URL{Scheme: g.scheme, Host: g.source.host()}
}

// speaks notes how the registry answered, for good.
func (g *guard) speaks(scheme string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.scheme = scheme
}

// strip takes out of a request what is secret and may not go where it goes. An anonymous token is
// no secret, and over plain http to another machine there is no other.
func (g *guard) strip(request *http.Request) {
	// Every redirect that led here counts: the client makes each hop's body anew from the first one's.
	elsewhere := false
	for q := request; q.Response != nil && q.Response.Request != nil; q = q.Response.Request {
		elsewhere = elsewhere || origin(q.Response.Request.URL) != origin(request.URL)
	}
	plain := request.URL.Scheme == "http" && !isLoopback(request.URL.Host)
	if to := request.URL.Hostname(); g.source.login.own() && isPrivate(to) && !strings.EqualFold(to, hostname(g.source.host())) {
		elsewhere = true // a token server can have any address, but not get the user config's secrets there
	}
	scheme, _, _ := strings.Cut(request.Header.Get("Authorization"), " ")
	if elsewhere || plain && !strings.EqualFold(scheme, "Bearer") {
		request.Header.Del("Authorization")
	}
	if request.Body != nil && (elsewhere || plain) {
		_ = request.Body.Close()
		request.Body, request.GetBody, request.ContentLength = http.NoBody, nil, 0
	}
}

// remember notes the secrets of a request.
func (g *guard) remember(request *http.Request) {
	var form url.Values
	if request.GetBody != nil {
		if body, err := request.GetBody(); err == nil {
			data, _ := io.ReadAll(io.LimitReader(body, 1<<20)) // it was made in memory
			form, _ = url.ParseQuery(string(data))
		}
	}
	g.source.secrets.add(sentIn(request, form)...)
}

// redact takes what was sent as a secret out of a text from outside.
func (g *guard) redact(text string) string { return g.source.secrets.hide(text) }

// shown is a host as it may be told: who leads to one chooses its name.
func (g *guard) shown(host string) string {
	if host == g.source.host() {
		return host
	}
	return sanitize.Line(g.redact(host), 100)
}

// redacted is an error whose text holds no secret.
type redacted struct {
	error
	text string
}

func (w redacted) Error() string { return w.text }
func (w redacted) Unwrap() error { return w.error }

func (g *guard) redactError(err error) error {
	if err == nil {
		return nil
	}
	if text := g.redact(err.Error()); text != err.Error() {
		return redacted{err, text}
	}
	return err
}

// watchedBody is a body that can't stall.
type watchedBody struct {
	io.ReadCloser
	watch  *watch
	over   func() // the wait for it
	source *remote
}

// Read fails when the body stalls or is slower than the minimum.
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:b.source.pace.chunk(len(p))])
	b.watch.arrived(n)
	if n > 0 {
		b.source.silence.heard(b.source.Tuning.Now)
	}
	if late := b.source.pace.wait(n, b.watch); err == nil {
		err = late
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.watch.cause(err)
	}
	return n, err
}

// Close gives the connection back if the body was read to its end, and ends it otherwise.
func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.watch.stop()
	b.over()
	return err
}

// origin is what has to be equal for two URLs to be one place.
func origin(u *url.URL) string { return u.Scheme + "://" + canonical(u) }

// canonical is the host and port of u.
func canonical(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// isLoopback reports whether host, with or without a port, is this machine for certain.
func isLoopback(host string) bool {
	h := hostname(host)
	return strings.EqualFold(h, "localhost") || net.ParseIP(h).IsLoopback()
}

// isPrivate reports whether a host name is this machine or a literal address in a private network.
// What names resolve to isn't asked. The spellings that only old resolvers take for an address
// (127.1, 0x7f000001, 2130706433) have a last label that begins with a digit, which no public name
// has.
func isPrivate(host string) bool {
	host, _, _ = strings.Cut(host, "%")
	if address, err := netip.ParseAddr(host); err == nil {
		address = address.Unmap()
		return address.IsLoopback() || address.IsPrivate() || address.IsUnspecified() ||
			address.IsLinkLocalUnicast() || address.IsLinkLocalMulticast()
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	last := host[strings.LastIndexByte(host, '.')+1:]
	return last == "localhost" || last == "" || last[0] >= '0' && last[0] <= '9'
}

// hostname returns host without its port and brackets.
func hostname(host string) string { return (&url.URL{Host: host}).Hostname() }
