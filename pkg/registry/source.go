package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"tee-launcher/pkg/image"
)

// Source is one repository of one registry, with all that was learnt about the way there. It may be
// used by several goroutines.
type Source struct {
	*Client // settings without a zero field
	ref     name.Reference
	http1   *http.Transport
	http2   *http.Transport // for hosts that speak nothing else
	guard   *guard
	login   *login

	mu          sync.Mutex
	speaksHTTP1 map[string]bool // by host
	onlyHTTP2   map[string]int  // by host: answers over HTTP/2 that HTTP/1.1 did not get

	restarts atomic.Int64
	fetched  atomic.Int64
	requests atomic.Int64
	resumes  atomic.Int64
	rate     atomic.Int64 // bytes per second that connections carry of late; 0 until one did
}

// host returns the registry's host, with its port if it has one.
func (s *Source) host() string { return s.ref.Context().RegistryStr() }

func newSource(settings *Client, ref name.Reference) *Source {
	s := &Source{Client: settings, ref: ref, speaksHTTP1: map[string]bool{}, onlyHTTP2: map[string]int{}}
	// HTTP/2 would put all ranges on one connection, which is as fast as one connection.
	var one, two http.Protocols
	one.SetHTTP1(true)
	two.SetHTTP2(true)
	s.http1, s.http2 = s.transport(&one), s.transport(&two)
	s.guard, s.login = &guard{source: s}, newLogin(s)
	return s
}

// transport makes the transport itself, without http.Client: redirects are nothing it may follow.
func (s *Source) transport(protocols *http.Protocols) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            s.Tuning.Dial,
		TLSClientConfig:        &tls.Config{RootCAs: s.Tuning.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    s.Tuning.Workers + 2,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		Protocols:              protocols,
	}
}

// freshConnections makes the next requests use connections that nothing has gone wrong on.
func (s *Source) freshConnections() {
	s.http1.CloseIdleConnections()
	s.http2.CloseIdleConnections()
}

// Stats says what was done so far.
func (s *Source) Stats() Stats {
	return Stats{
		Fetched:    s.fetched.Load(),
		Requests:   int(s.requests.Load()),
		Resumes:    int(s.resumes.Load()),
		Credential: s.login.credentialSource(),
	}
}

// retry calls once until it has no failure, the failures are too many, or ctx ends.
func (s *Source) retry(ctx context.Context, part string, once func(t *tries) *failure) error {
	var t tries
	for {
		if ctx.Err() != nil {
			return interrupted(ctx)
		}
		f := once(&t)
		if f == nil {
			return nil
		}
		if ctx.Err() != nil {
			return interrupted(ctx)
		}
		wait, again := s.again(&t, f)
		if !again {
			return s.failed(part, &t, f)
		}
		s.Log.Info("trying again", "part", part, "host", f.host, "cause", s.guard.washError(f.error()), "attempt", t.total, "delay", wait)
		if err := s.Tuning.Sleep(ctx, wait); err != nil {
			return interrupted(ctx)
		}
	}
}

// failed makes the error of the last failure.
func (s *Source) failed(part string, t *tries, f *failure) *image.Error {
	e := &image.Error{Ref: s.ref.String(), Part: part, Host: f.host, Status: f.status, Attempts: t.total, Code: f.code, Message: f.message,
		Err: s.guard.washError(f.err), Help: f.hints}
	if f.status != 0 {
		e.Answer = strings.TrimSpace(fmt.Sprintf("%d %s", f.status, http.StatusText(f.status)))
	}
	switch f.class {
	case transient:
		e.Kind = image.Unavailable
	case permanent:
		e.Kind = image.Refused
	case lie:
		e.Kind = image.Mismatch
		e.Help = slices.Concat(f.hints, []string{"what arrives is not what was approved: suspect the registry, a mirror or a proxy on the way"})
	}
	e.Help = slices.Concat(e.Help, s.statusHints(f))
	return e
}

func (s *Source) statusHints(f *failure) []string {
	switch {
	case f.status == 0:
		return nil
	case f.token && f.status == http.StatusNotFound:
		return []string{fmt.Sprintf("the registry names %s as its token server, which has none there", f.host)}
	case !f.token && f.host != s.host() && f.status < 500:
		return []string{fmt.Sprintf("the registry leads to %s for this; no credentials are sent there", f.host)}
	}
	switch f.status {
	case http.StatusUnauthorized:
		return []string{"credentials: " + s.login.explanation()}
	case http.StatusForbidden:
		return []string{"this access isn't allowed; credentials: " + s.login.explanation()}
	case http.StatusNotFound:
		return []string{"check the repository's name and that the digest was pushed there; for a private repository this may also mean " +
			"missing credentials (" + s.login.explanation() + ")"}
	case http.StatusTooManyRequests:
		return []string{"the registry limits the rate: wait, or log in for a higher limit"}
	}
	return nil
}

