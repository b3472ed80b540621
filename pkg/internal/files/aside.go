package files

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// aside returns the one name under which what stood in the way of a file is kept: it may be
// somebody's, and it must not be there at every boot.
func aside(name string) string { return name + ".aside" }

// setAside makes way for name. A file that was set aside before gives way to the next one; a
// directory, which may hold much, doesn't, and then it is an error, which is fs.ErrExist.
func (d *Dir) setAside(name string) error {
	err := d.CanSetAside(name)
	if err == nil {
		err = unix.Renameat(d.fd(), name, d.fd(), aside(name))
	}
	if err == nil && d.same(name, aside(name)) {
		// Names of one file, of which a rename changes neither. It is kept under the other one.
		err = unix.Unlinkat(d.fd(), name, 0)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.wrap("set aside", name, err)
	}
	return nil
}

// same reports whether both are names of one file.
func (d *Dir) same(a, b string) bool {
	one, err := d.Stat(a)
	other, otherErr := d.Stat(b)
	return err == nil && otherErr == nil && os.SameFile(one, other)
}

// CanSetAside returns why what stands at name couldn't be set aside, as far as that can be seen.
func (d *Dir) CanSetAside(name string) error {
	before, err := d.Stat(aside(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	now, nowErr := d.Stat(name)
	if err != nil || nowErr != nil || before.IsDir() || now.IsDir() {
		return d.wrap("set aside", name, unix.EEXIST)
	}
	return nil
}
