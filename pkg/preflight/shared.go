package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/state"
)

// checkSharedDir opens the shared directory.
func checkSharedDir(_ context.Context, f *facts) outcome {
	if f.options.SharedDir == "" {
		return outcome{unknown: "its place isn't known"}
	}
	dir, err := state.OpenShared(f.options.Settings)
	if err != nil {
		return refuse("", err)
	}
	f.shared, f.own = dir, state.In(dir)
	return ok(f.options.SharedDir)
}

// checkSharedVolume looks whether it is what the workload will see.
func checkSharedVolume(ctx context.Context, f *facts) outcome {
	if err := state.IsVolume(ctx, f.engine, f.self, f.shared); err != nil {
		return refuse(EngineContradicts, err)
	}
	return ok("the workload will see this very directory")
}

// checkOwnDir looks whether the launcher's own directory is there, or could be made.
func checkOwnDir(_ context.Context, f *facts) outcome {
	if err := f.own.CanMake(); err != nil {
		return ok("", warning(admission.OwnDirBlocked, fmt.Sprintf("our own directory can't be used: %v", err),
			"mount the shared volume writable, with room in it, and remove what stands in the directory's place; nothing of value is kept there"))
	}
	return ok("is there, or could be made")
}

// checkRecord looks whether the record could be written without which nothing is measured.
func checkRecord(_ context.Context, f *facts) outcome {
	switch {
	case !f.options.TEE():
		return outcome{skipped: "nothing is measured outside a CVM"}
	case f.measuring().AnImage():
		return outcome{skipped: "an image is measured already"}
	}
	if err := f.own.CanRecord(); err != nil {
		return refuse("", err)
	}
	return ok("could be written")
}
