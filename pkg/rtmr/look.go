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

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/internal/strictjson"
)

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
	register, err := n.register()
	if err != nil {
		return sight{}, err
	}
	return parseLog(register, data)
}

// parseLog reads dstack's log up to the end of its last line.
func parseLog(register Register, data []byte) (sight, error) {
	s := sight{register: register}
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

// logLine is the line of an image event.
func logLine(image digest.Digest) []byte {
	return fmt.Appendf(nil, "{\"event\":%q,\"payload\":%q}\n", EventName,
		base64.StdEncoding.EncodeToString(image[:]))
}

// CanEmit looks for what is missing.
func (n *Native) CanEmit(ctx context.Context) error {
	held, _, err := n.hold(ctx)
	if err != nil {
		return err
	}
	defer held.close()
	_, _, faults := n.Look(nil)
	if len(faults) > 0 {
		return faults[0]
	}
	return nil
}

// Look finds without effect, and so without the lock, all that stands in the way, and what the log says once a line was
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
	if err := n.room(len(logLine(digest.Digest{}))); err != nil {
		faults = append(faults, &NativeError{NoRoom, err})
	}
	return log, len(rest) > 0, faults
}

// room says, as far as that can be seen, why a line has none: it may fit into the log's last block.
func (n *Native) room(size int) error {
	var disk unix.Statfs_t
	info, err := os.Stat(filepath.Join(n.Runtime, eventsName))
	if err == nil {
		err = unix.Statfs(n.Runtime, &disk)
	}
	if err != nil {
		return err
	}
	block := int64(disk.Bsize)
	if used := info.Size() % block; used > 0 && used+int64(size) <= block {
		return nil
	}
	dir, err := files.OpenDir(n.Runtime)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.CanAdd(int64(size))
}
