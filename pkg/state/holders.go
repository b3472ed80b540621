package state

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/docker/inspect"
)

// Holders returns the containers with what each could measure by in our name.
func Holders(
	ctx context.Context, e *inspect.Engine, s admission.Settings, self inspect.Container,
	containers []admission.Container,
) ([]admission.Container, error) {
	all := slices.Clone(containers)
	for i, c := range all {
		var err error
		if all[i].Holds, err = holds(ctx, e, s, self, c.Container); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// device can extend registers, too.
const device = "/dev/tdx_guest"

func holds(
	ctx context.Context, e *inspect.Engine, s admission.Settings, self, c inspect.Container,
) (string, error) {
	source, err := e.Reaches(ctx, c, self.HostPath(s.AgentSocket))
	if err != nil || source != "" {
		return through("the guest agent's socket", source), err
	}
	if s.Native == (admission.Settings{}.Native) {
		return "", nil
	}
	if by := c.Escapes(); by != "" {
		return "the kernel's register, by " + by, nil
	}
	for _, path := range c.Devices() {
		// The names below /dev/char are links to all others.
		if path := filepath.Clean(path); path == device || path == "/dev" || strings.HasPrefix(path+"/", "/dev/char/") {
			return "the kernel's register, by the device " + path, nil
		}
	}
	for _, place := range []string{ // by every name that the kernel has for it, other processes' files among them
		self.HostPath(s.Native.Registers), device,
		"/sys/devices/virtual/misc/tdx_guest", "/sys/class/misc/tdx_guest", "/sys/dev/char", "/proc",
	} {
		if source, err = e.ReachesInto(ctx, c, place); err != nil || source != "" {
			return through("the kernel's register", source), err
		}
	}
	source, err = e.ReachesInto(ctx, c, self.HostPath(s.Native.Runtime))
	return through("dstack's event log", source), err
}

func through(what, source string) string {
	if source == "" {
		return ""
	}
	return what + " through its mount of " + source
}
