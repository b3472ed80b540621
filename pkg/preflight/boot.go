package preflight

import (
	"context"

	"tee-launcher/pkg/state"
)

// checkBoot asks the kernel which boot this is: by that a boot knows what belongs to it.
func checkBoot(_ context.Context, f *facts) outcome {
	id, err := state.BootID(f.options.Proc)
	switch {
	case err == nil:
		f.boot = id
		return ok("its name is known")
	case !f.options.TEE():
		return outcome{unknown: "the kernel doesn't say which it is, and outside a CVM nothing depends on it"}
	}
	return refuse("", err)
}