// tries counts the attempts of one request since it last made progress.
type tries struct {
	total     int
	quick     int
	rounds    int
	permanent int
	lies      int
	timeouts  int
	bytes     int  // since there was progress
	advanced  bool // in the attempt under way
}

// leastProgress is how many bytes are worth a connection: who gets fewer gets nowhere.
const leastProgress = 64 << 10

// arrived takes in that n bytes came, and whether they were the last of a part.
func (t *tries) arrived(n int, last bool) {
	if t.bytes += n; t.bytes >= leastProgress || last {
		t.bytes = 0
		t.progress()
	}
}

// progress forgets the failures that only more attempts can cure. Lies are not forgotten.
func (t *tries) progress() { t.quick, t.rounds, t.permanent, t.timeouts, t.advanced = 0, 0, 0, 0, true }

// maxAttempts is for answers that another attempt rarely changes.
const maxAttempts = 3

// again says after which delay the next attempt comes, if there is one.
func (s *Source) again(t *tries, f *failure) (time.Duration, bool) {
	t.total++
	if isTimeout(f.err) && !t.advanced {
		t.timeouts++
	}
	t.advanced = false
	after := min(f.after, s.MaxDelay)
	switch f.class {
	case permanent:
		t.permanent++
		return max(jitter(s.Tuning.QuickDelay<<t.permanent), after), t.permanent < maxAttempts
	case lie:
		t.lies++
		s.freshConnections()
		return jitter(s.Tuning.QuickDelay), t.lies < maxAttempts
	}
	t.quick++
	// Who asks for a longer pause than a round's isn't asked quickly.
	if t.quick < s.Tuning.QuickTries && f.after <= s.Interval {
		return max(jitter(s.Tuning.QuickDelay<<(t.quick-1)), after), true
	}
	if t.rounds >= s.Rounds {
		return 0, false
	}
	delay := s.Interval
	for range t.rounds {
		delay = min(delay+delay/2, s.MaxDelay)
	}
	t.quick = 0
	t.rounds++
	return max(min(jitter(delay), s.MaxDelay), after), true
}

// patience is how much longer than usual is waited. It grows with the time-outs in a row: a cache may have to fetch a blob
// itself before it can answer.
func (t *tries) patience() time.Duration { return 1 << min(t.timeouts, 2) }

// document fetches the whole of a manifest or config and proves it.
func (s *Source) document(ctx context.Context, d image.Document) ([]byte, error) {
	path, accept := "manifests/"+d.Digest.String(), manifestTypes
	if d.Config {
		path, accept = "blobs/"+d.Digest.String(), anyType
	}
	data, err := s.fetchDocument(ctx, d.Part, path, accept, d.Check)
	var e *image.Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound && d.Part == image.PartManifest && s.isBlob(ctx, d.Digest) {
		e.Help = []string{
			"this digest is that of a config (an image ID), as approved lists held before; what has to be approved is the digest of the manifest",
			fmt.Sprintf("launcher digest %s:<tag> prints it", s.ref.Context().Name()),
		}
	}
	return data, err
}

// fetchDocument fetches a document, again where proved says that it isn't the right one.
func (s *Source) fetchDocument(ctx context.Context, part, path, accept string, proved func([]byte) error) ([]byte, error) {
	var document []byte
	err := s.retry(ctx, part, func(t *tries) *failure {
		a, f := s.ask(ctx, t, http.MethodGet, path, http.Header{"Accept": {accept}})
		if f != nil {
			return f
		}
		defer a.Close()
		if a.StatusCode != http.StatusOK {
			return s.rejected(a)
		}
		data, err := readDocument(a)
		if err != nil {
			return &failure{host: a.host, err: err}
		}
		if len(data) > image.MaxManifest {
			return &failure{class: lie, host: a.host, err: fmt.Errorf("more than %d bytes", image.MaxManifest)}
		}
		if err := proved(data); err != nil {
			return &failure{class: lie, host: a.host, err: err}
		}
		document = data
		return nil
	})
	if err != nil {
		return nil, err
	}
	return document, nil
}

