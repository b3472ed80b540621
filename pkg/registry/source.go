package registry

import (
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

	"tee-launcher/pkg/image"
)

// Source is one repository of one registry, with all that was learnt about the way there. It may be
// used by several goroutines.
type Source struct {
	*Client // settings without a zero field
	ref     name.Reference
	http1   *http.Transport
	http2   *http.Transport // for hosts that speak nothing else
	auth    *auth

	mu          sync.Mutex
	scheme      string          // of the registry; empty until it answered
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
	s.auth = newAuth(s)
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
		Credential: s.auth.credentialSource(),
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
		s.Log.Info("trying again", "part", part, "host", f.host, "cause", f.error(), "attempt", t.total, "delay", wait)
		if err := s.Tuning.Sleep(ctx, wait); err != nil {
			return interrupted(ctx)
		}
	}
}

// failed makes the error of the last failure.
func (s *Source) failed(part string, t *tries, f *failure) *image.Error {
	e := &image.Error{Ref: s.ref.String(), Part: part, Host: f.host, Status: f.status, Attempts: t.total, Code: f.code, Message: f.message,
		Err: f.err, Help: f.hints}
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
	switch f.status {
	case http.StatusUnauthorized:
		return []string{"credentials: " + s.auth.explanation()}
	case http.StatusForbidden:
		return []string{"this access isn't allowed; credentials: " + s.auth.explanation()}
	case http.StatusNotFound:
		return []string{"check the repository's name and that the digest was pushed there; for a private repository this may also mean " +
			"missing credentials (" + s.auth.explanation() + ")"}
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
	advanced  bool // in the attempt under way
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
func (s *Source) fetchDocument(ctx context.Context, part, path, accept string, proved func([]byte) error) (data []byte, err error) {
	err = s.retry(ctx, part, func(t *tries) *failure {
		a, f := s.ask(ctx, t, http.MethodGet, path, http.Header{"Accept": {accept}})
		if f != nil {
			return f
		}
		defer a.Close()
		if a.StatusCode != http.StatusOK {
			return s.rejected(a)
		}
		var err error
		if data, err = io.ReadAll(io.LimitReader(a, image.MaxManifest+1)); err != nil {
			return &failure{host: a.host, err: err}
		}
		if len(data) > image.MaxManifest {
			return &failure{class: lie, host: a.host, err: fmt.Errorf("more than %d bytes", image.MaxManifest)}
		}
		if err := proved(data); err != nil {
			return &failure{class: lie, host: a.host, err: err}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

const (
	manifestTypes = string(types.OCIManifestSchema1 + ", " + types.DockerManifestSchema2 + ", " +
		types.OCIImageIndex + ", " + types.DockerManifestList)
	anyType = "*/*"
)

// isBlob asks once whether h is a blob of the repository.
func (s *Source) isBlob(ctx context.Context, h v1.Hash) bool {
	a, f := s.logIn(ctx, &tries{}, http.MethodHead, "blobs/"+h.String(), http.Header{})
	if f != nil {
		return false
	}
	defer a.Close()
	return a.StatusCode < 400
}

// ask sends a request for something in the repository and follows redirects. The answer has any status; a failure means
// that there is none.
func (s *Source) ask(ctx context.Context, t *tries, method, path string, header http.Header) (*answer, *failure) {
	a, f := s.logIn(ctx, t, method, path, header)
	if f != nil {
		return nil, f
	}
	return s.follow(ctx, t, a, method, header)
}

// logIn sends a request to the registry, with credentials once they were asked for.
func (s *Source) logIn(ctx context.Context, t *tries, method, path string, header http.Header) (*answer, *failure) {
	for loggedIn := false; ; loggedIn = true {
		authorization, f := s.auth.authorization(ctx, t)
		if f != nil {
			return nil, f
		}
		a, f := s.registry(ctx, t, method, path, header, authorization)
		if f != nil || a.StatusCode != http.StatusUnauthorized {
			return a, f
		}
		refused := s.rejected(a)
		if loggedIn {
			return nil, refused
		}
		again, f := s.auth.challenged(ctx, a, authorization)
		if f != nil {
			return nil, f
		}
		if !again {
			return nil, refused
		}
	}
}

// registry sends one request to the registry itself, and finds out on the first one whether that speaks https. Only
// where plain http is allowed at all is it tried, and only when https didn't come about.
func (s *Source) registry(ctx context.Context, t *tries, method, path string, header http.Header, authorization string) (*answer, *failure) {
	s.mu.Lock()
	scheme := s.scheme
	s.mu.Unlock()
	target := url.URL{Scheme: scheme, Host: s.host(), Path: "/v2/" + s.ref.Context().RepositoryStr() + "/" + path}
	h := header.Clone()
	if authorization != "" {
		h.Set("Authorization", authorization)
	}
	if scheme != "" {
		return s.send(ctx, t, method, &target, h, nil)
	}
	target.Scheme = "https"
	a, f := s.send(ctx, t, method, &target, h, nil)
	if f != nil && s.plainAllowed(s.host()) && !showedCertificate(f.err) {
		plain := target
		plain.Scheme = "http"
		b, plainFailure := s.send(ctx, t, method, &plain, h, nil)
		if plainFailure != nil {
			return nil, plainFailure
		}
		// A server for https answers plain requests with 400.
		if b.StatusCode != http.StatusBadRequest {
			a, f, target = b, nil, plain
		} else {
			b.Close()
		}
	}
	if f != nil {
		return nil, f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scheme = target.Scheme
	return a, nil
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

// isLoopback says whether host, with or without a port, is this machine for certain.
func isLoopback(host string) bool {
	h := hostname(host)
	return strings.EqualFold(h, "localhost") || net.ParseIP(h).IsLoopback()
}

// hostname returns host without its port and brackets.
func hostname(host string) string {
	return (&url.URL{Host: host}).Hostname()
}

// maxRedirects is what browsers and Go's client follow.
const maxRedirects = 10

// follow goes where a redirect leads, without any credentials.
func (s *Source) follow(ctx context.Context, t *tries, a *answer, method string, header http.Header) (*answer, *failure) {
	for range maxRedirects {
		if !isRedirect(a.StatusCode) {
			return a, nil
		}
		target, err := s.redirectTarget(a)
		a.Close()
		if err != nil {
			return nil, &failure{class: permanent, host: a.host, err: err}
		}
		var f *failure
		if a, f = s.send(ctx, t, method, target, header.Clone(), nil); f != nil {
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

// redirectTarget returns where a leads if it may be gone there.
func (s *Source) redirectTarget(a *answer) (*url.URL, error) {
	target, err := a.Location()
	if err != nil {
		return nil, errors.New("redirect without a usable location")
	}
	if target.User != nil {
		return nil, fmt.Errorf("redirect to %s with credentials in it", target.Host)
	}
	switch {
	case target.Scheme == "https" && target.Host != "":
		return target, nil
	case target.Scheme == "http" && a.url.Scheme == "http" && s.plainAllowed(target.Host) && (isLoopback(a.url.Host) || !isLoopback(target.Host)):
		return target, nil
	}
	return nil, fmt.Errorf("redirect from %s to %s at %s isn't followed", a.url.Scheme, image.Clean(target.Scheme, 20), image.Clean(target.Host, 100))
}

// answer is an HTTP answer whose body can't stall.
type answer struct {
	*http.Response
	url        *url.URL
	host       string
	redirected bool
	watch      *watch
}

// Read reads the body. It fails when that stalls or is slower than the minimum.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.Body.Read(p)
	a.watch.arrived(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = a.watch.cause(err)
	}
	return n, err
}

// Close gives the connection back if the body was read to its end, and ends it otherwise.
func (a *answer) Close() error {
	err := a.Body.Close()
	a.watch.stop()
	return err
}

// send sends one request and waits for the header of its answer.
func (s *Source) send(ctx context.Context, t *tries, method string, target *url.URL, header http.Header, form url.Values) (*answer, *failure) {
	w := newWatch(ctx, t.patience()*s.Tuning.HeaderTimeout, t.patience()*s.Tuning.Window, s.leastBytes)
	request, err := http.NewRequestWithContext(w.ctx, method, target.String(), strings.NewReader(form.Encode()))
	if err != nil {
		w.stop()
		return nil, &failure{class: permanent, host: target.Host, err: errors.New("the URL can't be used")}
	}
	if form == nil {
		request.Body, request.GetBody, request.ContentLength = nil, nil, 0
	} else {
		header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	// Compressed once more, ranges and digests would be those of something else.
	header.Set("Accept-Encoding", "identity")
	header.Set("User-Agent", "tee-launcher")
	request.Header = header
	s.requests.Add(1)
	response, err := s.do(request)
	if err != nil {
		f := networkFailure(target.Host, w.cause(err), s.Tuning.Now())
		w.stop()
		return nil, f
	}
	w.body()
	return &answer{Response: response, url: target, host: target.Host, watch: w}, nil
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
	f.code, f.message = said(a)
	return f
}

// said returns what the registry's error document says, if there is one.
func said(a *answer) (code, message string) {
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
		return "", image.Clean(document.Details, 200)
	}
	code, message = image.Clean(document.Errors[0].Code, 40), image.Clean(document.Errors[0].Message, 200)
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
