package admission

import (
	"time"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

// maxOlder is how many approved digests are tried that are older than the newest.
const maxOlder = 5

// Failing is what a run remembers of the newest approved digest, which it can't have.
type Failing struct {
	Newest digest.Digest
	Code   exit.Code     // that its latest attempt ended with
	For    time.Duration // how long it has failed
	Last   time.Time     // when it failed last; zero: what came after that says nothing of it
	Turn   int           // which of the older ones is tried next, at once; 0: none, but the newest after a while
}

// Older returns what is tried where a decided digest can't be had for long, in this order. Never instead of an override, of the default or of
// what is measured.
func (s Settings) Older(d approval.Decision) []digest.Digest {
	if s.FallbackAfter <= 0 || !s.Supervised() || d.Reason != approval.Newest && d.From.IsZero() {
		return nil
	}
	return d.Older[:min(len(d.Older), maxOlder)]
}

// Failed takes in how an attempt at a decided digest failed. Only where a source answered, whatever, the failure says something of that digest: a
// network that isn't there yet makes nobody run an older image. What counts is the time between two such failures of the newest. Once that is enough,
// each further one of them is followed by an attempt at every older one, so that none of them runs if a newer one could be had by then.
func (f Failing) Failed(s Settings, d approval.Decision, code exit.Code, answered bool, now time.Time) Failing {
	older := s.Older(d)
	switch {
	case len(older) == 0 || !answered || code < exit.Unavailable || code > exit.Mismatch:
		f.Last, f.Turn = time.Time{}, 0
		return f
	case !d.From.IsZero():
		f.Turn = (f.Turn + 1) % (len(older) + 1)
		return f
	case f.Newest != d.Digest:
		f = Failing{Newest: d.Digest}
	case !f.Last.IsZero():
		f.For += now.Sub(f.Last)
	}
	f.Code, f.Last = code, now
	if f.For >= s.FallbackAfter {
		f.Turn = 1
	}
	return f
}

// instead chooses the older digest whose turn it is, as long as the one that failed is the newest of the list.
func (f Failing) instead(s Settings, d approval.Decision) approval.Decision {
	older := s.Older(d)
	if f.Turn < 1 || f.Turn > len(older) || d.Digest != f.Newest {
		return d
	}
	d.Digest, d.From = older[f.Turn-1], d.Digest
	d.Reason = approval.Reason("fallback: " + d.From.String() + " is newer and can't be had: " + f.Code.Name())
	return d
}
