package preflight

import "tee-launcher/pkg/admission"

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
