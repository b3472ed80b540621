package preflight

import (
	"context"
	"fmt"
	"strings"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
)

// workload is the container that a boot would create.
func (f *facts) workload() admission.Workload {
	w := compose.Workload{Reference: f.config.Image.String(), Digest: f.decision.Digest, Supervised: f.options.Supervised()}
	for _, p := range f.config.Ports {
		w.Ports = append(w.Ports, compose.Port(p))
	}
	if f.options.TEE() {
		w.Agent, w.Boot = f.self.HostPath(f.options.AgentSocket), f.boot
	}
	return admission.Workload{Workload: w, ID: f.id, Base: f.verified().ConfigFile().Config}
}

// checkWorkload says which containers would be replaced, and whether one stays.
func checkWorkload(_ context.Context, f *facts) outcome {
	known := f.around()
	if known.AnImage() && !f.present {
		return outcome{unknown: "another image is measured"}
	}
	if f.decision == nil || f.verified() == nil {
		return outcome{unknown: "which image is meant isn't known"}
	}
	stays, replaced := known.Sort(f.workload(), f.present)
	f.stays = stays
	var found []Finding
	for _, c := range replaced {
		found = append(found, f.replaced(c))
	}
	switch {
	case stays != nil:
		return ok(fmt.Sprintf("%s (%s) is %s and stays", stays.Name, stays.ShortID(), stays.Status), found...)
	case len(replaced) == 0:
		return ok("there is none yet")
	}
	return ok("", found...)
}

// checkState looks whether the container that stays could be started.
func checkState(_ context.Context, f *facts) outcome {
	if f.stays == nil {
		return outcome{skipped: "the container would be a new one"}
	}
	if err := admission.Startable(f.stays.Container); err != nil {
		return refuse("", err)
	}
	return ok(f.stays.Status)
}

func (f *facts) replaced(c admission.Container) Finding {
	text := fmt.Sprintf("container %s (%s), which is %s, would be replaced; its volumes stay", c.Name, c.ShortID(), c.Status)
	if c.Labels[compose.ProjectLabel] != compose.Name && !strings.HasPrefix(c.Name, compose.ImpostorPrefix) {
		return warning(WorkloadReplaced, text+"; it isn't of Compose project "+compose.Name, "rename it if it is something else: docker rename "+c.ShortID()+" <name>")
	}
	if f.options.TEE() {
		text += ", as at every boot"
	}
	return note(WorkloadReplaced, text)
}
