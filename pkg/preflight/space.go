package preflight

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/docker/inspect"
)

// checkSpace compares the room on the engine's disk with what the download and the unpacked layers need at the very least.
func checkSpace(_ context.Context, f *facts) outcome {
	if !f.id.IsZero() {
		return outcome{skipped: "nothing is to be loaded"}
	}
	place := f.dataRoot()
	if place == "" {
		return outcome{unknown: "the engine's disk can't be seen from here"}
	}
	free, err := f.free(place)
	if err != nil {
		return outcome{unknown: "the engine's disk can't be seen from here"}
	}
	var short *inspect.SpaceError
	if err := inspect.CheckSpace(f.info, *f.left, free); errors.As(err, &short) {
		finding := failure(SpaceShort, err)
		finding.Found += fmt.Sprintf("; %s are missing", Size(short.Need-short.Free))
		return outcome{findings: []Finding{finding}}
	}
	return ok(fmt.Sprintf("%s free at %s", Size(free), f.info.Root))
}

// dataRoot returns a path on the engine's disk. A plain binary sees the data root itself; in a container the shared volume mostly
// lies under it.
func (f *facts) dataRoot() string {
	if f.self.ID == "" {
		return f.info.Root
	}
	for _, m := range f.self.Mounts {
		if m.Destination == f.settings.SharedDir && strings.HasPrefix(m.Source, f.info.Root+"/") {
			return m.Destination
		}
	}
	return ""
}

func (f *facts) free(path string) (int64, error) {
	if f.settings.Free != nil {
		return f.settings.Free(path)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, err
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}
