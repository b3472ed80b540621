// Package files reads and writes small files in places that others can write to as well.
//
// It guarantees that below an opened Dir no link is followed, nothing but a regular file is read,
// no read is larger than its bound, and that a written file is there whole or not at all, even
// across a power cut. It does not guarantee that what was written stays: whoever shares the
// directory can replace it.
package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTooLarge is returned for a file over the reader's bound.
var ErrTooLarge = errors.New("it is too large")

// ErrNotRegular is returned where a regular file or a directory was expected and something else
// stands.
var ErrNotRegular = errors.New("something else is in its place")

// ErrLocked is returned by Lock while another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// Dir is an open directory. Names given to its methods are single path elements.
type Dir struct {
	f      *os.File
	locked bool
}

// OpenDir opens the directory at path; path itself is trusted and may hold links.
func OpenDir(path string) (*Dir, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{f: f}, nil
}

// Path returns the name the directory was opened by, for messages.
func (d *Dir) Path() string { return d.f.Name() }

// Is reports whether path, on this machine, leads to this very directory.
func (d *Dir) Is(path string) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	here, err := d.f.Stat()
	return err == nil && os.SameFile(here, there)
}

// Mount returns the kernel's number of the mount that the directory lies on, and the directory's path,
// both in this process's view, without any link.
func (d *Dir) Mount() (id uint64, path string, err error) {
	// Not statx, which old kernels and seccomp profiles refuse.
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", d.fd()))
	if err != nil {
		return 0, "", err
	}
	_, rest, _ := strings.Cut(string(info), "mnt_id:")
	number, _, _ := strings.Cut(rest, "\n")
	if id, err = strconv.ParseUint(strings.TrimSpace(number), 10, 64); err != nil {
		return 0, "", d.wrap("fdinfo", ".", err)
	}
	path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", d.fd()))
	return id, path, err
}

// Close closes the directory and gives up a lock held through it.
func (d *Dir) Close() error {
	if !d.locked {
		return d.f.Close()
	}
	// Said outright, because closing unlocks only with the last copy of the descriptor, and a child
	// that is being started has one until its exec.
	d.locked = false
	err := unix.Flock(d.fd(), unix.LOCK_UN)
	if err != nil {
		err = d.wrap("unlock", ".", err)
	}
	return errors.Join(err, d.f.Close())
}

// Sub opens the directory name below d, made with mode 0755 if it is missing. Whatever else stands
// there, even a link to a directory, is set aside.
func (d *Dir) Sub(name string) (*Dir, error) {
	if err := single(name); err != nil {
		return nil, err
	}
	for cleared := false; ; cleared = true {
		if err := unix.Mkdirat(d.fd(), name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, d.wrap("mkdir", name, err)
		}
		dir, err := d.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
		if cleared || !errors.Is(err, ErrNotRegular) {
			return dir, err
		}
		if err := d.setAside(name); err != nil {
			return nil, err
		}
	}
}

// Open opens the directory name below d as Sub does, but does not make it.
func (d *Dir) Open(name string) (*Dir, error) {
	if err := single(name); err != nil {
		return nil, err
	}
	return d.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
}

