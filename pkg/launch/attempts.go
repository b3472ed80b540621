package launch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/state"
	"tee-launcher/pkg/waiting"
)

const (
	// firstPause is what is waited after a failed attempt, twice as long each time, up to
	// longestPause.
	firstPause, longestPause = 30 * time.Second, 5 * time.Minute
	// firstRest and longestRest are the same where each attempt costs a good part of the image's
	// bytes, and the same again is what another one most likely comes to.
	firstRest, longestRest = time.Hour, 6 * time.Hour
	// look is how often it is looked then whether anything has changed.
	look = 30 * time.Second
)

// Pause is how long is waited after an attempt, before jitter: so many waits of its kind went
// before. A rest comes after an attempt that was costly.
func Pause(before int, rest bool) time.Duration {
	if rest {
		return min(firstRest<<min(before, 3), longestRest)
	}
	return min(firstPause<<min(before, 4), longestPause)
}

// Costly reports whether an attempt that ended with the code had fetched so much of an image, both
// in bytes, that another one should wait until something else is different.
func Costly(code exit.Code, fetched, size int64) bool {
	return (code == exit.Mismatch || code == exit.Engine) && fetched > size/10
}

// jitter spreads a wait by a fifth to either side, so that a fleet doesn't come back as one.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64())).Round(time.Second)
}

// waited waits after an attempt that failed, if its failure may pass, and reports whether there is
// another one: then nothing is left of this one but what the engine holds.
func (r *run) waited(ctx context.Context, m *machine) bool {
	code := exit.Of(r.err)
	var failed *StepError
	if !errors.As(r.err, &failed) {
		return false
	}
	at := failed.Step
	if errors.As(r.err, new(unread)) { // the probe reads the same files where an image is measured
		at = admission.AtConfig
	}
	if !r.Settings.Passes(at, code, r.report.Attempt > 1) {
		return false
	}
	p, i := r.report.Pull, r.report.Image
	m.costly = m.costly || p != nil && i != nil && Costly(code, p.BytesFetched, i.SizeBytes)
	m.failed(code, r.err)
	in, rest := m.rest(ctx)

	var hints []string
	for _, hint := range append(slices.Clone(exit.Hints(r.err)), "nothing has to be rebooted: the user config, "+
		"with mpc_hash_override in it, the credentials and the engine are looked at anew in each attempt") {
		hints = append(hints, sanitize.Line(hint, sanitize.MaxLine))
	}
	r.report.waits(r.err)
	// The step comes behind the error: near/mpc's own check of a node in a CVM takes any line in which
	// "error" follows "pull" for the end of the launcher.
	r.Log.Error("the attempt failed, trying again", "attempt", r.report.Attempt, "exit_code", int(code),
		"error", failed.Err, "hints", hints, "step", failed.Step, "in", in)
	if in > 0 {
		defer waiting.For(ctx, fmt.Sprintf("attempt %d, because of exit code %d, %s, in %s",
			r.report.Attempt+1, code, code.Name(), failed.Step))()
	}
	for left := in; left > 0; left -= look {
		nap := left
		if rest {
			nap = min(left, look)
		}
		if r.Sleep(ctx, nap) != nil || ctx.Err() != nil {
			r.err = context.Cause(ctx)
			return false
		}
		if !rest {
			break
		}
		if what := m.changed(ctx); what != "" {
			r.Log.Info("trying again at once", "changed", what)
			m.rests = 0
			break
		}
	}
	r.err = nil
	r.report.again()
	return true
}

// rest returns how long is waited now, with jitter, and whether an attempt since the latest wait cost so
// much that this one is ended by nothing but a change. An older digest is tried at once, so that it is
// the newest that can be had.
func (m *machine) rest(ctx context.Context) (in time.Duration, rest bool) {
	if m.failing.Turn > 0 {
		return 0, false
	}
	rest = m.costly && m.changed(ctx) == ""
	m.costly = false
	kind := &m.pauses
	if rest {
		kind = &m.rests
	}
	in = jitter(Pause(*kind, rest))
	*kind++
	return in, rest
}

// surroundings is what an attempt found that isn't its own, and what may make another one end
// otherwise.
type surroundings struct {
	files  digest.Digest // user config and approved list
	engine inspect.Info
	free   int64 // on the engine's disk
	size   int64 // of the image
}

// changed says what of the surroundings of an attempt that loaded is another than it was then; empty:
// nothing. The room is, where it is more by a tenth of the image: a load that failed gives back what
// it took, and all others write something all the time.
func (m *machine) changed(ctx context.Context) string {
	if state.Fingerprint(m.Settings, m.shared) != m.seen.files {
		return "user config or approved list"
	}
	if info, err := m.engine.Info(ctx); err != nil || info != m.seen.engine {
		return "engine"
	}
	free := m.free(ctx, m.seen.engine)
	if m.seen.free != unknownRoom && free > m.seen.free+m.seen.size/10 {
		return "free space"
	}
	return ""
}
