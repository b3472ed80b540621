// Package kernel is a double of the kernel's RTMR3 as Linux shows it from 6.16 on: a file system, so
// that what its file takes and refuses is what the kernel takes and refuses. A regular file would
// take anything.
//
// It needs /dev/fuse, and root or fusermount3. It models what was read in the kernel's sources:
// exactly 48 bytes at offset 0 extend, all other writes are EINVAL, reading gives the live value, but
// after a write that failed what was read before.
package kernel

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Name is the register's file.
const Name = "rtmr3:sha384"

// Fault is something that goes wrong with an extension.
type Fault struct {
	Err  syscall.Errno // what the write is answered with; 0: success
	Done bool          // whether the register is extended
}

// Kernel is a register and the directory that shows it.
type Kernel struct {
	base   string
	dir    string
	server *fuse.Server

	mu      sync.Mutex
	value   [48]byte
	cached  [48]byte // what reading gives
	synced  bool     // no write succeeded since it was read
	writes  int      // that extended
	refused int      // that were none
	faults  []Fault
	before  func() // called before the next extension
	after   func() // and after it
	broken  bool
}

// New mounts a kernel on a directory of its own.
func New() (*Kernel, error) {
	base, err := os.MkdirTemp(memory(), "tdx")
	if err != nil {
		return nil, err
	}
	k := &Kernel{base: base, dir: filepath.Join(base, "measurements")}
	if err := errors.Join(os.Mkdir(k.dir, 0o700), os.Mkdir(k.Runtime(), 0o700)); err != nil {
		return nil, errors.Join(err, os.RemoveAll(base))
	}
	none := fuse.MountOptions{DirectMount: true, FsName: "tdx_guest", Name: "tdx"}
	k.server, err = fs.Mount(k.dir, &root{kernel: k}, &fs.Options{MountOptions: none})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mounting a file system in user space: %w", err), os.RemoveAll(base))
	}
	return k, nil
}

// Dir is what the kernel calls tdx_guest/measurements.
func (k *Kernel) Dir() string { return k.dir }

// Runtime is a directory for dstack's event log, in memory as /run is: on a busy disk the sync of a
// line takes longer than anybody waits for a lock.
func (k *Kernel) Runtime() string { return filepath.Join(k.base, "log") }

func memory() string {
	const tmpfs = "/dev/shm"
	if unix.Access(tmpfs, unix.W_OK) != nil {
		return ""
	}
	return tmpfs
}

// Close ends it, even where a mount namespace that was made meanwhile has a copy of the mount, which
// an orderly unmount would wait for.
func (k *Kernel) Close() error {
	if unix.Unmount(k.dir, unix.MNT_FORCE|unix.MNT_DETACH) != nil { // not root
		if err := k.server.Unmount(); err != nil {
			return err
		}
	}
	k.server.Wait()
	return os.RemoveAll(k.base)
}

// Value returns the register.
func (k *Kernel) Value() [48]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.value
}

// Extend is somebody else's extension.
func (k *Kernel) Extend(digest [48]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.extend(digest)
	k.synced = false
}

// Reset is a boot.
func (k *Kernel) Reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.value, k.synced, k.writes, k.refused, k.faults = [48]byte{}, false, 0, 0, nil
}

func (k *Kernel) extend(digest [48]byte) {
	k.value = sha512.Sum384(append(k.value[:], digest[:]...))
}

// Writes returns how many writes extended the register since it was reset, and how many were refused
// because they were no extension.
func (k *Kernel) Writes() (extended, refused int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.writes, k.refused
}

// Fail has the next extensions go wrong, one after the other.
func (k *Kernel) Fail(faults ...Fault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults = append(k.faults, faults...)
}

// Break has the register be unreadable, or no longer.
func (k *Kernel) Break(broken bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broken = broken
}

// Around calls functions right before and right after the next extension through the file; nil:
// nothing.
func (k *Kernel) Around(before, after func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.before, k.after = before, after
}

func (k *Kernel) write(data []byte, off int64) syscall.Errno {
	if len(data) != 48 || off != 0 {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.refused++
		return syscall.EINVAL
	}
	k.mu.Lock()
	before, after := k.before, k.after
	k.before, k.after = nil, nil
	k.mu.Unlock()
	if before != nil {
		before()
	}
	err := k.take([48]byte(data))
	if after != nil {
		after()
	}
	return err
}

func (k *Kernel) take(digest [48]byte) syscall.Errno {
	k.mu.Lock()
	defer k.mu.Unlock()
	fault := Fault{Done: true}
	if len(k.faults) > 0 {
		fault, k.faults = k.faults[0], k.faults[1:]
	}
	if fault.Done {
		k.writes++
		k.extend(digest)
	}
	if fault.Err == 0 {
		k.synced = false
	}
	return fault.Err
}

type root struct {
	fs.Inode
	kernel *Kernel
}

// OnAdd makes the register's file.
func (r *root) OnAdd(ctx context.Context) {
	file := r.NewPersistentInode(ctx, &register{kernel: r.kernel}, fs.StableAttr{Mode: syscall.S_IFREG})
	r.AddChild(Name, file, true)
}

type register struct {
	fs.Inode
	kernel *Kernel
}

func (*register) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o644, 48
	return 0
}

// Setattr takes what comes with an open that truncates, which sysfs ignores.
func (*register) Setattr(context.Context, fs.FileHandle, *fuse.SetAttrIn, *fuse.AttrOut) syscall.Errno {
	return 0
}

// Open has nothing cached: the register is live.
func (*register) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (r *register) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	if r.kernel.broken {
		return nil, syscall.EIO
	}
	if !r.kernel.synced {
		r.kernel.cached, r.kernel.synced = r.kernel.value, true
	}
	value := r.kernel.cached[min(off, 48):]
	return fuse.ReadResultData(append([]byte(nil), value[:min(len(dest), len(value))]...)), 0
}

func (r *register) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if err := r.kernel.write(data, off); err != 0 {
		return 0, err
	}
	return uint32(len(data)), 0
}
