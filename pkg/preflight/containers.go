package preflight

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
)

func ofWorkload(c inspect.Container) bool {
	return c.Name == compose.Name || c.Labels[compose.ProjectLabel] == compose.Name
}

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
		case ofWorkload(c):
			found = append(found, f.checkOld(c)...)
		case c.Live() && !f.present && !sameProject(c, f.self):
			source, err := f.holds(ctx, c)
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
		if record, known := f.bootRecord(); known && f.ofThisBoot(c) && record.Done && record.Digest == f.decision.Digest && !f.settings.Supervised {
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

func sameProject(a, b inspect.Container) bool {
	project := b.Labels[compose.ProjectLabel]
	return project != "" && a.Labels[compose.ProjectLabel] == project
}

// holds returns the mount through which a container reaches the agent's socket, or nothing.
func (f *facts) holds(ctx context.Context, c inspect.Container) (string, error) {
	sockets := spellings(f.self.HostPath(f.settings.AgentSocket))
	for _, m := range c.Mounts {
		sources := spellings(m.Source)
		if m.Type == "volume" {
			// The local driver mounts any directory of the host under a volume's name.
			v, err := f.engine.Volume(ctx, m.Name)
			if err != nil && !inspect.NotFound(err) {
				return "", err
			}
			sources = append(sources, spellings(v.Device)...)
		}
		for _, source := range sources {
			for _, socket := range sockets {
				if source == "/" || socket == source || strings.HasPrefix(socket, source+"/") {
					return source, nil
				}
			}
		}
	}
	return "", nil
}

// spellings returns the ways to name a path of the host: /var/run is a link to /run, or the other way round, and other links can be
// followed where we see the host's files.
func spellings(path string) []string {
	if !filepath.IsAbs(path) {
		return nil
	}
	path = filepath.Clean(path)
	ways := []string{path}
	if followed, err := filepath.EvalSymlinks(path); err == nil {
		ways = append(ways, followed)
	}
	for _, way := range ways {
		if rest, ok := strings.CutPrefix(way+"/", "/var/run/"); ok {
			ways = append(ways, filepath.Clean("/run/"+rest))
		} else if rest, ok := strings.CutPrefix(way+"/", "/run/"); ok {
			ways = append(ways, filepath.Clean("/var/run/"+rest))
		}
	}
	return ways
}
