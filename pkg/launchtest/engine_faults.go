package launchtest

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// EngineFault is something that goes wrong with requests. The first of the engine's faults that
// matches a request and isn't used up decides; a fault without any of the actions below does
// nothing but take its turn.
type EngineFault struct {
	// Match is "METHOD /path" without version and query, where * stands for any text: "POST
	// /containers/*/start".
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
	// Status and Message are the answer, with Docker's error document as its body.
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
	LoadErrorLine   LoadFault = "error line"   // a line with error and errorDetail, once the tar was read: Message, if there is one
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

// Watch has every request told before anything is done, without locks held, as "METHOD /path"; what
// comes back goes wrong with it, before all other faults. Nil: nobody is told.
func (e *Engine) Watch(watch func(request string) EngineFault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watch = watch
}

func (e *Engine) takeFault(r *engineRequest) EngineFault {
	e.mu.Lock()
	watch := e.watch
	e.mu.Unlock()
	if watch != nil {
		if f := watch(r.method + " " + r.path); f.Match != "" {
			return f
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.faults {
		_, ok := wildcard(f.Match, r.method+" "+r.path)
		switch {
		case f.Times == 0 || !ok:
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

// wildcard reports whether text is pattern, in which one star may stand for any text, and returns
// that.
func wildcard(pattern, text string) (star string, ok bool) {
	before, after, starred := strings.Cut(pattern, "*")
	if !starred {
		return "", pattern == text
	}
	rest, begins := strings.CutPrefix(text, before)
	star, ends := strings.CutSuffix(rest, after)
	return star, begins && ends
}

// disturb handles a request with what goes wrong with it. Closing is a panic that net/http knows.
func (e *Engine) disturb(w http.ResponseWriter, r *engineRequest) {
	f := e.takeFault(r)
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.ctx.Done():
		case <-r.session.Done():
		}
	}
	if f.Before != nil {
		f.Before()
	}
	if r.session.Err() != nil {
		panic(http.ErrAbortHandler)
	}
	r.load, r.loadCut, r.loadSays = f.Load, f.LoadBytes, f.Message
	wrong := f.Status != 0 || f.Hang || f.Close
	if !wrong && f.Edit == nil {
		e.handle(w, r)
		return
	}
	if f.After || f.Edit != nil {
		held := httptest.NewRecorder()
		e.handle(held, r)
		body := held.Body.Bytes()
		if f.Edit != nil {
			body = f.Edit(body)
		}
		if !wrong {
			maps.Copy(w.Header(), held.Header())
			w.WriteHeader(held.Code)
			_, _ = w.Write(body)
			return
		}
	}
	if f.Hang {
		select {
		case <-r.ctx.Done():
		case <-r.session.Done():
		}
	}
	if f.Hang || f.Close {
		panic(http.ErrAbortHandler)
	}
	answerError(w, refusal(f.Status, "%s", f.Message))
}
