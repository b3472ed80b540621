package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
)

// workload is the container that a boot would create.
func (f *facts) workload() compose.Workload {
	w := compose.Workload{Reference: f.config.Image.String(), Digest: f.decision.Digest, Supervised: f.settings.Supervised}
	for _, p := range f.config.Ports {
		w.Ports = append(w.Ports, compose.Port(p))
	}
	if f.settings.tee() {
		w.Agent, w.Boot = f.self.HostPath(f.settings.AgentSocket), f.bootID()
	}
	return w
}

// checkWorkload says which containers would be replaced, and whether the workload runs already as it should.
func checkWorkload(_ context.Context, f *facts) outcome {
	if f.elseMeasured() {
		return outcome{unknown: "another image is measured"}
	}
	v := f.verified()
	if f.decision == nil || v == nil {
		return outcome{unknown: "which image is meant isn't known"}
	}
	base := v.ConfigFile().Config
	var found []Finding
	detail := "there is none yet"
	for _, c := range f.containers {
		if !compose.OfWorkload(c) {
			continue
		}
		same := !f.id.IsZero() && c.Labels[compose.ProjectLabel] == compose.Name && f.workload().Check(c, f.id, base) == nil
		if same && (!f.settings.tee() || f.present && f.ofThisBoot(c)) {
			f.running = f.present && c.Status == "running"
			detail = fmt.Sprintf("%s (%s) is %s and stays", c.Name, c.ShortID(), c.Status)
			continue
		}
		found = append(found, replaced(c, f.settings.tee()))
		detail = ""
	}
	return ok(detail, found...)
}

func replaced(c inspect.Container, tee bool) Finding {
	text := fmt.Sprintf("container %s (%s), which is %s, would be replaced; its volumes stay", c.Name, c.ShortID(), c.Status)
	if c.Labels[compose.ProjectLabel] != compose.Name {
		return warning(WorkloadReplaced, text+"; it isn't of Compose project "+compose.Name, "rename it if it is something else: docker rename "+c.ShortID()+" <name>")
	}
	if tee {
		text += ", as at every boot"
	}
	return note(WorkloadReplaced, text)
}
