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

// Backend is what measures: it can tell what is measured and whether it could emit, and it emits once.
type Backend interface {
	// Settle returns what is measured, once what an earlier run of this boot may have left half done
	// has come to its end, as far as it can. It reports whether none of that can still follow.
	Settle(ctx context.Context, left Earlier) (log Log, over bool, err error)
	// CanEmit says without effect why no event could be emitted.
	CanEmit(ctx context.Context) error
	// emitOnce expects a log without an image event, and ends with what the log says afterwards. It
	// emits again only where the first certainly wasn't done: never after an answer of success.
	emitOnce(ctx context.Context, image digest.Digest) (Measurement, error)
}

// Earlier is what is known of earlier runs of this boot.
type Earlier struct {
	Begun  bool            // one may have begun to emit
	Images []digest.Digest // those that one may have begun with
}

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

// Measure has image measured exactly once in this boot and returns the proof.
//
// No backend can emit an event once by itself: an answer can get lost, and a run can be killed. So
// nothing but the log decides, before the emit and after it. From the recorded intent until the log
// was read back ctx does not interrupt, because whoever is interrupted there can't tell what he did.
func Measure(
	ctx context.Context, b Backend, image digest.Digest, record Recorder,
) (Measurement, error) {
	if image.IsZero() {
		return Measurement{}, digest.ErrNone
	}
	log, _, err := b.Settle(ctx, Earlier{})
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
	m, err := b.emitOnce(context.WithoutCancel(ctx), image)
	if err != nil || m.already {
		return m, err
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
		fault := Lost // as long as nothing shows, a yes is worth no more
		if failed := (*AgentError)(nil); errors.As(emitErr, &failed) {
			fault = failed.Fault
		}
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
