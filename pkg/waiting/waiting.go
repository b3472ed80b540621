// Package waiting says what a program waits for while it waits. What may block writes it down on
// the board of its context, and whoever shows things to people reads the board.
//
// It guarantees nothing about what it says: it is for people alone, and no decision hangs on it.
package waiting

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Board holds what is being waited for. The zero value is an empty one.
type Board struct {
	mu      sync.Mutex
	entries []*entry // in the order in which they began
}

type entry struct {
	what  string
	since time.Time
}

type key struct{}

// With returns a context whose waits are written down on b.
func With(ctx context.Context, b *Board) context.Context {
	return context.WithValue(ctx, key{}, b)
}

// For writes down that what is being waited for, until over is called. Without a board nothing
// happens.
func For(ctx context.Context, what string) (over func()) {
	b, ok := ctx.Value(key{}).(*Board)
	if !ok {
		return func() {}
	}
	e := &entry{what, time.Now()}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entries = append(b.entries, e)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.entries = slices.DeleteFunc(b.entries, func(other *entry) bool { return other == e })
	}
}

// Longest returns what has been waited for longest, and since when; nothing where there is nothing.
func (b *Board) Longest() (what string, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.entries) == 0 {
		return "", time.Time{}
	}
	return b.entries[0].what, b.entries[0].since
}
