package rtmr

import (
	"os"

	"golang.org/x/sys/unix"
)

// reserve takes room behind the end of a file without making it longer.
func reserve(f *os.File, end, size int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, end, size)
	if err != nil {
		return &os.PathError{Op: "reserve", Path: f.Name(), Err: err}
	}
	return nil
}
