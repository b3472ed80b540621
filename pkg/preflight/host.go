package preflight

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
)

// maxSockets bounds the kernel's lists of sockets.
const maxSockets = 32 << 20

// checkPorts looks whether the workload's host ports are free: by what the engine publishes, and on
// the host itself by what listens.
func checkPorts(ctx context.Context, f *facts) outcome {
	if len(f.config.Ports) == 0 {
		return outcome{skipped: "none is mapped"}
	}
	published, err := f.published(ctx)
	if err != nil {
		return fail(EngineContradicts, err)
	}
	listening := map[uint16]bool{}
	if f.self.ID == "" { // in a container we see only its own sockets
		for _, name := range []string{"net/tcp", "net/tcp6"} {
			if data, err := files.ReadFile(filepath.Join(f.options.Proc, name), maxSockets); err == nil {
				readListeners(string(data), listening)
			}
		}
	}
	var found []Finding
	for _, p := range f.config.Ports {
		if p.Host < 1024 {
			found = append(found, note(PortPrivileged,
				fmt.Sprintf("host port %d is below 1024: a rootless engine can't open it", p.Host)))
		}
		by, isPublished := published[p.Host]
		switch {
		case isPublished && by == "":
		case isPublished:
			found = append(found, ending(PortTaken, exit.Workload, fmt.Errorf("host port %d is published by container %s", p.Host, by),
				"docker stop "+by, "or map another port in port_mappings of the user config"))
		case listening[p.Host] && f.engine == nil:
			found = append(found, warning(PortTaken, fmt.Sprintf("host port %d is in use; without the engine it isn't known by what", p.Host)))
		case listening[p.Host]:
			found = append(found, ending(PortTaken, exit.Workload, fmt.Errorf("host port %d is in use", p.Host),
				fmt.Sprintf("see what uses it: ss -ltnp 'sport = :%d'", p.Host), "or map another port in port_mappings of the user config"))
		}
	}
	return ok(fmt.Sprintf("%d mapped", len(f.config.Ports)), found...)
}

// published returns the host ports that the engine publishes, and for which container: for none,
// where that will be gone by the time the workload starts, as the workload's own are, which are
// replaced or taken over with their ports.
func (f *facts) published(ctx context.Context) (map[uint16]string, error) {
	ports := map[uint16]string{}
	if f.engine == nil {
		return ports, nil
	}
	published, err := f.engine.Published(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range published {
		ports[p.Port] = p.Container
		ended := slices.ContainsFunc(f.containers, func(c admission.Container) bool { return c.Name == p.Container && !c.Live() })
		ours := compose.OfWorkload(inspect.Container{Name: p.Container, Labels: p.Labels})
		if ours || f.next && ended {
			ports[p.Port] = ""
		}
	}
	if f.next {
		for _, c := range f.containers { // what the engine will start by itself may not run now
			for _, port := range c.HostPorts {
				if c.Live() && !compose.OfWorkload(c.Container) {
					ports[port] = c.Name
				}
			}
		}
	}
	return ports, nil
}

// readListeners reads the kernel's list of TCP sockets: "0: 0100007F:0035 00000000:0000 0A …",
// where 0A is listening.
func readListeners(table string, into map[uint16]bool) {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != "0A" {
			continue
		}
		_, port, _ := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(port, 16, 16); err == nil {
			into[uint16(n)] = true
		}
	}
}

// maxSkew is how far two clocks may be apart before it is worth a word.
const maxSkew = 5 * time.Minute

// checkClock compares the clock with the registry's, and with the time at which this program can't have run.
func checkClock(_ context.Context, f *facts) outcome {
	now := f.now().UTC()
	const fix = "set the clock; certificates and tokens depend on it"
	if earliest := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC); now.Before(earliest) {
		return ok("", warning(ClockWrong, fmt.Sprintf("it says %s, which is in the past", now.Format(time.RFC3339)), fix))
	}
	if f.notice.Date.IsZero() {
		return ok("there is no other clock to compare with")
	}
	skew := now.Sub(f.notice.Date).Round(time.Second)
	if skew.Abs() > maxSkew {
		return ok("", warning(ClockWrong, fmt.Sprintf("it says %s, the registry's says %s", now.Format(time.RFC3339), f.notice.Date.UTC().Format(time.RFC3339)), fix))
	}
	return ok(fmt.Sprintf("within %s of the registry's", maxSkew))
}
