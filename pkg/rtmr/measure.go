package rtmr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

// maxEmits bounds how often an emit is asked for that certainly did not happen before.
const maxEmits = 3

// Recorder is told what Measure does, for people who look at it later.
type Recorder interface {
	// Intent must have written durably, when it returns nil, that image is about to be emitted. On an error nothing is.
	Intent(image digest.Digest) error
	// Done must have written durably, when it returns nil, that the event was emitted and read back.
	Done(Measurement) error
}

// Measurement proves that RTMR3 names one image, in a log that a verifier accepts. Only Measure makes one; the zero value
// names none.
type Measurement struct {
	image   digest.Digest
	rtmr3   Register
	already bool
}

// Digest returns the measured image's manifest digest; the zero Measurement has the zero Digest.
func (m Measurement) Digest() digest.Digest { return m.image }

// RTMR3 returns the register that was read back, to which the log replays.
func (m Measurement) RTMR3() Register { return m.rtmr3 }

// AlreadyPresent reports whether the event stood in the log before, so that nothing was emitted.
func (m Measurement) AlreadyPresent() bool { return m.already }

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

// Measure has image measured exactly once in this boot and returns the proof.
//
// The agent has no way to emit an event once: it neither compares nor undoes, and an answer can get lost. So nothing but the
// log decides, before the emit and after it. From the recorded intent until the log was read back ctx does not interrupt,
// because whoever is interrupted there can't tell what he did.
func (a *Agent) Measure(
	ctx context.Context, image digest.Digest, record Recorder,
) (Measurement, error) {
	if image.IsZero() {
		return Measurement{}, digest.ErrNone
	}
	log, err := a.Log(ctx)
	if err != nil {
		return Measurement{}, err
	}
	present, err := log.Measured(image)
	if err != nil {
		return Measurement{}, err
	}
	if present {
		return Measurement{image: image, rtmr3: log.Replay(), already: true}, nil
	}
	if ctx.Err() != nil {
		return Measurement{}, context.Cause(ctx)
	}
	if err := record.Intent(image); err != nil {
		return Measurement{}, &exit.Error{Code: exit.Config, Err: fmt.Errorf("recording the intent to measure %s: %w", image, err)}
	}
	m, err := a.emitOnce(context.WithoutCancel(ctx), image)
	if err != nil {
		return Measurement{}, err
	}
	if err := record.Done(m); err != nil {
		return Measurement{}, &exit.Error{Code: exit.Config, Err: fmt.Errorf("recording that %s is measured: %w", image, err)}
	}
	return m, nil
}

// emitOnce expects a log without an image event and ends with what the log says after at least one emit.
func (a *Agent) emitOnce(ctx context.Context, image digest.Digest) (Measurement, error) {
	for emits := 1; ; emits++ {
		a.logger().Info("emitting", "event", EventName, "digest", image.String(), "emit", emits)
		emitErr := a.emit(ctx, EventName, image[:])
		fault := faultOf(emitErr)
		if emitErr != nil {
			a.logger().Warn("the emit failed, the event log says whether it was measured", "error", emitErr)
			if err := a.sleep(ctx, time.Second); err != nil {
				return Measurement{}, &MeasureError{image, Unclear, emits, follows(emitErr, err)}
			}
		}
		// Whether an event that isn't in the log can get there without another emit: always, and most of all after a yes, unless
		// the agent is known to have refused the request or never to have had it. Only then is it asked for again.
		mayAppear := fault != Refused && fault != Missing && fault != Unreachable
		info, err := a.poll(ctx, func(info Info, err error) bool {
			if err != nil {
				return false
			}
			return info.Log.Replays() == nil && (len(info.Log.Images()) > 0 || !mayAppear)
		})
		if err != nil {
			outcome := Unclear
			if fault == Unreachable {
				outcome = NotEmitted
			}
			return Measurement{}, &MeasureError{image, outcome, emits, follows(emitErr, err)}
		}
		if err := info.Log.Replays(); err != nil {
			return Measurement{}, &MeasureError{image, Poisoned, emits, err}
		}
		present, err := info.Log.Measured(image)
		switch {
		case err != nil:
			return Measurement{}, &MeasureError{image, Conflict, emits, err}
		case present:
			return Measurement{image: image, rtmr3: info.Log.Replay()}, nil
		case mayAppear:
			return Measurement{}, &MeasureError{image, Unclear, emits, emitErr}
		case emits == maxEmits || fault == Missing:
			return Measurement{}, &MeasureError{image, NotEmitted, emits, emitErr}
		}
	}
}

// faultOf returns how an emit failed: empty for one that was answered as it should be.
func faultOf(err error) Fault {
	var failed *AgentError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &failed):
		return failed.Fault
	}
	return Lost
}

// follows joins what an emit ended with, if it failed, and what came then, in one line.
func follows(emit, then error) error {
	if emit == nil {
		return then
	}
	return fmt.Errorf("%w; then %w", emit, then)
}
