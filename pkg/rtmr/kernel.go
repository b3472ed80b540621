package rtmr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/waiting"
)

// Mounts is where the kernel's registers and dstack's event log are. The zero value: nowhere, and
// the agent measures.
type Mounts struct {
	Registers string // the kernel's directory tdx_guest/measurements
	Runtime   string // dstack's directory of its event log, of the lock and of the version
}

// Backend returns what measures: the agent, or the kernel where there are mounts.
func (m Mounts) Backend(agent *Agent) Backend {
	if m == (Mounts{}) {
		return agent
	}
	return &Native{agent, m}
}

// Lock returns the path of dstack's lock.
func (m Mounts) Lock() string { return filepath.Join(m.Runtime, lockName) }

const (
	registerName = "rtmr3:sha384"
	eventsName   = "runtime_events.log"
	lockName     = "runtime_event.lock"
	versionName  = "runtime_event_version"

	lockPatience = 30 * time.Second
	lockPoll     = 100 * time.Millisecond
)

// at says what comes next, for whoever looks where a launcher ended.
func (n *Native) at(what string) { n.logger().Debug("measuring natively", "next", what) }

// register reads the live register.
func (n *Native) register() (r Register, err error) {
	data, err := files.ReadFile(filepath.Join(n.Registers, registerName), int64(len(r)))
	if err == nil && len(data) != len(r) {
		err = fmt.Errorf("%s has %d bytes, want %d", registerName, len(data), len(r))
	}
	if err != nil {
		return Register{}, &NativeError{NoRegisters, err}
	}
	return Register(data), nil
}

// extend extends the register by one write, which nothing repeats: package os would, where a signal
// interrupts it.
func (n *Native) extend(event Register) error {
	path := filepath.Join(n.Registers, registerName)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		var wrote int
		if wrote, err = unix.Pwrite(fd, event[:], 0); err == nil && wrote != len(event) {
			err = fmt.Errorf("%d of %d bytes written", wrote, len(event))
		}
	}
	if err != nil {
		return &NativeError{ReadOnly, &fs.PathError{Op: "extend", Path: path, Err: err}}
	}
	return nil
}

// held is dstack's log under its lock.
type held struct {
	n         *Native
	lock, log *os.File
}

// sight is what register and log held at one moment.
type sight struct {
	register Register
	events   []Event
	tail     []byte // what follows the end of the last line
}

// hold reads register and log once it has the lock.
func (n *Native) hold(ctx context.Context) (*held, sight, error) {
	held, err := n.lock(ctx)
	if err != nil {
		return nil, sight{}, err
	}
	n.at("reading")
	seen, err := n.look()
	if err != nil {
		held.close()
		return nil, sight{}, err
	}
	return held, seen, nil
}

// lock waits for dstack's lock, which a process that was killed has given up.
func (n *Native) lock(ctx context.Context) (*held, error) {
	n.at("locking")
	lock, err := n.open(lockName, os.O_RDWR|os.O_CREATE) // as dstack does
	if err != nil {
		return nil, err
	}
	over := waiting.For(ctx, "the lock of dstack's event log")
	defer over()
	for waited := time.Duration(0); ; waited += lockPoll {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || waited >= lockPatience {
			lock.Close()
			return nil, &NativeError{Locked, fmt.Errorf("%s: %w", lock.Name(), err)}
		}
		if err := n.sleep(ctx, lockPoll); err != nil {
			lock.Close()
			return nil, err
		}
	}
	log, err := n.open(eventsName, os.O_RDWR|os.O_APPEND)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &held{n, lock, log}, nil
}

// close gives up the lock by itself, too: a child that is being started has a copy of the descriptor.
func (h *held) close() {
	h.log.Close()
	_ = unix.Flock(int(h.lock.Fd()), unix.LOCK_UN)
	h.lock.Close()
}

// open opens a file of dstack's own, which has to be one.
func (n *Native) open(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(n.Runtime, name), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err == nil {
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s: %w", f.Name(), files.ErrNotRegular)
		}
		if err != nil {
			f.Close()
		}
	}
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission):
		return nil, &NativeError{RuntimeFixed, err}
	}
	return nil, &NativeError{NoRuntime, err}
}

// reserve makes sure of room for a line before anything is extended that needs one.
func (h *held) reserve(size int) error {
	h.n.at("reserving")
	info, err := h.log.Stat()
	if err == nil {
		err = reserve(h.log, info.Size(), int64(size))
	}
	if err != nil {
		return &NativeError{NoRoom, err}
	}
	return nil
}

// complete appends what a line lacks, and waits until it is where the file system keeps it.
func (h *held) complete(rest []byte) error {
	if err := h.reserve(len(rest)); err != nil {
		return err
	}
	h.n.at("appending")
	if _, err := h.log.Write(rest); err != nil {
		return &NativeError{RuntimeFixed, err}
	}
	h.n.at("syncing")
	if err := h.log.Sync(); err != nil {
		return &NativeError{RuntimeFixed, err}
	}
	return nil
}
