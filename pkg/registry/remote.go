package registry

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// remote is one repository of one registry, with all that was learnt about the way there. It may be
// used by several goroutines.
type remote struct {
	*Client // settings without a zero field
	*common
	ref   name.Reference
	at    place
	ns    string // of which registry it is told that the repository is; empty: of none
	http1 *http.Transport
	http2 *http.Transport // for hosts that speak nothing else
	guard *guard
	login *login

	mu          sync.Mutex
	speaksHTTP1 map[string]bool // by host
	onlyHTTP2   map[string]int  // by host: answers over HTTP/2 that HTTP/1.1 did not get

	requests atomic.Int64
	resumes  atomic.Int64
	rate     atomic.Int64 // bytes per second that connections carry of late; 0 until one did
}

// host returns the registry's host, with its port if it has one.
func (s *remote) host() string { return s.ref.Context().RegistryStr() }

func newRemote(settings *Client, all *common, ref name.Reference) *remote {
	s := &remote{Client: settings, common: all, ref: ref, speaksHTTP1: map[string]bool{}, onlyHTTP2: map[string]int{}}
	// HTTP/2 would put all ranges on one connection, which is as fast as one connection.
	var one, two http.Protocols
	one.SetHTTP1(true)
	two.SetHTTP2(true)
	s.http1, s.http2 = s.transport(&one), s.transport(&two)
	s.guard, s.login = &guard{source: s}, newLogin(s)
	return s
}

// transport makes the transport itself, without http.Client: redirects are nothing it may follow.
func (s *remote) transport(protocols *http.Protocols) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: proxyAnswered,
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

// proxyAnswered keeps the status of a proxy that refuses, of which the transport keeps the text.
func proxyAnswered(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode != http.StatusOK {
		return &proxyError{answer.StatusCode}
	}
	return nil
}

func (s *remote) place() *place { return &s.at }

func (s *remote) credential() string { return s.login.credentialSource() }

// refresh makes the next requests use connections that nothing has gone wrong on.
func (s *remote) refresh() {
	s.http1.CloseIdleConnections()
	s.http2.CloseIdleConnections()
}

// leastBytes is what has to arrive in a window: the minimum, and a tenth of what connections
// usually carry. The others wait for the slowest one, which may do better another time.
func (s *remote) leastBytes() int64 {
	return max(s.Tuning.MinBytes, int64(float64(s.rate.Load())*s.Tuning.Window.Seconds()/10))
}

// measured takes in how long n bytes took.
func (s *remote) measured(n int, took time.Duration) {
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
