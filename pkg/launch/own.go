package launch

import (
	"io/fs"

	"tee-launcher/pkg/internal/files"
)

// own is the launcher's own directory in the shared one. It is looked up, and made if it is missing, for each use: the workload may
// remove it at any time.
type own struct {
	shared *files.Dir // nil: there is none, and nothing in it
}

func (o own) use(f func(*files.Dir) error) error {
	if o.shared == nil {
		return fs.ErrNotExist
	}
	dir, err := o.shared.Sub(OwnDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(dir)
}

func (o own) read(name string, limit int64) (data []byte, err error) {
	err = o.use(func(d *files.Dir) error {
		data, err = d.Read(name, limit)
		return err
	})
	return data, err
}

func (o own) write(name string, data []byte) error {
	return o.use(func(d *files.Dir) error { return d.Write(name, data, 0o644) })
}
