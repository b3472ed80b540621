package launch

import (
	"context"
	"errors"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/internal/files"
)

// Run does the whole sequence, and tries again where admission says so of a failure; nothing is
// measured in an attempt after which it does. Its error, if any, says by its type which exit code it
// ends in; the report says at which step.
func (l *Launcher) Run(ctx context.Context) error {
	r := l.newRun()
	defer r.close()
	r.report.plan(admission.Steps()...)
	// An impostor is ended, and the shared directory is the volume. The lock: from here on no other
	// launcher acts.
	m := do(ctx, r, admission.AtSettings, r.settings)
	for again := true; again; again = r.waited(ctx, m) {
		r.attempt(ctx, m)
	}
	r.report.finish(r.err)
	return r.err
}

// attempt orders the effects. Each step takes what earlier ones of this attempt found out or did, so
// that none can be done before what it needs exists; after a step that failed none is done.
//
// Everything that can fail comes before the one thing that can't be undone, the measurement.
func (r *run) attempt(ctx context.Context, m *machine) {
	// Could a measurement end well? What a wait may have undone of the settings is done once more,
	// and nothing else has been touched yet.
	found := do(ctx, r, admission.AtProbe, m.probe)
	// No old workload runs from here on.
	alone := do(ctx, r, admission.AtGate, m.gate(found))
	// Which digest, and why.
	chosen := do(ctx, r, admission.AtConfig, m.choose(alone))
	// Manifest and config proved.
	pulled := do(ctx, r, admission.AtPull, m.pull(chosen))
	// Layers proved on their way into the engine; the result proved.
	loaded := do(ctx, r, admission.AtLoad, m.load(pulled))
	// The workload's container, not started.
	made := do(ctx, r, admission.AtCreate, m.create(alone, chosen, loaded))
	// The commit point.
	ready := do(ctx, r, admission.AtMeasure, m.measure(alone, chosen, made))
	// That container, checked again.
	started := do(ctx, r, admission.AtStart, m.start(ready))
	// That container, as long as it runs.
	do(ctx, r, admission.AtSupervise, m.supervise(started))
}

// step is a part of the sequence. It returns what later ones need, and what to tell people about
// it.
type step[T any] func(context.Context) (value T, detail string, err error)

// errSkipped is returned, beside a value, by a step that had nothing to do.
var errSkipped = errors.New("nothing to do")

// do does a step, unless one before it failed, and records it before and after.
func do[T any](ctx context.Context, r *run, name admission.Step, s step[T]) (value T) {
	if r.err != nil {
		return value
	}
	if ctx.Err() != nil && !r.committed {
		r.err = context.Cause(ctx)
		return value
	}
	r.report.begin()
	r.Log.Info("step started", "step", name)
	value, detail, err := s(ctx)
	outcome := done
	switch {
	case errors.Is(err, errSkipped):
		outcome = skipped
	case err != nil:
		if ctx.Err() != nil && !r.committed {
			err = context.Cause(ctx) // whatever broke, it broke because of the signal
		}
		r.report.end(failed, "")
		r.err = &StepError{name, err}
		return value
	}
	r.report.end(outcome, detail)
	r.Log.Info("step "+string(outcome), "step", name, "detail", detail)
	return value
}

// run is one run of the sequence.
type run struct {
	*Launcher
	report *report
	err    error // of the step that failed
	// unnamed is why the kernel's name of this boot isn't known.
	unnamed error
	// committed: what was done can't be undone, and what is wrong with it is no consequence of a
	// signal. Nor does one end the run.
	committed bool
	opened    *files.Dir // the shared directory; closed at the end, which gives up the lock
}
