package files

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lookOnly opens a mere place. What somebody planted is looked at before it is opened: to open a
// device or a pipe can be enough to do something.
const lookOnly = unix.O_PATH

// reopen opens what place stands for, to be read.
func reopen(place *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", place.Fd()))
}
