// Package registry fetches images from registries that nobody has to trust.
//
// The registry, the network, proxies, mirrors and redirect targets may lie, stall, cut and forget:
// what has arrived is not fetched again, every wait is bounded and ends with the context, and what
// can't be had or isn't what it should be ends in an *image.Error that says which of the two it
// was. What is proved is package image's to say; this package compares with digests only to know
// what to fetch again.
//
// Credentials go to the host they belong to and to the token server that this host names over
// https, never over plain http (except to a loopback host) and never to another host's redirect
// target.
//
// Memory is bounded whatever the size of the image, and no file is written.
package registry

import (
	"context"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/config"
)

// Client resolves and fetches. The zero value works and is strict. It holds settings only and may
// be copied and shared.
type Client struct {
	// Credentials are the user config's, for a registry by its name and for it alone: they go before
	// the keychain's, and over https only. Nil means that there are none.
	Credentials func(registry string) (config.Credential, bool)
	// Sources are asked before the registry of the reference, in this order.
	Sources []config.Source
	// Ledger remembers who lied from one Source to the next. Nil means that only the Source does.
	Ledger *Ledger
	// Keychain finds the credentials for a repository. Nil means Docker's, as
	// go-containerregistry's default resolves it.
	Keychain authn.Keychain
	// ForbiddenHelperDirs are directories that anybody can write to: PATH entries in or below them
	// aren't searched for credential helpers.
	ForbiddenHelperDirs []string
	// Insecure names hosts, with or without a port, that may be spoken to over plain http; loopback
	// hosts always may. They never get credentials that way.
	Insecure []string
	// Platform is the one whose image is wanted from an index, and the one a config has to name.
	// Zero means Linux on this architecture.
	Platform v1.Platform

	// Rounds is how often a request that used up its few quick attempts without any progress is
	// taken up again, where waiting, a push or a login can change the answer. Zero means not at all.
	Rounds int
	// Interval is the delay before the first further round, growing by half each time, with jitter.
	// Zero means 2 s.
	Interval time.Duration
	// MaxDelay bounds every delay, the registry's Retry-After included. Zero means 60 s.
	MaxDelay time.Duration

	// Rate is how many bytes per second all connections of a Source bring together at most. Zero means
	// as many as come.
	Rate int64

	// Log gets retries and the source of credentials. Nil means nothing is logged.
	Log *slog.Logger
	// Progress is told, from several goroutines, by how many bytes what was fetched of layers has
	// grown. Nil means nobody is.
	Progress func(fetched int64)

	// Tuning holds what only tests and benchmarks change.
	Tuning Tuning
}

// Tuning is the machinery of the network. Every zero field means the default.
type Tuning struct {
	Workers       int           // connections that fetch at once; 16
	RangeSize     int64         // bytes asked for at once; 2 MiB. Workers+2 ranges are in memory
	HeaderTimeout time.Duration // up to an answer's header, connecting included; 15 s, doubled by each time-out up to fourfold
	Window        time.Duration // the time in which MinBytes have to arrive; 10 s
	MinBytes      int64         // 24 KiB
	HelperTimeout time.Duration // for a credential helper; 10 s
	QuickTries    int           // attempts of a request in a round; 4
	QuickDelay    time.Duration // before the second attempt, doubling; 250 ms

	RootCAs *x509.CertPool                                                    // nil: the system's
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer's
	Sleep   func(ctx context.Context, d time.Duration) error                  // nil: a timer
	Now     func() time.Time                                                  // nil: time.Now
}

// Stats says what was done for a Source so far.
type Stats struct {
	Fetched    int64  // bytes of layers that came over the network
	Requests   int    // HTTP requests, token servers included
	Resumes    int    // requests that went on where another one ended early
	Credential string // the source of the credentials for From, or "anonymous"
	From       string // the source that most came from, as the user config has it; empty for the registry of the reference
	Liars      []string
}

// settings returns a copy in which no zero field is left.
func (p *Client) settings() *Client {
	s := *p
	s.Interval = or(s.Interval, 2*time.Second)
	s.MaxDelay = or(s.MaxDelay, time.Minute)
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Ledger == nil {
		s.Ledger = new(Ledger)
	}
	if s.Progress == nil {
		s.Progress = func(int64) {}
	}
	t := &s.Tuning
	t.Workers = or(t.Workers, 16)
	t.RangeSize = or(t.RangeSize, 2<<20)
	t.HeaderTimeout = or(t.HeaderTimeout, 15*time.Second)
	t.Window = or(t.Window, 10*time.Second)
	t.MinBytes = or(t.MinBytes, 24<<10)
	t.HelperTimeout = or(t.HelperTimeout, 10*time.Second)
	t.QuickTries = or(t.QuickTries, 4)
	t.QuickDelay = or(t.QuickDelay, 250*time.Millisecond)
	if t.Dial == nil {
		t.Dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	if t.Sleep == nil {
		t.Sleep = sleep
	}
	if t.Now == nil {
		t.Now = time.Now
	}
	return &s
}

func or[T int | int64 | time.Duration](value, fallback T) T {
	if value > 0 {
		return value
	}
	return fallback
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// jitter spreads d by a quarter to either side, so that many launchers that lost one registry do
// not return as one.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}
