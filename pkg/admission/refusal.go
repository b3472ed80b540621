package admission

import (
	"fmt"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

// Steps returns the steps in their order.
func Steps() []Step {
	return []Step{
		AtSettings, AtProbe, AtGate, AtConfig, AtPull, AtLoad, AtCreate, AtMeasure, AtStart, AtSupervise,
	}
}

// Passes reports whether a failure of a boot at a step may pass, so that a launcher which supervises
// waits and tries again: nobody is there to reboot a CVM because a registry was away for a minute.
// Once it has waited, somebody may be saving the user config. Whatever speaks of the measurement ends
// the boot, and so does what can't be asked or ended in its first steps: beside a workload that nobody
// measured there is no waiting.
func (s Settings) Passes(at Step, code exit.Code, waited bool) bool {
	late := at == AtPull || at == AtLoad || at == AtCreate
	return s.Supervised() && (late && code >= exit.Unavailable && code <= exit.Engine ||
		waited && at == AtConfig && code == exit.Config)
}

// Refusal is why a boot ends.
type Refusal struct {
	Code Code
	Exit exit.Code
	Err  error
	Hint []string
}

func (r *Refusal) Error() string       { return r.Err.Error() }
func (r *Refusal) Unwrap() error       { return r.Err }
func (r *Refusal) ExitCode() exit.Code { return r.Exit }

// Hints says what helps.
func (r *Refusal) Hints() []string { return r.Hint }

// typed makes a refusal of an error that says by its type how the boot ends and what helps.
func typed(code Code, err error) *Refusal {
	return &Refusal{code, exit.Of(err), err, exit.Hints(err)}
}

// NotOurs refuses an image event that no launcher of this boot can have made.
func NotOurs(digest digest.Digest) *Refusal {
	return &Refusal{MeasuredByOthers, exit.Measurement,
		fmt.Errorf("%s was measured in this boot, but not by a launcher", digest),
		[]string{"reboot the CVM: what measured it may have passed for that image"}}
}

// UnderWay refuses to emit where another emit may still be under way.
func UnderWay(digest digest.Digest) *Refusal {
	return &Refusal{MeasuredByOthers, exit.Measurement,
		fmt.Errorf("an earlier run of this boot was about to measure %s, and the log doesn't show it",
			digest),
		[]string{"reboot the CVM: if that is still under way, another emit would make two events, " +
			"which no verifier accepts"}}
}
