package launchtest

import (
	"slices"
	"sync"
)

// Recorder collects the effects that doubles had on the world, in the order in which they took place. The zero value
// is ready; a nil Recorder records nothing.
type Recorder struct {
	mu      sync.Mutex
	effects []string
}

// Record adds one effect.
func (r *Recorder) Record(effect string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.effects = append(r.effects, effect)
}

// Effects returns what was recorded so far.
func (r *Recorder) Effects() []string {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.effects)
}
