package image

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"tee-launcher/pkg/exit"
)

// Kind says how a pull failed, and so whether it is worth another try.
type Kind int

// The kinds of failure.
const (
	// Unavailable is a registry or network that didn't answer well within all attempts.
	Unavailable Kind = iota + 1
	// Refused is a permanent answer: no access, not there, no such platform, a form that can't be
	// used.
	Refused
	// Mismatch is an answer that isn't what the digest says, or an image that contradicts itself.
	Mismatch
)

// String returns the kind's name in the table of exit codes.
func (k Kind) String() string {
	switch k {
	case Unavailable:
		return "unavailable"
	case Refused:
		return "refused"
	case Mismatch:
		return "mismatch"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Error is the end of a pull that failed. An interrupted one ends in the context's cause instead.
type Error struct {
	Kind     Kind
	Ref      string        // the reference that was pulled
	Part     string        // which document or layer; empty for all of it
	Host     string        // the one that answered so, or didn't; empty where none was asked
	Status   int           // of the answer; 0 if there was none
	Answer   string        // the status in words, such as "404 Not Found"
	Attempts int           // of the request that failed
	Answered bool          // the source has answered before or now, rightly or wrongly
	Silent   time.Duration // for how long it was asked and didn't answer
	Code     string        // the registry's own code, such as MANIFEST_UNKNOWN
	Message  string        // the registry's own words, trimmed
	Err      error         // what went wrong, where it isn't just the status

	// Restart is set for a layer that turned out damaged only after its first bytes had been handed
	// out, while a new Stream from the same source may end well: damage on the way is repaired so,
	// as often as the source allows. One that always lies is what Restart ends for.
	Restart bool

	Help []string // what an operator can do, one line each
}

// Error returns the path from the reference to the cause, on one line.
func (e *Error) Error() string {
	var parts []string
	for _, part := range []string{e.Ref, e.Part} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	// The host is said where the reference doesn't say it, and once.
	if e.Host != "" && !strings.HasPrefix(e.Ref, e.Host+"/") {
		parts = append(parts, e.Host)
	}
	if e.Answer != "" {
		parts = append(parts, e.Answer)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	for _, part := range []string{e.Code, e.Message} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		parts = append(parts, "image is "+e.Kind.String())
	}
	text := strings.Join(parts, ": ")
	if e.Attempts > 1 {
		text += fmt.Sprintf(" (after %d attempts)", e.Attempts)
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the code the contract gives to this kind.
func (e *Error) ExitCode() exit.Code {
	switch e.Kind {
	case Unavailable:
		return exit.Unavailable
	case Refused:
		return exit.Refused
	case Mismatch:
		return exit.Mismatch
	}
	return exit.Internal
}

// Hints returns Help, for package exit.
func (e *Error) Hints() []string { return e.Help }

// BadForm reports whether the pull ended because the image, although it is the one that was asked
// for, is in a form that can't be used.
func (e *Error) BadForm() bool {
	return e.Kind == Refused && (e.Host == "" || errors.Is(e.Err, ErrTooLarge)) && !e.NoPlatform()
}

// ErrTooLarge is a document over the limit, whatever is in it.
var ErrTooLarge = fmt.Errorf("it is larger than %d bytes, the limit for a document", MaxManifest)

// errNotVerified is what a zero Verified answers.
var errNotVerified = errors.New("not a verified image")

// mismatch is the end of a proof for which a source sent other bytes than those that were asked for.
func mismatch(ref name.Digest, part string, err error) *Error {
	return &Error{Kind: Mismatch, Ref: ref.String(), Part: part, Err: err, Help: []string{
		"these bytes are not what was approved: don't use this source again until that is explained",
	}}
}

// unusable is the end of a proof whose documents are what was approved, and all the same nothing
// that can be run. No source is to blame for that.
func unusable(ref name.Digest, part string, err error) *Error {
	e := &Error{Kind: Refused, Ref: ref.String(), Part: part, Err: err}
	var platform *noPlatformError
	var lie *contradictionError
	switch {
	case errors.As(err, &platform):
		e.Help = []string{fmt.Sprintf("approve the digest of an image that was built for %s", platform.base())}
	case errors.As(err, &lie):
		e.Kind = Mismatch
		e.Help = []string{"the source sent what was approved, but this image's own documents contradict each " +
			"other: build it again, and approve the digest of that"}
	default:
		e.Help = []string{"the source sent what was approved, but that can't be run here: " +
			"approve the digest of an image in a form that can"}
	}
	return e
}

// contradictionError is a document that says something else of another one, or of a layer, than
// that is: either of them lies, whoever sent them.
type contradictionError struct{ text string }

func (e *contradictionError) Error() string { return e.text }

func contradiction(format string, args ...any) error {
	return &contradictionError{fmt.Sprintf(format, args...)}
}

// NoPlatform reports whether the pull ended because there is no image for the wanted platform.
func (e *Error) NoPlatform() bool {
	var none *noPlatformError
	return errors.As(e.Err, &none)
}
