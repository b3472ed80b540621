package launch

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/docker/inspect"
)

// space returns the question whether the engine's data root has room for an image, or nil where that can't be seen. As a plain
// binary the launcher sees the data root itself; in a container it sees the shared volume, which usually lies under it. A containerd
// store may keep its images anywhere.
func (r *run) space(ctx context.Context) func(inspect.Info, int64) error {
	self, err := r.self(ctx)
	if err != nil {
		return nil
	}
	return func(info inspect.Info, missing int64) error {
		if info.Store != inspect.Classic {
			return nil
		}
		place := info.Root
		if self.ID != "" {
			place = ""
			for _, m := range self.Mounts {
				if m.Destination == r.Settings.SharedDir && strings.HasPrefix(m.Source, info.Root+"/") {
					place = m.Destination
				}
			}
		}
		var fs unix.Statfs_t
		if place == "" || unix.Statfs(place, &fs) != nil {
			return nil // unknown is never a refusal
		}
		return inspect.CheckSpace(info, missing, int64(fs.Bavail)*fs.Bsize)
	}
}
