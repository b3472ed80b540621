//go:build !linux

package rtmr

import (
	"errors"
	"os"
)

// reserve can't: no register is anywhere but on Linux.
func reserve(*os.File, int64, int64) error { return errors.ErrUnsupported }
