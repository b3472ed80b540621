package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/state"
)

// checkContainers looks at who could measure in our name, or did: a workload that the engine
// restarts by itself, and whoever holds the agent's socket.
func checkContainers(ctx context.Context, f *facts) outcome {
	containers, err := state.Containers(ctx, f.engine, f.options.Settings, f.self)
	if err != nil {
		return fail(EngineContradicts, err)
	}
	var found []Finding
	f.containers = containers
	if f.next {
		f.containers = admission.NextBoot(containers)
		for _, c := range f.containers {
			if c.Live() && !compose.OfWorkload(c.Container) {
				found = append(found, note(StartsByItself, fmt.Sprintf("the engine will start container %s (%s) by itself", c.Name, c.ShortID())))
			}
		}
	}
	before := len(admission.Decide(f.measuring()).Refusals) // of which the checks before this one have told
	verdict := admission.Decide(f.around())
	for _, r := range verdict.Refusals[before:] {
		found = append(found, refused("", r))
	}
	for _, c := range verdict.Excused {
		found = append(found, warning(admission.WorkloadRestarts, fmt.Sprintf("the engine may restart container %s by itself (%s); only the record of this boot says that the measurement is the launcher's",
			c.Name, c.RestartPolicy)))
	}
	for _, c := range verdict.Old {
		found = append(found, warning(admission.WorkloadStopped, f.oldText(c)))
	}
	return ok(fmt.Sprintf("%d in the engine", len(f.containers)), found...)
}

func (f *facts) oldText(c admission.Container) string {
	if f.next {
		return fmt.Sprintf("the engine will start container %s (%s) by itself (%s), and it would be stopped then: nobody has measured it in that boot", c.Name, c.ShortID(), c.RestartPolicy)
	}
	return fmt.Sprintf("container %s (%s) is %s and would be stopped: nobody has measured it in this boot", c.Name, c.ShortID(), c.Status)
}
