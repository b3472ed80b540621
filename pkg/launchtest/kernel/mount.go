package kernel

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ReadOnly shows a directory at a further place, as a mount with :ro does. It needs root.
func ReadOnly(dir string) (place string, end func() error, err error) {
	return mounted(func(place string) error {
		if err := unix.Mount(dir, place, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return unix.Mount("", place, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	})
}

// Small mounts a memory of so many bytes, as /run is one. It needs root.
func Small(bytes int) (place string, end func() error, err error) {
	return mounted(func(place string) error {
		return unix.Mount("tmpfs", place, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", bytes))
	})
}

func mounted(mount func(place string) error) (string, func() error, error) {
	place, err := os.MkdirTemp("", "mount")
	if err != nil {
		return "", nil, err
	}
	if err := mount(place); err != nil {
		_ = unix.Unmount(place, unix.MNT_DETACH)
		return "", nil, fmt.Errorf("mounting: %w", err)
	}
	return place, func() error {
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
			return err
		}
		return os.Remove(place)
	}, nil
}
