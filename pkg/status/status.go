// Package status is how a launcher says from time to time how it is, and how that is read elsewhere:
// one schema, as a line of the log, as Prometheus's text and on a socket.
//
// It guarantees that a line is bounded, is one line whatever the parts say, and holds nothing but the
// fields of Status; and that a line is taken from a log only if it begins as a launcher's does and
// means one thing. It doesn't guarantee that what a line says is true: who writes the log writes the
// line.
package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/strictjson"
	"tee-launcher/pkg/sanitize"
)

const (
	// Version is the schema's.
	Version = 1
	// Prefix is what a line begins with.
	Prefix = "launcher-status "
	// MaxSize bounds the JSON object of a line, in bytes.
	MaxSize = 2 << 10
)

// The phases that are no step of the boot, and the one in which the workload is there to stay.
const (
	Waiting   = "waiting"
	Supervise = "supervise"
)

// StagingOff is the state of what is staged where nothing is to be.
const StagingOff = "off"

// NotListed is the place of a digest that isn't in the approved list.
const NotListed = -1

// Status is how a run of the launcher is. Its JSON is the interface for fleets: a field that becomes
// another thing, or goes, is a new Version.
type Status struct {
	Version int `json:"version"`
	// These two come first, because near/mpc's scripts give up where a line has "error" behind "pull".
	Error         *Error         `json:"error"`
	Staged        *Staged        `json:"staged"`
	Phase         string         `json:"phase"` // a step's name, or Waiting
	Since         time.Time      `json:"since"` // when the phase began
	BootID        string         `json:"boot_id"`
	Reference     string         `json:"reference"` // empty until it is known, as are all of the image
	Digest        *digest.Digest `json:"digest"`
	Reason        string         `json:"reason"`
	FallbackFrom  *digest.Digest `json:"fallback_from"`  // what could not be had; null: no fallback
	Approved      *int           `json:"approved"`       // place in the list; null: no list
	ApprovedSince *time.Time     `json:"approved_since"` // since when this run has seen it there
	Measured      *bool          `json:"measured"`       // null outside a CVM
	RTMR3         string         `json:"rtmr3"`          // 96 hex digits; empty until it is measured
	Restarts      int            `json:"restarts"`
	LastExitCode  *int           `json:"last_exit_code"` // null: it never ended
	Percent       *int           `json:"percent"`        // of the image's bytes, while it is pulled and loaded
	Launcher      string         `json:"launcher"`       // its version
}

// Staged is the image that is fetched before it is needed.
type Staged struct {
	Digest *digest.Digest `json:"digest"` // null where staging is off, or nothing can be chosen
	State  string         `json:"state"`
	Error  *string        `json:"error"` // why it can't be had
	At     time.Time      `json:"at"`    // when that became so
}

// Error is why the workload doesn't run, or doesn't yet.
type Error struct {
	Code    exit.Code `json:"code"`
	Message string    `json:"message"`
}

// Runs reports whether the workload is there to stay and runs.
func (s Status) Runs() bool { return s.Phase == Supervise && s.Error == nil }

// Healthy reports whether it runs and, in a CVM, is measured.
func (s Status) Healthy() bool { return s.Runs() && (s.Measured == nil || *s.Measured) }

// Code is the exit code that says how it is. What hasn't come as far as running is unavailable; a
// launcher that ended for a reason that says nothing of the node leaves a node that doesn't run.
func (s Status) Code() exit.Code {
	switch {
	case s.Error != nil && s.Error.Code >= exit.Config && s.Error.Code <= exit.Workload:
		return s.Error.Code
	case s.Error != nil:
		return exit.Workload
	case s.Healthy():
		return exit.OK
	case s.Runs():
		return exit.Measurement
	}
	return exit.Unavailable
}

// same reports whether two say the same, but for how far a pull has come.
func (s Status) same(other Status) bool {
	s.Percent, other.Percent = nil, nil
	return bytes.Equal(s.json(), other.json())
}

