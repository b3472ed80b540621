package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/state"
)

// checkSharedDir opens the shared directory, and looks whether what stands in the place of our own directory is one.
func checkSharedDir(_ context.Context, f *facts) outcome {
	if f.settings.SharedDir == "" {
		return outcome{unknown: "its place isn't known"}
	}
	dir, err := files.OpenDir(f.settings.SharedDir)
	if err != nil {
		return outcome{findings: []Finding{ending(SharedMissing, exit.Config, fmt.Errorf("shared directory: %w", err),
			"mount the shared volume there, or name its place with --shared-dir")}}
	}
	f.shared = dir
	f.own = state.In(dir)
	if err := f.own.Check(); err != nil {
		return outcome{findings: []Finding{ending(OwnDirBlocked, exit.Config, fmt.Errorf("our own directory: %w", err),
			"remove what stands in its place; nothing of value is kept there")}}
	}
	return ok(f.settings.SharedDir)
}
