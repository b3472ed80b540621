package registry

import (
	"sync"
	"time"
)

// silence adds up the time in which a source was asked and nobody answered: from the beginning of a
// request that got no answer until something arrives again, the waits between included.
type silence struct {
	mu    sync.Mutex
	since time.Time // zero: somebody answers
	total time.Duration
}

// unheard is told of a request that got no answer, and when it began.
func (s *silence) unheard(begun time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		s.since = begun
	}
}

// heard is told that something arrives.
func (s *silence) heard(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.since.IsZero() {
		s.total += now().Sub(s.since)
		s.since = time.Time{}
	}
}

// lasted returns how long nobody answered until now.
func (s *silence) lasted(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		return s.total
	}
	return s.total + now.Sub(s.since)
}
