package launchtest

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// AgentFault is something that goes wrong with requests. Of the agent's faults the first one that concerns a request and
// isn't used up decides.
type AgentFault struct {
	Kind AgentFaultKind
	// Match is the beginning of the requests it concerns, as Requests names them: "Info", "EmitEvent mpc". Empty: all that
	// the kind can hit.
	Match string
	// Skip lets that many such requests pass before the first fault.
	Skip int
	// Times is how many requests it hits: 0 means one, a negative number all.
	Times int
	// Delay is when the late kinds do what they put off; 0: at Release.
	Delay time.Duration
}

// AgentFaultKind is a way in which a request goes wrong. Arguments that don't decode are refused before any of them.
type AgentFaultKind string

// The ways that any method can go.
const (
	AgentRefuses   AgentFaultKind = "refuses"    // nothing is done; 400
	AgentBreaks    AgentFaultKind = "breaks"     // nothing is done; 500 in the web framework's words
	AgentDrops     AgentFaultKind = "drops"      // nothing is done; the connection closes without an answer
	AgentHangs     AgentFaultKind = "hangs"      // nothing is done, until the client gives up
	AgentLoses     AgentFaultKind = "loses"      // done, and the connection closes without an answer
	AgentHangsDone AgentFaultKind = "hangs done" // done, and no answer, until the client gives up
	AgentGarbles   AgentFaultKind = "garbles"    // done; 200 with something that nobody can read
	AgentFloods    AgentFaultKind = "floods"     // done; 200 with more than anybody should read
)

// The ways of EmitEvent alone.
const (
	EmitPoisons  AgentFaultKind = "poisons"            // logged, the register fails to extend; 400
	EmitSwallows AgentFaultKind = "swallows"           // nothing is done; 200, as the simulators do up to 0.5.8
	EmitSettles  AgentFaultKind = "settles late"       // logged; 200; the register is extended late
	EmitLost     AgentFaultKind = "lost, happens late" // the connection closes without an answer; logged and extended late
	EmitLate     AgentFaultKind = "happens late"       // logged and extended late, when the client may be gone; no answer
)

// QuoteFails is the way of Info: no quote can be made. It is told as the release does, with an empty tcb_info before 0.6.
const QuoteFails AgentFaultKind = "quote fails"

// Fail adds a fault.
func (a *Agent) Fail(f AgentFault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	a.faults = append(a.faults, &f)
}

// Heal removes all faults; what they put off stays put off.
func (a *Agent) Heal() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = nil
}

// Hits returns how many requests went wrong in a way.
func (a *Agent) Hits(kind AgentFaultKind) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hits[kind]
}

// agentMethod is a call with its arguments decoded.
type agentMethod struct {
	emits  *AgentEvent         // EmitEvent's
	answer func() (any, error) // Info's, which has a quote made; called with the lock held
	wrong  AgentFaultKind      // whatever the faults say; empty: they decide
}

func (m agentMethod) concerned(kind AgentFaultKind) bool {
	switch kind {
	case EmitPoisons, EmitSwallows, EmitSettles, EmitLost, EmitLate:
		return m.emits != nil
	case QuoteFails:
		return m.answer != nil
	}
	return true
}

// Watch has every request told before anything is done, without locks held, as Requests names it;
// what comes back goes wrong with it, before all faults. Nil: nobody is told.
func (a *Agent) Watch(watch func(request string) AgentFaultKind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watch = watch
}

// take returns the fault that hits a request, if any. The lock is held.
func (a *Agent) take(request string, m agentMethod) AgentFault {
	if m.wrong != "" {
		return AgentFault{Kind: m.wrong}
	}
	for _, f := range a.faults {
		switch {
		case f.Times == 0 || !m.concerned(f.Kind) || !strings.HasPrefix(request, f.Match):
		case f.Skip > 0:
			f.Skip--
		default:
			if f.Times > 0 {
				f.Times--
			}
			a.hits[f.Kind]++
			return *f
		}
	}
	return AgentFault{}
}

// handle does what a method does when nothing goes wrong. The lock is held.
func (a *Agent) handle(m agentMethod) (any, error) {
	if m.emits == nil {
		return m.answer()
	}
	a.extend(3, a.logEmit(*m.emits))
	return nil, nil
}

func (a *Agent) logEmit(e AgentEvent) [48]byte {
	a.emits++
	a.o.Recorder.Record("emit " + e.Name)
	return a.log(e)
}

// disturb handles a request with what goes wrong with it. Closing a connection is a panic that net/http knows.
func (a *Agent) disturb(gone, down <-chan struct{}, request string, m agentMethod) (any, error) {
	answer, silent, hang, err := a.act(request, m)
	if hang {
		select {
		case <-gone:
		case <-down:
		}
	}
	if silent {
		panic(http.ErrAbortHandler)
	}
	return answer, err
}

// act does, with the lock held, what a request still does, and says how it is answered.
func (a *Agent) act(request string, m agentMethod) (answer any, silent, hang bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.take(request, m)
	switch f.Kind {
	case AgentRefuses:
		return nil, false, false, agentRefusal("the agent refuses")
	case AgentBreaks:
		return nil, false, false, errAgentBreaks
	case AgentDrops:
		return nil, true, false, nil
	case AgentHangs:
		return nil, true, true, nil
	case AgentLoses:
		_, _ = a.handle(m)
		return nil, true, false, nil
	case AgentHangsDone:
		_, _ = a.handle(m)
		return nil, true, true, nil
	case AgentGarbles:
		_, _ = a.handle(m)
		return strings.NewReader("\x00garbage"), false, false, nil
	case AgentFloods:
		_, _ = a.handle(m)
		return io.LimitReader(endless{}, 64<<20), false, false, nil
	case EmitPoisons:
		a.logEmit(*m.emits)
		return nil, false, false, agentRefusal("Failed to extend RTMR: Input/output error")
	case EmitSwallows:
		return nil, false, false, nil
	case EmitSettles:
		digest := a.logEmit(*m.emits)
		a.putOff(f.Delay, func() { a.extend(3, digest) })
		return nil, false, false, nil
	case EmitLost:
		a.putOff(f.Delay, func() { a.handle(m) })
		return nil, true, false, nil
	case EmitLate:
		a.putOff(f.Delay, func() { _, _ = a.handle(m) })
		return nil, true, true, nil
	case QuoteFails:
		if a.minor < 6 {
			return a.infoWith(""), false, false, nil
		}
		return nil, false, false, agentRefusal("Failed to get quote: Device or resource busy")
	}
	answer, err = a.handle(m)
	return answer, false, false, err
}

// errAgentBreaks is a handler that panics, which no code of the agent's answers.
var errAgentBreaks = errors.New("500: Internal Server Error")

// endless reads as blanks for ever.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}