// readDocument reads a manifest or config, compressed or not: neither begins as gzip does.
func readDocument(a *answer) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(a, image.MaxManifest+1))
	if err != nil || !encoded(a) || !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return data, err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, image.MaxManifest+1))
}

// encoded reports whether an answer says that it is compressed, although nobody asked for that.
func encoded(a *answer) bool {
	coding := a.Header.Get("Content-Encoding")
	return strings.EqualFold(coding, "gzip") || strings.EqualFold(coding, "x-gzip")
}

const (
	manifestTypes = string(types.OCIManifestSchema1 + ", " + types.DockerManifestSchema2 + ", " +
		types.OCIImageIndex + ", " + types.DockerManifestList)
	anyType = "*/*"
)

// isBlob asks once whether h is a blob of the repository.
func (s *Source) isBlob(ctx context.Context, h v1.Hash) bool {
	a, f := s.inRepository(ctx, &tries{}, http.MethodHead, "blobs/"+h.String(), http.Header{})
	if f != nil {
		return false
	}
	defer a.Close()
	return a.StatusCode < 400
}

// ask sends a request for something in the repository and follows redirects. The answer has any status;
// a failure means that there is none.
func (s *Source) ask(ctx context.Context, t *tries, method, path string, header http.Header) (*answer, *failure) {
	a, f := s.inRepository(ctx, t, method, path, header)
	if f != nil {
		return nil, f
	}
	return s.follow(a, func(target *url.URL, from *http.Response) (*answer, *failure) {
		return s.goTo(ctx, t, method, target, header, from)
	})
}

// inRepository sends a request for something in the repository to the registry itself.
func (s *Source) inRepository(ctx context.Context, t *tries, method, path string, header http.Header) (*answer, *failure) {
	if _, f := s.login.begin(ctx, t); f != nil {
		return nil, f
	}
	target := s.guard.base()
	target.Path = "/v2/" + s.ref.Context().RepositoryStr() + "/" + path
	return s.authorized(ctx, t, method, target, header, nil)
}

// goTo sends a request where a redirect, the answer from, leads. Only within the registry's own origin do
// credentials go along.
func (s *Source) goTo(ctx context.Context, t *tries, method string, target *url.URL, header http.Header, from *http.Response) (*answer, *failure) {
	if origin(target) == origin(s.guard.base()) {
		return s.authorized(ctx, t, method, target, header, from)
	}
	return s.send(ctx, t, s.guard, method, target, header, from, nil)
}

// authorized sends a request to the registry with what it wants to see, and once more if that is no
// longer enough.
func (s *Source) authorized(ctx context.Context, t *tries, method string, target *url.URL, header http.Header, from *http.Response) (*answer, *failure) {
	used, seen := s.login.state()
	at := &attempt{target: target, hide: used.loggedIn}
	a, f := s.send(ctx, t, used.transport, method, target, header, from, at)
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
		a, f := s.send(ctx, t, used.transport, method, target, header, from, &attempt{target: target})
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
	a, f = s.send(ctx, t, better.transport, method, target, header, from, &attempt{target: target, hide: better.loggedIn})
	if f == nil && a.StatusCode == http.StatusUnauthorized {
		return nil, s.rejected(a)
	}
	return a, f
}

// ping asks the registry how it is spoken to, and finds out on the first answer whether that is https. Only
// where plain http is allowed at all is it tried, and only when https didn't come about.
func (s *Source) ping(ctx context.Context, t *tries) (*answer, *failure) {
	visit := func(target *url.URL, from *http.Response) (*answer, *failure) {
		return s.send(ctx, t, s.guard, http.MethodGet, target, http.Header{}, from, nil)
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

// showedCertificate says whether err comes of a server that showed a certificate, which isn't one for plain http.
func showedCertificate(err error) bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &certificate)
}

// plainAllowed says whether host may be spoken to over plain http.
func (s *Source) plainAllowed(host string) bool {
	return isLoopback(host) || slices.ContainsFunc(s.Insecure, func(allowed string) bool {
		return strings.EqualFold(allowed, host) || strings.EqualFold(allowed, hostname(host))
	})
}

// maxRedirects is what browsers and Go's client follow.
const maxRedirects = 10

