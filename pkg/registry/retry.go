package registry

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tee-launcher/pkg/waiting"
)

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
		attempt, of := s.ahead(&t, f)
		s.Log.Warn(fmt.Sprintf("trying again, attempt %d of %d", attempt, of), "attempt", attempt, "attempts", of,
			"part", part, "host", s.primary.guard.shown(f.host), "cause", s.redact(f.error()), "delay", wait)
		over := waiting.For(ctx, "the next attempt at "+s.primary.guard.shown(f.host))
		err := s.Tuning.Sleep(ctx, wait)
		over()
		if err != nil {
			return interrupted(ctx)
		}
	}
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

// minProgress is how many bytes are worth a connection: one that brings fewer gets nowhere.
const minProgress = 64 << 10

// arrived takes in that n bytes came, and whether they were the last of a part.
func (t *tries) arrived(n int, last bool) {
	if t.bytes += n; t.bytes >= minProgress || last {
		t.bytes = 0
		t.progress()
	}
}

// progress forgets the failures that only more attempts can cure. Lies are not forgotten.
func (t *tries) progress() {
	t.quick, t.rounds, t.permanent, t.timeouts, t.advanced = 0, 0, 0, 0, true
}

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
	case permanent, refusal:
		if t.permanent++; t.permanent < maxAttempts {
			return max(jitter(s.Tuning.QuickDelay<<t.permanent), after), true
		}
		return s.round(t, after, f.class == refusal)
	case lie:
		t.lies++
		s.Rest()
		return jitter(s.Tuning.QuickDelay), t.lies < maxAttempts
	case final:
		return 0, false
	}
	t.quick++
	// A host that asks for a longer pause than a round's isn't asked quickly.
	if t.quick < s.Tuning.QuickTries && f.after <= s.Interval {
		return max(jitter(s.Tuning.QuickDelay<<(t.quick-1)), after), true
	}
	return s.round(t, after, true)
}

// round says after which delay the next round comes, if there is one.
func (s *Source) round(t *tries, after time.Duration, worth bool) (time.Duration, bool) {
	if !worth || t.rounds >= s.Rounds {
		return 0, false
	}
	delay := s.Interval
	for range t.rounds {
		delay = min(delay+delay/2, s.MaxDelay)
	}
	t.quick, t.permanent = 0, 0
	t.rounds++
	return max(min(jitter(delay), s.MaxDelay), after), true
}

// ahead returns which attempt comes next, and how many there are at most, since there was progress.
func (s *Source) ahead(t *tries, f *failure) (next, of int) {
	switch f.class {
	case permanent:
		return t.permanent + 1, maxAttempts
	case refusal:
		return t.rounds*maxAttempts + t.permanent + 1, (s.Rounds + 1) * maxAttempts
	case lie:
		return t.lies + 1, maxAttempts
	}
	return t.rounds*s.Tuning.QuickTries + t.quick + 1, (s.Rounds + 1) * s.Tuning.QuickTries
}

// patience is how much longer than usual is waited. It grows with the time-outs in a row: a cache
// may have to fetch a blob itself before it can answer.
func (t *tries) patience() time.Duration { return 1 << min(t.timeouts, 2) }

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
