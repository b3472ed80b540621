package rtmr

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/internal/strictjson"
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

func (h *held) close() {
	h.log.Close()
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

// look reads register and log.
func (n *Native) look() (sight, error) {
	version, err := files.ReadFile(filepath.Join(n.Runtime, versionName), 64)
	if err != nil {
		return sight{}, &NativeError{NoRuntime, err}
	}
	if version := bytes.TrimSpace(version); string(version) != "1" {
		return sight{}, &NativeError{OtherVersion, fmt.Errorf("%s says %.20q", versionName, version)}
	}
	data, err := files.ReadFile(filepath.Join(n.Runtime, eventsName), MaxSize)
	if err != nil {
		return sight{}, &NativeError{NoRuntime, err}
	}
	var s sight
	if s.register, err = n.register(); err != nil {
		return sight{}, err
	}
	for number := 1; ; number++ {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole {
			s.tail = data
			return s, nil
		}
		data = rest
		if len(bytes.TrimSpace(line)) == 0 { // which dstack skips
			continue
		}
		event, err := parseLine(line)
		if err == nil && len(s.events) == MaxEvents {
			err = fmt.Errorf("more than %d events", MaxEvents)
		}
		if err != nil {
			return sight{}, &NativeError{Unreadable, fmt.Errorf("line %d: %w", number, err)}
		}
		s.events = append(s.events, event)
	}
}

// parseLine reads a line as dstack writes it.
func parseLine(line []byte) (Event, error) {
	v, err := strictjson.Parse(line)
	if err != nil {
		return Event{}, err
	}
	members, err := v.Object("event", "payload", "version")
	if err != nil {
		return Event{}, err
	}
	e := Event{Type: EventType, Version: 1}
	if e.Name, err = members["event"].Text(); err != nil {
		return Event{}, fmt.Errorf("event: %w", err)
	}
	payload, err := members["payload"].Text()
	if err == nil {
		e.Payload, err = base64.StdEncoding.DecodeString(payload)
	}
	if err != nil {
		return Event{}, fmt.Errorf("payload: %w", err)
	}
	if version := members["version"]; version.Present() {
		number, err := version.Uint32()
		if err != nil || number != 1 && number != 2 {
			return Event{}, fmt.Errorf("version: %.20s", version.Raw())
		}
		e.Version = int(number)
	}
	return e, nil
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

// CanEmit looks for what is missing. A lock that is held is left to whoever waits for it.
func (n *Native) CanEmit(context.Context) error {
	_, _, faults := n.Look(nil)
	if len(faults) > 0 {
		return faults[0]
	}
	return nil
}

// Look finds without effect all that stands in the way, and what the log says once a line was
// completed that an earlier run left: then unfinished.
func (n *Native) Look(images []digest.Digest) (log Log, unfinished bool, faults []error) {
	writable := func(piece Piece, path string) {
		err := unix.Access(path, unix.W_OK)
		if err == nil || errors.Is(err, fs.ErrNotExist) { // that is told of the reading
			return
		}
		faults = append(faults, &NativeError{piece, &fs.PathError{Op: "write", Path: path, Err: err}})
	}
	if _, err := n.register(); err != nil {
		faults = append(faults, err)
	}
	writable(ReadOnly, filepath.Join(n.Registers, registerName))
	seen, err := n.look()
	var missing *NativeError
	if err != nil && !(errors.As(err, &missing) && missing.Piece == NoRegisters) { // that was told
		faults = append(faults, err)
	}
	writable(RuntimeFixed, filepath.Join(n.Runtime, eventsName))
	if len(faults) > 0 {
		return Log{}, false, faults
	}
	log, rest, err := seen.judge(images)
	if err != nil {
		return Log{}, false, []error{err}
	}
	if err := room(n.Runtime, 2*len(logLine(digest.Digest{}))); err != nil {
		faults = append(faults, &NativeError{NoRoom, err})
	}
	return log, len(rest) > 0, faults
}

// room says, as far as that can be seen, why so many bytes have none.
func room(path string, size int) error {
	dir, err := files.OpenDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.CanAdd(int64(size))
}

// logLine is what dstack's log has of an image event.
func logLine(image digest.Digest) []byte {
	return fmt.Appendf(nil, "{\"event\":%q,\"payload\":%q}\n", EventName,
		base64.StdEncoding.EncodeToString(image[:]))
}
