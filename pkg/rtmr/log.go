package rtmr

import (
	"errors"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/strictjson"
)

const (
	// MaxSize bounds a document that holds an event log, as the agent bounds what it reads itself.
	MaxSize = 10 << 20
	// MaxEvents bounds the entries of a log, of all registers together.
	MaxEvents = 1 << 14
)

// ErrUnknown is in the error for an Info answer whose tcb_info is empty: the agent had no quote, which says nothing about
// what is measured, least of all that nothing is.
var ErrUnknown = errors.New("tcb_info is empty: the agent could not make a quote, what is measured is unknown")

// FormatError says where a document isn't the event log that it should be.
type FormatError struct {
	Where string
	Err   error
}

func (e *FormatError) Error() string       { return e.Where + ": " + e.Err.Error() }
func (e *FormatError) Unwrap() error       { return e.Err }
func (e *FormatError) ExitCode() exit.Code { return exit.Config }

// Hints says whose rule it is, where it isn't the verifier's.
func (e *FormatError) Hints() []string {
	var ambiguous *strictjson.AmbiguousNameError
	if errors.As(e.Err, &ambiguous) {
		return []string{ourRule}
	}
	return nil
}

// Log is the RTMR3 part of an event log with the registers that came with it. Only Parse and the agent's Info make one;
// the zero value is refused wherever a log decides something.
type Log struct {
	events   []Event
	reported *Register
	quoted   *Register
	compose  *appCompose // of tcb_info; nil where the document has none
	faults   []string    // why the verifier's reader refuses what nothing here depends on
}

// appCompose is what a document says of the app-compose.
type appCompose struct {
	document string
	hash     []byte // compose_hash; nil if that can't be read
}

// Events returns the RTMR3 entries in the order in which they were logged.
func (l Log) Events() []Event { return append([]Event(nil), l.events...) }

// Reported returns RTMR3 as the document states it, and whether it does.
func (l Log) Reported() (Register, bool) { return value(l.reported) }

// Quoted returns RTMR3 as the quote in the document states it, and whether there is one.
func (l Log) Quoted() (Register, bool) { return value(l.quoted) }

func value(r *Register) (Register, bool) {
	if r == nil {
		return Register{}, false
	}
	return *r, true
}

// Replay returns the value that RTMR3 has if the log is right.
func (l Log) Replay() Register {
	var r Register
	for _, e := range l.events {
		r = Extend(r, e.Measured())
	}
	return r
}

// Predict returns the value that RTMR3 will have once image is emitted.
func (l Log) Predict(image digest.Digest) (Register, error) {
	if image.IsZero() {
		return Register{}, digest.ErrNone
	}
	return Extend(l.Replay(), DigestV1(EventName, image[:])), nil
}
