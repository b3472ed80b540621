package files

import (
	"os"

	"golang.org/x/sys/unix"
)

// CanWrite returns why Write would fail, as far as that can be seen without writing: the directory
// can't be written to, something stands in the way that can't be replaced, or so many bytes have no
// room.
func (d *Dir) CanWrite(name string, size int64) error {
	for _, n := range []string{name, temporary(name)} {
		if info, err := d.Stat(n); err == nil && info.IsDir() {
			if err := d.CanSetAside(n); err != nil {
				return err
			}
		}
	}
	return d.CanAdd(size)
}

// CanAdd returns why nothing of so many bytes could be made in the directory, as far as that can be
// seen.
func (d *Dir) CanAdd(size int64) error {
	if err := unix.Faccessat(d.fd(), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return d.wrap("write in", ".", err)
	}
	var disk unix.Statfs_t
	if err := unix.Fstatfs(d.fd(), &disk); err != nil {
		return d.wrap("statfs", ".", err)
	}
	free := disk.Bavail
	if os.Geteuid() == 0 {
		free = disk.Bfree // what is kept back is for us
	}
	block := int64(disk.Bsize)
	blocks := uint64((size + block - 1) / block)
	// A file system without a limit says that it has none of what it limits not.
	if disk.Blocks > 0 && free < blocks || disk.Files > 0 && disk.Ffree == 0 {
		return d.wrap("write in", ".", unix.ENOSPC)
	}
	return nil
}
