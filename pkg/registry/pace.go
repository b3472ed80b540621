package registry

import (
	"context"
	"sync"
	"time"
)

const (
	// paceCredit is how much time that wasn't used may be caught up with: timers are late, and a rate
	// that never made up for it would be lower than the one that was asked for.
	paceCredit = 100 * time.Millisecond
	// leastPause is the shortest one that is worth a timer.
	leastPause = 5 * time.Millisecond
	// paceChunk bounds what one read may bring, so that the rate holds over short times too.
	paceChunk = 64 << 10
)

// pace holds all that a source reads, over however many connections and from disks, to one rate. Nil is no limit.
type pace struct {
	rate  int64 // bytes per second
	now   func() time.Time
	sleep func(context.Context, time.Duration) error

	mu  sync.Mutex
	due time.Time // when what was read so far may have been
}

func newPace(c *Client) *pace {
	if c.Rate <= 0 {
		return nil
	}
	return &pace{rate: c.Rate, now: c.Tuning.Now, sleep: c.Tuning.Sleep}
}

// chunk returns how many of n bytes may be asked for at once.
func (p *pace) chunk(n int) int {
	if p == nil {
		return n
	}
	return min(n, paceChunk, max(1, int(p.rate/10)))
}

// wait waits until the rate allows the n bytes that were read. It is our own wait, so that the watch
// doesn't count it.
func (p *pace) wait(n int, w *watch) error {
	if p == nil || n == 0 {
		return nil
	}
	d := p.took(n)
	if d < leastPause {
		return nil
	}
	defer w.hold()()
	return p.sleep(w.ctx, d)
}

// rest is wait for what came from nowhere that is watched.
func (p *pace) rest(ctx context.Context, n int) error {
	if p == nil || n == 0 {
		return nil
	}
	if d := p.took(n); d >= leastPause {
		return p.sleep(ctx, d)
	}
	return nil
}

// took counts n bytes, and returns how far ahead of the rate they are.
func (p *pace) took(n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if earliest := now.Add(-paceCredit); p.due.Before(earliest) {
		p.due = earliest
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	return p.due.Sub(now)
}
