package registry

import (
	"sync"
	"time"
)

// silence adds up the time in which somebody was asked and nobody answered: from the beginning of a
// request that got no answer until something arrives again, from whomever, the waits between
// included.
type silence struct {
	mu    sync.Mutex
	last  time.Time // that something arrived
	since time.Time // zero: somebody answers
	total time.Duration
}

// unheard is told of a request that got no answer, and when it began.
func (s *silence) unheard(begun time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		s.since = begun
		if s.last.After(begun) {
			s.since = s.last // somebody else was asked at the same time, and answered
		}
	}
}

// heard is told that something arrives.
func (s *silence) heard(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = now()
	if !s.since.IsZero() {
		s.total += s.last.Sub(s.since)
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
