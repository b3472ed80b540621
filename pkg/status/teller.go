package status

import (
	"context"
	"sync"
	"time"

	"tee-launcher/pkg/digest"
)

// lookInterval is how often the approved list is looked at, and the metrics are written anew.
const lookInterval = time.Minute

// Teller says how a run is: whenever that changes, and every so often. Its methods may be called at
// the same time from several goroutines.
type Teller struct {
	Every time.Duration            // how often a line is printed though nothing has changed; 0: never
	Print func(line string)        // nil: nothing is printed
	Keep  func(metrics []byte)     // nil: they aren't
	Place func(digest.Digest) *int // where the list has a digest now; nil: no list
	Now   func() time.Time         // nil: time.Now

	mu   sync.Mutex
	told Status // with what was looked up
}

// Tell says how it is from now on, but for what the Teller looks up itself.
func (t *Teller) Tell(s Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.update(s)
}

// Use has the Teller do all that it does with what is known by now.
func (t *Teller) Use(keep func([]byte), place func(digest.Digest) *int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Keep, t.Place = keep, place
	t.keep()
}

// Current returns what was last told.
func (t *Teller) Current() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.told
}

// Run looks and tells from time to time, until ctx ends.
func (t *Teller) Run(ctx context.Context) {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	var every <-chan time.Time
	if t.Every > 0 {
		ticker := time.NewTicker(t.Every)
		defer ticker.Stop()
		every = ticker.C
	}
	for {
		select {
		case <-look.C:
			t.mu.Lock()
			if !t.update(t.told) {
				t.keep()
			}
			t.mu.Unlock()
		case <-every:
			t.mu.Lock()
			if !t.update(t.told) {
				t.print()
			}
			t.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// update looks up where the digest is in the list, and says what has changed, if anything has.
func (t *Teller) update(s Status) (changed bool) {
	s.Approved, s.ApprovedSince = t.approved(s.Digest)
	changed = !s.same(t.told)
	t.told = s
	if changed {
		t.print()
		t.keep()
	}
	return changed
}

// approved returns the place in the list, and since when it has been that.
func (t *Teller) approved(d *digest.Digest) (*int, *time.Time) {
	if d == nil || t.Place == nil {
		return nil, nil
	}
	place := t.Place(*d)
	if place == nil {
		return nil, nil
	}
	before := t.told
	if before.Approved != nil && *before.Approved == *place && before.Digest != nil && *before.Digest == *d {
		return before.Approved, before.ApprovedSince
	}
	now := t.now().UTC().Truncate(time.Millisecond)
	return place, &now
}

func (t *Teller) print() {
	if t.Print != nil && t.told.Version != 0 {
		t.Print(t.told.Line())
	}
}

func (t *Teller) keep() {
	if t.Keep != nil && t.told.Version != 0 {
		t.Keep(t.told.Metrics())
	}
}

func (t *Teller) now() time.Time {
	if t.Now == nil {
		return time.Now()
	}
	return t.Now()
}
