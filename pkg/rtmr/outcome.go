package rtmr

import (
	"fmt"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

// Outcome says where a measurement ended that was begun and isn't proved.
type Outcome string

const (
	// NotEmitted: the event isn't in the log, and no emit that could still put it there is under way.
	NotEmitted Outcome = "not emitted"
	// Unclear: an emit may still happen, or nobody can say whether it did.
	Unclear Outcome = "unclear"
	// Poisoned: something was logged that is not in the register, so that no quote of this boot can be verified.
	Poisoned Outcome = "poisoned"
	// Conflict: the log replays, and a verifier will refuse it: another image, or more than one.
	Conflict Outcome = "conflict"
)

// MeasureError is a measurement that ended after the intent was recorded.
type MeasureError struct {
	Image   digest.Digest
	Outcome Outcome
	Emits   int   // how many were asked for
	Err     error // what the log says, why it can't be read, or what the agent said; nil if it said yes and logs nothing
}

func (e *MeasureError) Error() string {
	s := fmt.Sprintf("measuring %s: %s (attempts: %d)", e.Image, e.Outcome, e.Emits)
	if e.Err == nil {
		return s + ": the agent reports success and logs nothing (as dstack's simulator does, which never measures)"
	}
	return s + ": " + e.Err.Error()
}

func (e *MeasureError) Unwrap() error { return e.Err }

// ExitCode is Measurement.
func (e *MeasureError) ExitCode() exit.Code { return exit.Measurement }

// Hints says what helps.
func (e *MeasureError) Hints() []string {
	if e.Outcome == NotEmitted {
		return exit.Hints(e.Err)
	}
	return []string{"reboot the CVM: nothing else clears RTMR3, and another emit in this boot could make two"}
}

// follows joins what an emit ended with, if it failed, and what came then, in one line.
func follows(emit, then error) error {
	if emit == nil {
		return then
	}
	return fmt.Errorf("%w; then %w", emit, then)
}
