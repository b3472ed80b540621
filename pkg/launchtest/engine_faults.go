package launchtest

import (
	"net/http"
	"strings"
	"time"
)

// EngineFault is something that goes wrong with requests. The first of the engine's faults that matches a request
// and isn't used up decides; a fault without any of the actions below does nothing but take its turn.
type EngineFault struct {
	// Match is "METHOD /path" without version and query, where * stands for any text: "POST /containers/*/start".
	Match string
	// Skip lets that many matching requests pass before the first fault.
	Skip int
	// Times is how many requests it hits: 0 means one, a negative number all.
	Times int

	// Delay waits before anything else, shorter if the client gives up.
	Delay time.Duration
	// Before is called then, to tell of the request or to hold it; nil: nothing is.
	Before func()
	// After does what was asked for first, and then goes wrong: the answer is lost, the work is not.
	After bool
	// Status and Message are the answer, with Docker's error document as its body; 500 if only Message is set.
	Status  int
	Message string
	// Hang answers nothing, until the client or the daemon gives up.
	Hang bool
	// Close closes the connection without an answer.
	Close bool
	// Edit changes the answer of a request that was done: a lie.
	Edit func(body []byte) []byte
	// Load makes a load go wrong in the ways that only loads have.
	Load LoadFault
	// LoadBytes is how much of a load's body is read before LoadDiskFull and LoadCut strike.
	LoadBytes int64
}

// LoadFault is a way in which POST /images/load goes wrong.
type LoadFault string

// The ways. Unless said otherwise the answer is HTTP 200, and nothing is loaded.
const (
	LoadErrorLine   LoadFault = "error line"   // a line with error and errorDetail, once the tar was read
	LoadErrorOnly   LoadFault = "error only"   // the same with only error
	LoadErrorDetail LoadFault = "error detail" // the same with only errorDetail
	LoadUnpackLine  LoadFault = "unpack line"  // "Loaded image", then "Error unpacking image": the image stays, unusable
	LoadTruncated   LoadFault = "truncated"    // loaded, but the answer ends in the middle of a line
	LoadSilent      LoadFault = "silent"       // an empty answer
	LoadDiskFull    LoadFault = "disk full"    // after LoadBytes, in the engine's own words
	LoadUnpackFull  LoadFault = "unpack full"  // "Loaded image", then the disk is full for what is in its blobs, which stay: 28 with a containerd store
	LoadCut         LoadFault = "cut"          // the connection closes after LoadBytes, without an answer
	LoadVanishes    LoadFault = "vanishes"     // loaded, and gone again as soon as that was said
)

// Fail adds a fault.
func (e *Engine) Fail(f EngineFault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	e.faults = append(e.faults, &f)
}

// Heal removes all faults.
func (e *Engine) Heal() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = nil
}

func (e *Engine) takeFault(r *engineRequest) EngineFault {
	e.mu.Lock()
	defer e.mu.Unlock()
	line := r.method + " " + r.path
	for _, f := range e.faults {
		switch {
		case f.Times == 0 || !wildcard(f.Match, line):
		case f.Skip > 0:
			f.Skip--
		default:
			if f.Times > 0 {
				f.Times--
			}
			return *f
		}
	}
	return EngineFault{}
}

// wildcard says whether text is pattern, whose stars stand for any text.
func wildcard(pattern, text string) bool {
	prefix, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == text
	}
	if !strings.HasPrefix(text, prefix) {
		return false
	}
	for i := len(prefix); i <= len(text); i++ {
		if wildcard(rest, text[i:]) {
			return true
		}
	}
	return false
}

// disturb handles a request with what goes wrong with it. Closing is a panic that net/http knows.
func (e *Engine) disturb(w http.ResponseWriter, r *engineRequest) error {
	f := e.takeFault(r)
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.ctx.Done():
		case <-e.down():
		}
	}
	if f.Before != nil {
		f.Before()
	}
	if r.session.Err() != nil {
		panic(http.ErrAbortHandler)
	}
	r.load, r.loadCut = f.Load, f.LoadBytes
	answers := f.Status != 0 || f.Message != ""
	wrong := answers || f.Hang || f.Close
	if !wrong && f.Edit == nil {
		return e.handle(w, r)
	}
	if f.After || f.Edit != nil {
		held := &heldAnswer{header: w.Header().Clone(), status: http.StatusOK}
		answerError(held, e.handle(held, r))
		if f.Edit != nil {
			held.body = f.Edit(held.body)
			held.header.Del("Content-Length")
		}
		if !wrong {
			held.send(w)
			return nil
		}
	}
	switch {
	case f.Hang:
		select {
		case <-r.ctx.Done():
		case <-e.down():
		}
		panic(http.ErrAbortHandler)
	case f.Close:
		panic(http.ErrAbortHandler)
	}
	if f.Status == 0 {
		f.Status = http.StatusInternalServerError
	}
	return refusal(f.Status, "%s", f.Message)
}

// down returns a channel that closes when the daemon stops.
func (e *Engine) down() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.session.Done()
}
