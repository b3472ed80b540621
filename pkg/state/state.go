// Package state reads what a boot decides by, for the boot itself and for whoever asks what it
// would do: files, lock, containers, disk. And it keeps what runs of the launcher leave for later
// ones, in a directory of their own in the shared volume: the record of a boot, and the manifests
// of images that were loaded.
//
// It guarantees that nothing is believed because it stands there: a cached manifest proves itself by
// its digest. A record proves nothing. Whoever has the volume, such as the workload, may have
// written, removed or replaced any of it at any time, so a caller may refuse because of a record
// and must never allow anything because of one.
package state

import (
	"encoding/json"
	"errors"
	"io/fs"

	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/internal/strictjson"
)

// Name is the directory's name in the shared directory.
const Name = "launcher"

// Dir is the launcher's own directory. It is looked up for each use, because it may be gone or
// another one by then. In the zero value nothing is, and nothing can be written.
type Dir struct {
	shared *files.Dir
}

// In returns the launcher's own directory in the shared one, which must stay open. It need not
// exist.
func In(shared *files.Dir) Dir { return Dir{shared} }

// CanMake returns what Make would fail with, as far as that can be seen without making anything.
func (d Dir) CanMake() error {
	dir, err := d.open()
	switch {
	case err == nil:
		return dir.Close()
	case errors.Is(err, fs.ErrNotExist) && d.shared != nil:
		return d.shared.CanAdd(0)
	case errors.Is(err, files.ErrNotRegular):
		return errors.Join(d.shared.CanSetAside(Name), d.shared.CanAdd(0))
	}
	return err
}

// Make makes the directory where it is missing.
func (d Dir) Make() error {
	dir, err := d.make()
	if err == nil {
		err = dir.Close()
	}
	return err
}

// Write replaces a file atomically and durably, and makes the directory where it is missing.
func (d Dir) Write(name string, data []byte) error {
	dir, err := d.make()
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Write(name, data, 0o644)
}

func (d Dir) open() (*files.Dir, error) {
	if d.shared == nil {
		return nil, fs.ErrNotExist
	}
	return d.shared.Open(Name)
}

func (d Dir) make() (*files.Dir, error) {
	if d.shared == nil {
		return nil, fs.ErrNotExist
	}
	return d.shared.Sub(Name)
}

func (d Dir) read(name string, limit int64) ([]byte, error) {
	dir, err := d.open()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Read(name, limit)
}

// decode reads a file of ours, which somebody else may have written, into a struct that has
// these members.
func decode(data []byte, into any, members ...string) error {
	document, err := strictjson.Parse(data)
	if err != nil {
		return err
	}
	if _, err := document.Object(members...); err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}
