package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/state"
)

// checkSpace compares the room on the engine's disk with what the download and the unpacked layers
// need at the very least.
func checkSpace(_ context.Context, f *facts) outcome {
	if !f.id.IsZero() {
		return outcome{skipped: "nothing is to be loaded"}
	}
	free, known := state.Free(f.info, f.self, f.options.Settings, f.options.Free)
	if !known {
		return outcome{unknown: "the engine's disk can't be seen from here"}
	}
	if err := admission.Room(f.info, *f.left, free); err != nil {
		return refuse("", err)
	}
	return ok(fmt.Sprintf("%s free at %s", Size(free), f.info.Root))
}