// follow goes where redirects lead.
func (s *Source) follow(a *answer, visit func(target *url.URL, from *http.Response) (*answer, *failure)) (*answer, *failure) {
	for range maxRedirects {
		if !isRedirect(a.StatusCode) {
			return a, nil
		}
		target, err := a.Location()
		a.Close()
		if err != nil {
			return nil, &failure{class: permanent, host: a.host, err: errors.New("redirect without a usable location")}
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
	return nil, &failure{class: permanent, host: a.host, err: fmt.Errorf("more than %d redirects", maxRedirects)}
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
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

// send sends one request by way of the guard, or of what is above it, and waits for the header of its
// answer. A request that a redirect led to has that answer as from.
func (s *Source) send(ctx context.Context, t *tries, by http.RoundTripper, method string, target *url.URL, header http.Header,
	from *http.Response, at *attempt) (*answer, *failure) {
	request, err := http.NewRequestWithContext(t.with(ctx, at), method, target.String(), nil)
	if err != nil {
		return nil, &failure{class: permanent, host: target.Host, err: errors.New("the URL can't be used")}
	}
	request.Header, request.Response = header.Clone(), from
	response, err := by.RoundTrip(request)
	if err != nil {
		return nil, s.unanswered(ctx, target.Host, err)
	}
	a := &answer{Response: response, url: target, host: target.Host}
	if body, ok := response.Body.(*watchedBody); ok {
		a.watch = body.watch
	}
	return a, nil
}

// unanswered says why a request got no answer.
func (s *Source) unanswered(ctx context.Context, host string, err error) *failure {
	var route *routeError
	var network *netError
	switch {
	case ctx.Err() != nil:
		return &failure{host: host, err: context.Cause(ctx)}
	case errors.As(err, &route):
		return &failure{class: permanent, host: route.host, err: route}
	case errors.As(err, &network) && network.host == host:
		return networkFailure(host, network.err, s.Tuning.Now())
	}
	return s.login.failure(err)
}

// do uses HTTP/1.1. A host over https that doesn't answer to that, but to HTTP/2, gets HTTP/2 from the third time on:
// servers that speak nothing else end the handshake or the connection, which others do too in a bad moment.
func (s *Source) do(request *http.Request) (*http.Response, error) {
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
	if speaks1 || request.URL.Scheme != "https" || request.Context().Err() != nil || !handshaken(err) {
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

// handshaken says whether err came of talking to a server for https, and not of getting there.
func handshaken(err error) bool {
	var plain tls.RecordHeaderError
	var op *net.OpError
	return !showedCertificate(err) && !errors.As(err, &plain) && !(errors.As(err, &op) && op.Op == "dial")
}

// leastBytes is what has to arrive in a window: the minimum, and a tenth of what connections usually carry. The others wait
// for the slowest one, which may do better another time.
func (s *Source) leastBytes() int64 {
	return max(s.Tuning.MinBytes, int64(float64(s.rate.Load())*s.Tuning.Window.Seconds()/10))
}

// measured takes in how long n bytes took.
func (s *Source) measured(n int, took time.Duration) {
	const telling = 16 << 10 // less says more of the round trip than of the rate
	if n < telling || took <= 0 {
		return
	}
	rate := int64(float64(n) / took.Seconds())
	if old := s.rate.Load(); old != 0 {
		rate = old + (rate-old)/8
	}
	s.rate.Store(rate)
}

// rejected reads an answer that isn't the one hoped for, and closes it.
func (s *Source) rejected(a *answer) *failure {
	defer a.Close()
	f := &failure{class: transient, host: a.host, status: a.StatusCode, after: retryAfter(a.Header.Get("Retry-After"), s.Tuning.Now())}
	switch {
	case a.StatusCode < 400:
		f.err = errors.New("this answer makes no sense here")
	case a.StatusCode < 500:
		switch a.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusMisdirectedRequest:
		default:
			f.class = permanent
		}
	}
	f.code, f.message = s.said(a)
	return f
}

// said returns what the registry's error document says, if there is one.
func (s *Source) said(a *answer) (code, message string) {
	const limit = 16 << 10
	data, err := io.ReadAll(io.LimitReader(a, limit))
	if err != nil {
		return "", ""
	}
	var document struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // token servers
	}
	// Whatever can't be read has nothing to say: a proxy's page is no message.
	_ = json.Unmarshal(data, &document)
	if len(document.Errors) == 0 {
		return "", image.Clean(s.guard.wash(document.Details), 200)
	}
	code = image.Clean(s.guard.wash(document.Errors[0].Code), 40)
	message = image.Clean(s.guard.wash(document.Errors[0].Message), 200)
	if strings.EqualFold(code, message) {
		message = ""
	}
	return code, message
}

// retryAfter reads both forms of the header; what it doesn't understand is no delay.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
		return time.Duration(min(max(seconds, 0), 1<<20)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