func (d *Dir) open(name string, flags int) (*Dir, error) {
	f, err := d.openat(name, flags, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{f: f}, nil
}

// Read returns the bytes of the regular file name, at most limit of them; a larger file is
// ErrTooLarge.
func (d *Dir) Read(name string, limit int64) ([]byte, error) {
	if err := single(name); err != nil {
		return nil, err
	}
	f, err := d.openat(name, lookOnly, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readRegular(f, limit)
}

// OpenRegular opens the regular file of that name to be read, of whatever size.
func (d *Dir) OpenRegular(name string) (*os.File, error) {
	if err := single(name); err != nil {
		return nil, err
	}
	place, err := d.openat(name, lookOnly, 0)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	return openRegular(place)
}

// Names returns the names in the directory in no particular order, at most limit of them; more is
// ErrTooLarge.
func (d *Dir) Names(limit int) ([]string, error) {
	// A descriptor of its own: reading moves the position.
	f, err := d.openat(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d entries", d.Path(), ErrTooLarge, limit)
	}
	return names, nil
}

// Stat describes name itself, not what a link of that name points to.
func (d *Dir) Stat(name string) (fs.FileInfo, error) {
	if err := single(name); err != nil {
		return nil, err
	}
	f, err := d.openat(name, lookOnly, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// Remove unlinks name; that it isn't there is no error.
func (d *Dir) Remove(name string) error {
	if err := single(name); err != nil {
		return err
	}
	if err := unix.Unlinkat(d.fd(), name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.wrap("remove", name, err)
	}
	return nil
}

// Write replaces the file name by one that holds data: a reader, and whoever looks after a power cut, finds the old
// file or the new one, whole. A directory in its place is set aside. One writer at a time.
func (d *Dir) Write(name string, data []byte, mode fs.FileMode) (err error) {
	if err := single(name); err != nil {
		return err
	}
	temporary := temporary(name)
	err = d.Remove(temporary)
	if errors.Is(err, unix.EISDIR) {
		err = d.setAside(temporary)
	}
	if err != nil {
		return err
	}
	f, err := d.openat(temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, uint32(mode.Perm()))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Remove(temporary))
		}
	}()
	if err := writeSynced(f, data, mode); err != nil {
		return fmt.Errorf("writing %s: %w", f.Name(), err)
	}
	err = unix.Renameat(d.fd(), temporary, d.fd(), name)
	if errors.Is(err, unix.EISDIR) {
		if err := d.setAside(name); err != nil {
			return err
		}
		err = unix.Renameat(d.fd(), temporary, d.fd(), name)
	}
	if err != nil {
		return d.wrap("rename", name, err)
	}
	if err := d.f.Sync(); err != nil {
		return d.wrap("sync", ".", err)
	}
	return nil
}

// temporary returns the fixed name of what becomes the file name: a writer that was killed leaves at most one file behind, and its successor
// removes it.
func temporary(name string) string { return "." + name + ".tmp" }

// Belongs reports whether a name is that of the file of that name, or one that Write uses for it.
func Belongs(name, file string) bool {
	for _, n := range []string{file, temporary(file)} {
		if name == n || name == aside(n) {
			return true
		}
	}
	return false
}

func writeSynced(f *os.File, data []byte, mode fs.FileMode) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	// Once more, because the umask has a say in what open does.
	if err := f.Chmod(mode.Perm()); err != nil {
		return err
	}
	return f.Sync()
}

const (
	// lockPatience is for the lock of a process that was killed while it started a child: the child
	// has a copy of the descriptor until its exec, which a busy machine may put off.
	lockPatience = 3 * time.Second
	lockPoll     = 10 * time.Millisecond
)

// Lock takes the directory's own lock, or returns ErrLocked where that is held by another for
// longer than a killed holder's child can have it. Sleep waits between two tries. The lock is held
// until Close or the end of the process, however that ends, and nothing that is done to the
// directory's entries can take it away.
func (d *Dir) Lock(ctx context.Context, sleep func(context.Context, time.Duration) error) error {
	for waited := time.Duration(0); ; waited += lockPoll {
		err := unix.Flock(d.fd(), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			d.locked = true
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return d.wrap("lock", ".", err)
		case waited >= lockPatience:
			return fmt.Errorf("%s: %w", d.Path(), ErrLocked)
		}
		if err := sleep(ctx, lockPoll); err != nil {
			return err
		}
	}
}

// ReadFile returns the bytes of the regular file at a trusted path, at most limit of them; a larger
// file is ErrTooLarge.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, lookOnly, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readRegular(f, limit)
}

// NotRegular is the error that names what stands in the place of a regular file.
func NotRegular(path string, there fs.FileInfo) error {
	kind := "a device"
	switch there.Mode().Type() {
	case fs.ModeDir:
		kind = "a directory"
	case fs.ModeSymlink:
		kind = "a link"
	case fs.ModeNamedPipe:
		kind = "a pipe"
	case fs.ModeSocket:
		kind = "a socket"
	}
	return fmt.Errorf("%s: %w: %s", path, ErrNotRegular, kind)
}

// openRegular opens the regular file that place, which was opened with lookOnly, stands for.
func openRegular(place *os.File) (*os.File, error) {
	info, err := place.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, NotRegular(place.Name(), info)
	}
	f, err := reopen(place)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: place.Name(), Err: errors.Unwrap(err)}
	}
	return f, nil
}

// readRegular reads the file that place, which was opened with lookOnly, stands for.
func readRegular(place *os.File, limit int64) ([]byte, error) {
	f, err := openRegular(place)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", place.Name(), ErrTooLarge, limit)
	}
	return data, nil
}

func (d *Dir) openat(name string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(d.fd(), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%s: %w", filepath.Join(d.Path(), name), ErrNotRegular)
	}
	if err != nil {
		return nil, d.wrap("open", name, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(d.Path(), name)), nil
}

func (d *Dir) fd() int { return int(d.f.Fd()) }

func (d *Dir) wrap(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: filepath.Join(d.Path(), name), Err: err}
}

func single(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q is not the name of a file: %w", name, fs.ErrInvalid)
	}
	return nil
}
