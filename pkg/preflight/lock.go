package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/state"
)

// checkLock looks, without taking it, who holds the shared directory's lock. Where it is a
// launcher, which looks after the workload, what is asked about is the next boot, unless somebody
// says otherwise.
func checkLock(ctx context.Context, f *facts) outcome {
	lock, err := state.LockHolder(ctx, f.engine, f.shared, f.options.Proc)
	switch {
	case err != nil:
		return outcome{unknown: fmt.Sprintf("who holds it can't be seen: %v", err)}
	case lock.PID == "":
		return ok("free")
	}
	if lock.Container != nil && f.boots().Impostor(*lock.Container) {
		return ok("held by container " + lock.Container.Name + ", which would be ended")
	}
	if f.options.For == ForAuto {
		f.next = lock.Launcher()
	}
	holder := "process " + lock.PID
	if lock.Container != nil {
		holder += " of container " + lock.Container.Name
	}
	if f.next {
		return ok("held", note(admission.AnotherLauncher, holder+" holds the lock: until it ends, another run ends with exit code 10"))
	}
	return refuse("", state.Locked(fmt.Errorf("%s holds the lock of %s", holder, f.shared.Path())))
}
