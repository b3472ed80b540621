package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/state"
)

// checkContainers asks the engine for its containers, and sees them as they are once the impostors
// among them were ended.
func checkContainers(ctx context.Context, f *facts) outcome {
	containers, err := state.Containers(ctx, f.engine, f.options.Settings, f.self)
	if err != nil {
		return fail(EngineContradicts, err)
	}
	var found []Finding
	if f.next {
		containers = nextBoot(containers)
		for _, c := range containers {
			if c.Live() && !compose.OfWorkload(c.Container) {
				found = append(found, note(StartsByItself, fmt.Sprintf("the engine will start container %s (%s) by itself", c.Name, c.ShortID())))
			}
		}
	}
	known := f.boots()
	known.Containers = containers
	for _, c := range known.Impostors() {
		found = append(found, warning(admission.WorkloadStopped, f.oldText(c)))
	}
	f.containers = known.Ended()
	return ok(fmt.Sprintf("%d in the engine", len(f.containers)), found...)
}

// checkImpostor looks whether an image event may be the doing of a container that ran as the workload unmeasured.
func checkImpostor(_ context.Context, f *facts) outcome {
	if f.next || f.events == nil {
		return outcome{skipped: "nothing is measured yet when a boot begins"}
	}
	known := f.boots()
	known.Log, known.Containers = &f.events.Log, f.containers
	if !known.AnImage() {
		return ok("no image is measured yet")
	}
	if err := admission.Decide(known).Err(); err != nil {
		return refuse("", err)
	}
	return ok("none ran")
}

// checkHolders looks at who else could measure in our name, or did: a workload that the engine restarts by itself, and whoever holds the
// agent's socket.
func checkHolders(_ context.Context, f *facts) outcome {
	before := len(admission.Decide(f.measuring()).Refusals) // of which the checks before this one have told
	var found []Finding
	verdict := admission.Decide(f.around())
	for _, r := range verdict.Refusals[before:] {
		if r.Code != admission.ImpostorEnded { // told as well
			found = append(found, refused("", r))
		}
	}
	for _, c := range verdict.Excused {
		found = append(found, warning(admission.WorkloadRestarts, fmt.Sprintf("the engine may restart container %s by itself (%s); only the record of this boot says that the measurement is the launcher's",
			c.Name, c.RestartPolicy)))
	}
	for _, c := range verdict.Old {
		found = append(found, warning(admission.WorkloadStopped, f.oldText(c)))
	}
	if len(found) > 0 {
		return ok("", found...)
	}
	return ok("nobody else could measure")
}

func (f *facts) oldText(c admission.Container) string {
	if f.next {
		return fmt.Sprintf("the engine will start container %s (%s) by itself (%s), and it would be stopped then: nobody has measured it in that boot", c.Name, c.ShortID(), c.RestartPolicy)
	}
	return fmt.Sprintf("container %s (%s) is %s (%s) and would be stopped: nobody has measured it in this boot", c.Name, c.ShortID(), c.Status, c.RestartPolicy)
}
