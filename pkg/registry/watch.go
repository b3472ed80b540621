package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

var errNoHeader = errors.New("no answer in time")

// slowError is a body of which too little arrived.
type slowError struct {
	bytes  int64
	window time.Duration
}

func (e *slowError) Error() string {
	if e.bytes == 0 {
		return fmt.Sprintf("nothing arrived for %s", e.window)
	}
	return fmt.Sprintf("only %d bytes arrived in %s", e.bytes, e.window)
}

// isTimeout reports whether err is the end of waiting.
func isTimeout(err error) bool {
	var slow *slowError
	return errors.Is(err, errNoHeader) || errors.As(err, &slow)
}

// watch ends a request that doesn't get on: first when no header arrives, then when in any window
// too little of the body does.
type watch struct {
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	window time.Duration
	least  func() int64 // asked at the end of each window

	mu     sync.Mutex
	timer  *time.Timer
	due    time.Time // a timer that fires earlier was set for something else
	header bool      // waiting for it
	paused bool
	bytes  int64
}

func newWatch(ctx context.Context, timeout, window time.Duration, least func() int64) *watch {
	w := &watch{window: window, least: least, header: true}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.due = time.Now().Add(timeout)
	w.timer = time.AfterFunc(timeout, w.check)
	return w
}

func (w *watch) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.paused || time.Now().Before(w.due):
	case w.header:
		w.cancel(errNoHeader)
	case w.bytes < w.least():
		w.cancel(&slowError{w.bytes, w.window})
	default:
		w.next()
	}
}

// next begins a window.
func (w *watch) next() {
	w.bytes = 0
	w.due = time.Now().Add(w.window)
	w.timer.Reset(w.window)
}

// body begins with the body's windows, and again after a pause.
func (w *watch) body() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.header, w.paused = false, false
	w.next()
}

// pause is for the time in which nothing reads.
func (w *watch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused = true
	w.timer.Stop()
}

// hold stops the clock for a wait of our own, until resume is called.
func (w *watch) hold() (resume func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := time.Until(w.due)
	w.paused = true
	w.timer.Stop()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.paused = false
		w.due = time.Now().Add(left)
		w.timer.Reset(left)
	}
}

func (w *watch) arrived(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes += int64(n)
}

// cause returns why the request really ended, for an error that came of it.
func (w *watch) cause(err error) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return err
}

// stop ends the request.
func (w *watch) stop() {
	w.pause()
	w.cancel(context.Canceled)
}
