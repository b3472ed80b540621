package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/klauspost/compress/gzip"

	"tee-launcher/pkg/config"
)

// query is a request before it is sent.
type query struct {
	method string
	target *url.URL
	header http.Header
	from   *http.Response // the redirect that led to it, nil if none did
}

// ask sends a request for something in the repository and follows redirects. The answer has any
// status; a failure means that there is none.
func (s *remote) ask(ctx context.Context, t *tries, method, path string,
	header http.Header) (*answer, *failure) {
	a, f := s.inRepository(ctx, t, method, path, header)
	if f != nil {
		return nil, f
	}
	return s.follow(a, func(target *url.URL, from *http.Response) (*answer, *failure) {
		return s.goTo(ctx, t, query{method: method, target: target, header: header, from: from})
	})
}

// inRepository sends a request for something in the repository to the registry itself.
func (s *remote) inRepository(ctx context.Context, t *tries, method, path string,
	header http.Header) (*answer, *failure) {
	if _, f := s.login.begin(ctx, t); f != nil {
		return nil, f
	}
	target := s.guard.base()
	target.Path = "/v2/" + s.ref.Context().RepositoryStr() + "/" + path
	if s.ns != "" {
		target.RawQuery = url.Values{"ns": {s.ns}}.Encode()
	}
	return s.authorized(ctx, t, query{method: method, target: target, header: header})
}

// goTo sends a request where a redirect leads. Only within the registry's own origin do credentials go
// along.
func (s *remote) goTo(ctx context.Context, t *tries, q query) (*answer, *failure) {
	if origin(q.target) == origin(s.guard.base()) {
		return s.authorized(ctx, t, q)
	}
	return s.send(ctx, t, s.guard, q, nil)
}

// authorized sends a request to the registry with what it wants to see, and once more if that is no
// longer enough.
func (s *remote) authorized(ctx context.Context, t *tries, q query) (*answer, *failure) {
	used, seen := s.login.state()
	at := &attempt{target: q.target, hide: used.loggedIn}
	a, f := s.send(ctx, t, used.transport, q, at)
	if f != nil || a.StatusCode != http.StatusUnauthorized {
		return a, f
	}
	challenged := at.challenged
	if !used.loggedIn {
		challenged = a.Header.Values("WWW-Authenticate")
	}
	refused := s.rejected(a)
	var renewed *answer
	better, f := s.login.renew(ctx, t, used, seen, challenged, func() *failure {
		a, f := s.send(ctx, t, used.transport, q, &attempt{target: q.target})
		if f != nil {
			return f
		}
		if a.StatusCode == http.StatusUnauthorized {
			return s.rejected(a)
		}
		renewed = a
		return nil
	})
	switch {
	case f != nil:
		return nil, f
	case better == nil:
		return nil, refused
	case renewed != nil:
		return renewed, nil
	}
	a, f = s.send(ctx, t, better.transport, q, &attempt{target: q.target, hide: better.loggedIn})
	if f == nil && a.StatusCode == http.StatusUnauthorized {
		return nil, s.rejected(a)
	}
	return a, f
}

// ping asks the registry how it is spoken to, and finds out on the first answer whether that is
// https. Only where plain http is allowed at all is it tried, and only when https didn't come
// about.
func (s *remote) ping(ctx context.Context, t *tries) (*answer, *failure) {
	visit := func(target *url.URL, from *http.Response) (*answer, *failure) {
		return s.send(ctx, t, s.guard, query{method: http.MethodGet, target: target, from: from}, nil)
	}
	target := s.guard.base()
	target.Path = "/v2/"
	if target.Scheme != "" {
		a, f := visit(target, nil)
		if f != nil {
			return nil, f
		}
		return s.follow(a, visit)
	}
	target.Scheme = "https"
	a, f := visit(target, nil)
	if f != nil && s.plainAllowed(target.Host) && !showedCertificate(f.err) {
		plain := *target
		plain.Scheme = "http"
		b, plainFailure := visit(&plain, nil)
		if plainFailure != nil {
			return nil, plainFailure
		}
		// A server for https answers plain requests with 400.
		if b.StatusCode != http.StatusBadRequest {
			a, f, target = b, nil, &plain
		} else {
			b.Close()
		}
	}
	if f != nil {
		return nil, f
	}
	s.guard.speaks(target.Scheme)
	return s.follow(a, visit)
}

// showedCertificate reports whether err comes of a server that showed a certificate, which isn't one
// for plain http.
func showedCertificate(err error) bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &certificate)
}

