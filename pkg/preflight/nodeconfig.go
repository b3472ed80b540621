package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/state"
)

// checkNodeConfig makes the node config, throws it away, and looks whether it could be written.
func checkNodeConfig(_ context.Context, f *facts) outcome {
	if f.options.Platform == "" {
		return outcome{unknown: "the platform isn't known"}
	}
	text, err := f.config.NodeConfig(f.options.Platform, f.decision.Digest)
	if err != nil {
		return fail(admission.NodeConfigFails, err)
	}
	if err := state.CanWriteNodeConfig(f.shared, len(text)); err != nil {
		return refuse("", err)
	}
	return ok(fmt.Sprintf("%d bytes, could be written to %s", len(text), f.shared.Path()))
}
