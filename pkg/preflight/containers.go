package preflight

import (
	"context"
	"fmt"
	"slices"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
)

// checkContainers looks at who could measure in our name, or did: a workload that the engine restarts by itself, and whoever holds the
// agent's socket. Where an image is measured already and it is the wanted one, the boot leaves alone what runs.
func checkContainers(ctx context.Context, f *facts) outcome {
	all, err := f.engine.Containers(ctx)
	if err != nil {
		return fail(EngineContradicts, err)
	}
	f.containers = slices.DeleteFunc(all, func(c inspect.Container) bool { return c.ID == f.self.ID })
	if !f.settings.tee() || f.elseMeasured() { // then a boot leaves alone what runs
		return ok(fmt.Sprintf("%d in the engine", len(f.containers)))
	}
	var found []Finding
	for _, c := range f.containers {
		switch {
		case compose.OfWorkload(c):
			found = append(found, f.checkOld(c)...)
		case c.Live() && !f.present && !compose.SameProject(c, f.self):
			source, err := f.engine.Reaches(ctx, c, f.self.HostPath(f.settings.AgentSocket))
			if err != nil {
				return fail(EngineContradicts, err)
			}
			if source != "" {
				found = append(found, ending(SocketHeld, exit.Measurement,
					fmt.Errorf("container %s (%s) holds the guest agent's socket through its mount of %s", c.Name, c.ShortID(), source),
					"stop it if it is yours: docker stop "+c.ShortID(), "otherwise reboot the CVM: whoever holds the socket can measure in the launcher's name"))
			}
		}
	}
	return ok(fmt.Sprintf("%d in the engine", len(f.containers)), found...)
}

// elseMeasured tells whether an image is measured that isn't the wanted one, as far as that is known. A boot ends there.
func (f *facts) elseMeasured() bool {
	return f.events != nil && len(f.events.Log.Images()) > 0 && !f.present
}

// checkOld looks at a container of the workload, of whichever launcher and boot.
func (f *facts) checkOld(c inspect.Container) []Finding {
	switch {
	case f.present && c.Live() && !f.ofThisBoot(c):
		return []Finding{ending(WorkloadRestarts, exit.Measurement,
			fmt.Errorf("an image is measured already, but container %s (%s) runs that no launcher of this boot created, and may have done that", c.Name, c.ShortID()),
			"docker update --restart=no "+c.ShortID(), "then reboot the CVM")}
	case f.present && c.RestartPolicy != "no":
		if record, known := f.own.Boot(f.bootID()); known && f.ofThisBoot(c) && record.Measured(f.decision.Digest) && !f.settings.Supervised {
			return []Finding{warning(WorkloadRestarts, fmt.Sprintf("the engine may restart container %s by itself (%s); only the record of this boot says that the measurement is the launcher's",
				c.Name, c.RestartPolicy))}
		}
		return []Finding{ending(WorkloadRestarts, exit.Measurement,
			fmt.Errorf("an image is measured already, but container %s (%s) restarts by itself (%s) and may have done that", c.Name, c.ShortID(), c.RestartPolicy),
			"docker update --restart=no "+c.ShortID(), "then reboot the CVM")}
	case !f.present && c.Live():
		return []Finding{warning(WorkloadStopped, fmt.Sprintf("container %s (%s) is %s and would be stopped: nobody has measured it in this boot", c.Name, c.ShortID(), c.Status))}
	}
	return nil
}