// plainAllowed reports whether host may be spoken to over plain http.
func (s *remote) plainAllowed(host string) bool {
	return config.PlainAllowed(host, s.Insecure)
}

// maxRedirects is what browsers and Go's client follow.
const maxRedirects = 10

// follow goes where redirects lead.
func (s *remote) follow(a *answer,
	visit func(target *url.URL, from *http.Response) (*answer, *failure)) (*answer, *failure) {
	refused := func(why string) *failure {
		return &failure{class: permanent, host: a.host, err: errors.New(why)}
	}
	for range maxRedirects {
		if !isRedirect(a.StatusCode) {
			return a, nil
		}
		target, err := a.Location()
		a.Close()
		if err != nil {
			return nil, refused("redirect without a usable location")
		}
		from := a.Response
		from.Request = &http.Request{URL: a.url}
		var f *failure
		if a, f = visit(target, from); f != nil {
			return nil, f
		}
		a.redirected = true
	}
	a.Close()
	return nil, refused(fmt.Sprintf("more than %d redirects", maxRedirects))
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// answer is an HTTP answer that came through the guard.
type answer struct {
	*http.Response
	url        *url.URL
	host       string
	redirected bool
	watch      *watch
}

// decode makes a body that was compressed on the way the one that was asked for.
func (a *answer) decode() error {
	z, err := gzip.NewReader(a.Body)
	if err != nil {
		return fmt.Errorf("it says that it is compressed: %w", err)
	}
	a.ContentLength = -1
	a.Body = struct {
		io.Reader
		io.Closer
	}{z, a.Body}
	return nil
}

// Read reads the body.
func (a *answer) Read(p []byte) (int, error) { return a.Body.Read(p) }

// Close gives the connection back if the body was read to its end, and ends it otherwise.
func (a *answer) Close() error { return a.Body.Close() }

// send sends one request by way of the guard, or of what is above it, and waits for the header of
// its answer. A request that a redirect led to has that answer as from.
func (s *remote) send(ctx context.Context, t *tries, by http.RoundTripper, q query,
	at *attempt) (*answer, *failure) {
	host := q.target.Host
	request, err := http.NewRequestWithContext(t.with(ctx, at), q.method, q.target.String(), nil)
	if err != nil {
		return nil, &failure{class: permanent, host: host, err: errors.New("the URL can't be used")}
	}
	if q.header != nil {
		request.Header = q.header.Clone()
	}
	request.Response = q.from
	response, err := by.RoundTrip(request)
	if err != nil {
		return nil, s.unanswered(ctx, host, err)
	}
	a := &answer{Response: response, url: q.target, host: host}
	if body, ok := response.Body.(*watchedBody); ok {
		a.watch = body.watch
	}
	return a, nil
}

// unanswered says why a request got no answer.
func (s *remote) unanswered(ctx context.Context, host string, err error) *failure {
	var route *routeError
	var network *netError
	switch {
	case ctx.Err() != nil:
		return &failure{host: host, err: context.Cause(ctx)}
	case errors.As(err, &route):
		return &failure{class: permanent, host: route.host, err: route}
	case errors.As(err, &network) && network.host == host:
		return s.networkFailure(host, network.err)
	}
	return s.login.failure(err)
}

// do uses HTTP/1.1. A host over https that doesn't answer to that, but to HTTP/2, gets HTTP/2 from
// the third time on: servers that speak nothing else end the handshake or the connection, which
// others do too in a bad moment.
func (s *remote) do(request *http.Request) (*http.Response, error) {
	const often = 3
	host := request.URL.Host
	s.mu.Lock()
	speaks1, only2 := s.speaksHTTP1[host], s.onlyHTTP2[host]
	s.mu.Unlock()
	if only2 >= often && !speaks1 {
		return s.http2.RoundTrip(request)
	}
	response, err := s.http1.RoundTrip(request)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.speaksHTTP1[host] = true
		return response, nil
	}
	if speaks1 || request.URL.Scheme != "https" || request.Context().Err() != nil || !failedAfterDial(err) {
		return nil, err
	}
	if request.GetBody != nil {
		if request.Body, err = request.GetBody(); err != nil {
			return nil, err
		}
	}
	response, err2 := s.http2.RoundTrip(request)
	if err2 != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onlyHTTP2[host]++
	return response, nil
}

// failedAfterDial reports whether err came of talking to a server for https, and not of getting there.
func failedAfterDial(err error) bool {
	var op *net.OpError
	return !showedCertificate(err) && !speaksPlain(err) && !(errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect"))
}
