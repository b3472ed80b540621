package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
)

const (
	approvedList = "image-digest.bin" // in the shared directory
	ownDir       = "launcher"         // in the shared directory; the launcher's own
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
	own, err := dir.Open(ownDir)
	switch {
	case err == nil:
		own.Close()
	case !errors.Is(err, fs.ErrNotExist):
		return outcome{findings: []Finding{ending(OwnDirBlocked, exit.Config, fmt.Errorf("our own directory: %w", err),
			"remove what stands in its place; nothing of value is kept there")}}
	}
	return ok(f.settings.SharedDir)
}

// readOwn reads a file of our own directory, in which the workload can write too.
func (f *facts) readOwn(name string, limit int64) ([]byte, error) {
	own, err := f.shared.Open(ownDir)
	if err != nil {
		return nil, err
	}
	defer own.Close()
	return own.Read(name, limit)
}
