package preflight

import (
	"context"
	"fmt"
	"strings"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/state"
)

// checkContainers asks the engine for its containers, and sees them as they are once the impostors
// among them were ended.
func checkContainers(ctx context.Context, f *facts) outcome {
	containers, err := state.Containers(ctx, f.engine, f.self.ID)
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
		found = append(found, warning(admission.WorkloadStopped, f.wouldStop(c)))
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

// checkSockets asks which containers reach the agent's socket.
func checkSockets(ctx context.Context, f *facts) outcome {
	switch {
	case f.options.Platform == "":
		return outcome{unknown: "the platform isn't known"}
	case !f.options.TEE():
		return outcome{skipped: "nothing is measured outside a CVM"}
	}
	reaching, err := state.Holders(ctx, f.engine, f.options.Settings, f.self, f.containers)
	if err != nil {
		return fail(EngineContradicts, err)
	}
	f.reaching = reaching
	return ok("what every container mounts is known")
}

// checkHolders looks at who else could measure in our name, or did: a workload that the engine restarts by itself, and whoever holds the
// agent's socket.
func checkHolders(_ context.Context, f *facts) outcome {
	before := len(admission.Decide(f.measuring()).Refusals) // of which the checks before this one have told
	var found []Finding
	known := f.around()
	known.Containers = f.reaching
	verdict := admission.Decide(known)
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
		found = append(found, warning(admission.WorkloadStopped, f.wouldStop(c)))
	}
	if len(found) > 0 {
		return ok("", found...)
	}
	return ok("nobody else could measure")
}

func (f *facts) wouldStop(c admission.Container) string {
	if f.next {
		return fmt.Sprintf("the engine will start container %s (%s) by itself (%s), and it would be stopped then: it isn't measured in that boot", c.Name, c.ShortID(), c.RestartPolicy)
	}
	return fmt.Sprintf("container %s (%s) is %s (%s) and would be stopped: it isn't measured in this boot", c.Name, c.ShortID(), c.Status, c.RestartPolicy)
}

// nextBoot returns the containers as the next boot finds them, if nothing else happens: only those
// run that the engine starts by itself.
func nextBoot(now []admission.Container) (then []admission.Container) {
	for _, c := range now {
		if startsByItself(c) {
			c.Status = "running"
		} else if c.Live() {
			c.Status = "exited"
		}
		then = append(then, c)
	}
	return then
}

// startsByItself reports whether an engine that comes up after a power loss starts the container.
// Docker keeps to itself whether somebody stopped it by hand; where it matters, one that doesn't
// run was.
func startsByItself(c admission.Container) bool {
	if c.StartedAt.IsZero() {
		return false
	}
	switch c.RestartPolicy {
	case "always":
		return true
	case "unless-stopped":
		return c.Live()
	case "on-failure":
		return c.Live() || c.ExitCode != 0
	}
	return false
}

// workload is the container that a boot would create.
func (f *facts) workload() admission.Workload {
	w := compose.Workload{Reference: f.config.Image.String(), Digest: f.decision.Digest, Supervised: f.options.Supervised()}
	for _, p := range f.config.Ports {
		w.Ports = append(w.Ports, compose.Port(p))
	}
	if f.options.TEE() {
		w.Agent, w.Boot = f.self.HostPath(f.options.AgentSocket), f.boot
	}
	return admission.Workload{Workload: w, ID: f.id, Base: f.verified().ConfigFile().Config, Runtime: f.info.Runtime}
}

// checkWorkload says which containers would be replaced, and whether one stays.
func checkWorkload(_ context.Context, f *facts) outcome {
	known := f.around()
	if known.AnImage() && !f.present {
		return outcome{unknown: "another image is measured"}
	}
	if f.decision == nil || f.verified() == nil {
		return outcome{unknown: "it isn't known which image is wanted"}
	}
	want := f.workload()
	stays, replaced := known.Sort(want, f.present)
	f.stays = stays
	var found []Finding
	for _, c := range replaced {
		found = append(found, f.replaced(c, known.Stays(c, want, f.present)))
	}
	switch {
	case stays != nil:
		return ok(fmt.Sprintf("%s (%s) is %s and stays", stays.Name, stays.ShortID(), stays.Status), found...)
	case len(replaced) == 0:
		return ok("there is none yet")
	}
	return ok("", found...)
}

// checkState looks whether the container that stays could be started. Where one runs that can't stay,
// another is, and a boot looks once more at who holds the agent's socket.
func checkState(_ context.Context, f *facts) outcome {
	if f.present && !f.running() {
		known := f.around()
		known.Containers = f.reaching
		if err := known.Holders().Err(); err != nil && admission.Decide(known).Err() == nil {
			return refuse("", err)
		}
	}
	if f.stays == nil {
		return outcome{skipped: "a new container would be created"}
	}
	if err := admission.Startable(f.stays.Container); err != nil {
		return refuse("", err)
	}
	return ok(f.stays.Status)
}

func (f *facts) replaced(c admission.Container, why error) Finding {
	text := fmt.Sprintf("container %s (%s), which is %s, would be replaced; its volumes stay", c.Name, c.ShortID(), c.Status)
	if c.Labels[compose.ProjectLabel] != compose.Name && !strings.HasPrefix(c.Name, compose.ImpostorPrefix) {
		return warning(WorkloadReplaced, text+"; it isn't of Compose project "+compose.Name, "rename it if it is something else: docker rename "+c.ShortID()+" <name>")
	}
	text += ": " + why.Error()
	return note(WorkloadReplaced, text)
}