// Line is the status as a line of the log, without its end.
func (s Status) Line() string { return Prefix + string(s.JSON()) }

// JSON is the object of a line. Texts that make it larger than MaxSize are cut.
func (s Status) JSON() []byte {
	for limit := 600; ; limit /= 2 {
		short := s
		short.Phase, short.BootID = sanitize.Line(s.Phase, limit), sanitize.Line(s.BootID, limit)
		short.Reference, short.Reason = sanitize.Line(s.Reference, limit), sanitize.Line(s.Reason, limit)
		short.Launcher = sanitize.Line(s.Launcher, limit)
		if s.Error != nil {
			short.Error = &Error{s.Error.Code, sanitize.Line(s.Error.Message, limit)}
		}
		if s.Staged != nil {
			staged := *s.Staged
			staged.State = sanitize.Line(staged.State, limit)
			if staged.Error != nil {
				why := sanitize.Line(*staged.Error, limit)
				staged.Error = &why
			}
			short.Staged = &staged
		}
		if object := short.json(); len(object) <= MaxSize || limit == 1 {
			return object
		}
	}
}

func (s Status) json() []byte {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(s) // nothing in it can fail
	return bytes.TrimSuffix(sanitize.JSON(b.Bytes()), []byte("\n"))
}

// ErrNotStatus is returned for what isn't a launcher's status.
var ErrNotStatus = errors.New("not a launcher's status")

// Parse reads the object of a line, as somebody says that a launcher wrote it. A later launcher of
// the same Version may say more.
func Parse(object []byte) (s Status, err error) {
	defer func() {
		if err != nil {
			s, err = Status{}, fmt.Errorf("%w: %s", ErrNotStatus, sanitize.Line(err.Error(), 200))
		}
	}()
	if len(object) > MaxSize {
		return s, fmt.Errorf("more than %d bytes", MaxSize)
	}
	document, err := strictjson.Parse(object)
	if err != nil {
		return s, err
	}
	members, err := document.Object("version", "phase", "since", "boot_id", "reference", "digest", "reason",
		"fallback_from", "approved", "approved_since", "measured", "rtmr3", "restarts", "last_exit_code",
		"staged", "percent", "error", "launcher")
	if err != nil {
		return s, err
	}
	for name, inner := range map[string][]string{
		"staged": {"digest", "state", "error", "at"}, "error": {"code", "message"},
	} {
		if v := members[name]; v.Present() && !v.Null() {
			if _, err := v.Object(inner...); err != nil {
				return s, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	for _, name := range []string{"digest", "fallback_from", "approved_since"} {
		if text, err := members[name].Text(); err == nil && text == "" {
			delete(members, name) // nothing, as null is
		}
	}
	known := map[string]json.RawMessage{}
	for name, v := range members {
		known[name] = v.Raw()
	}
	data, err := json.Marshal(known)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, err
	}
	switch {
	case s.Version != Version:
		return s, fmt.Errorf("version %d, only %d is known", s.Version, Version)
	case s.Phase == "" || s.Since.IsZero():
		return s, errors.New("phase or since is missing")
	case s.Restarts < 0 || s.Approved != nil && *s.Approved < NotListed:
		return s, errors.New("a count is negative")
	case s.Percent != nil && (*s.Percent < 0 || *s.Percent > 100):
		return s, errors.New("percent isn't 0 to 100")
	case s.Error != nil && (s.Error.Code < 1 || s.Error.Code > 255):
		return s, fmt.Errorf("error code %d", s.Error.Code)
	case s.RTMR3 != "" && (len(s.RTMR3) != 96 || strings.Trim(s.RTMR3, "0123456789abcdef") != ""):
		return s, errors.New("rtmr3 isn't 96 hex digits")
	}
	// Nothing that can't be seen comes any further, and our own line is as it was.
	clean, err := clone(s.JSON())
	return clean, err
}

func clone(object []byte) (s Status, err error) { return s, json.Unmarshal(object, &s) }
