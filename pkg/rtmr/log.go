package rtmr

import (
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

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

// Log is the RTMR3 part of an event log with the registers that came with it. Only Parse and the agent's Info make one;
// the zero value is refused wherever a log decides something.
type Log struct {
	events   []Event
	reported *Register
	quoted   *Register
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

// Predict returns the value that RTMR3 will have once digest is emitted.
func (l Log) Predict(image v1.Hash) (Register, error) {
	payload, err := digest.Bytes(image)
	if err != nil {
		return Register{}, err
	}
	return Extend(l.Replay(), DigestV1(EventName, payload[:])), nil
}

// Parse reads a tcb_info document, an answer of GetQuote or of Info, or a bare array of events.
func Parse(b []byte) (Log, error) {
	v, err := document(b)
	if err != nil {
		return Log{}, err
	}
	if v.IsArray() {
		events, err := parseEvents(v)
		return Log{events: events}, err
	}
	members, err := v.Object("tcb_info", "event_log", "rtmr3", "quote")
	if err != nil {
		return Log{}, &FormatError{"event log", err}
	}
	if !members["tcb_info"].Present() {
		return parseLog(members)
	}
	for _, name := range []string{"event_log", "rtmr3", "quote"} {
		if members[name].Present() {
			return Log{}, &FormatError{"event log", fmt.Errorf("both tcb_info and %s, want one of them", name)}
		}
	}
	info, err := parseInfo(members)
	return info.Log, err
}

// parseInfo reads an answer of Info, whose tcb_info is a string that holds JSON.
func parseInfo(members map[string]strictjson.Value) (Info, error) {
	text, err := members["tcb_info"].Text()
	if err != nil {
		return Info{}, &FormatError{"tcb_info", err}
	}
	if text == "" {
		return Info{}, &FormatError{"info", ErrUnknown}
	}
	v, err := strictjson.Parse([]byte(text))
	if err != nil {
		return Info{}, &FormatError{"tcb_info", err}
	}
	inner, err := v.Object("event_log", "rtmr3", "quote", "app_compose")
	if err != nil {
		return Info{}, &FormatError{"tcb_info", err}
	}
	log, err := parseLog(inner)
	if err != nil {
		return Info{}, err
	}
	info := Info{Log: log}
	if inner["app_compose"].Present() {
		if info.AppCompose, err = inner["app_compose"].Text(); err != nil {
			return Info{}, &FormatError{"app_compose", err}
		}
	}
	return info, nil
}

// parseLog reads what tcb_info and an answer of GetQuote have in common: a log, and a register to hold it against.
func parseLog(members map[string]strictjson.Value) (Log, error) {
	var log Log
	if members["rtmr3"].Present() {
		r, err := register(members["rtmr3"])
		if err != nil {
			return Log{}, &FormatError{"rtmr3", err}
		}
		log.reported = &r
	}
	if members["quote"].Present() {
		quote, err := hexBytes(members["quote"])
		if err != nil {
			return Log{}, &FormatError{"quote", err}
		}
		r, err := quotedRTMR3(quote)
		if err != nil {
			return Log{}, &FormatError{"quote", err}
		}
		log.quoted = &r
	}
	if log.reported == nil && log.quoted == nil {
		return Log{}, &FormatError{"event log", errors.New("neither rtmr3 nor quote: not tcb_info, GetQuote or Info")}
	}
	entries := members["event_log"]
	if text, err := entries.Text(); err == nil {
		if entries, err = strictjson.Parse([]byte(text)); err != nil {
			return Log{}, &FormatError{"event_log", err}
		}
	}
	events, err := parseEvents(entries)
	if err != nil {
		return Log{}, err
	}
	log.events = events
	return log, nil
}

func parseEvents(v strictjson.Value) ([]Event, error) {
	entries, err := v.Array(MaxEvents)
	if err != nil {
		return nil, &FormatError{"event_log", err}
	}
	var events []Event
	for i, entry := range entries {
		e, rtmr3, err := parseEvent(entry)
		if err != nil {
			return nil, &FormatError{fmt.Sprintf("event_log: entry %d", i), err}
		}
		if rtmr3 {
			events = append(events, e)
		}
	}
	return events, nil
}

// parseEvent reads one entry. Of the other registers' entries nothing but the register is read: firmware writes them, in
// forms of its own, and nothing here depends on them.
func parseEvent(entry strictjson.Value) (_ Event, rtmr3 bool, err error) {
	members, err := entry.Object("imr", "event_type", "digest", "event", "event_payload", "version")
	if err != nil {
		return Event{}, false, err
	}
	imr, err := members["imr"].Uint32()
	if err != nil {
		return Event{}, false, fmt.Errorf("imr: %w", err)
	}
	if imr > 3 {
		return Event{}, false, fmt.Errorf("imr: there is no register %d", imr)
	}
	if imr != 3 {
		return Event{}, false, nil
	}
	e := Event{Version: 1}
	if e.Type, err = members["event_type"].Uint32(); err != nil {
		return Event{}, false, fmt.Errorf("event_type: %w", err)
	}
	if e.Name, err = members["event"].Text(); err != nil {
		return Event{}, false, fmt.Errorf("event: %w", err)
	}
	if e.Payload, err = hexBytes(members["event_payload"]); err != nil {
		return Event{}, false, fmt.Errorf("event_payload: %w", err)
	}
	if version := members["version"]; version.Present() {
		n, err := version.Uint32()
		if err != nil || n < 1 || n > 2 {
			return Event{}, false, fmt.Errorf("version: %.100q is neither 1 nor 2", version.Raw())
		}
		e.Version = int(n)
	}
	if digest := members["digest"]; digest.Present() && string(digest.Raw()) != `""` {
		d, err := register(digest)
		if err != nil {
			return Event{}, false, fmt.Errorf("digest: %w", err)
		}
		e.Digest = &d
	} else if e.Type != EventType {
		// Only dstack's own events are stripped; of another nobody knows how its digest is made.
		return Event{}, false, fmt.Errorf("digest: missing from an event of type %#x", e.Type)
	}
	return e, true, nil
}
