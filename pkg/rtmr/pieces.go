package rtmr

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/exit"
)

// Piece is a part of what measuring natively needs.
type Piece string

// The pieces.
const (
	NoRegisters  Piece = "the kernel's register can't be read"
	ReadOnly     Piece = "the kernel's register can't be extended"
	NoRuntime    Piece = "dstack's event log can't be read"
	RuntimeFixed Piece = "dstack's event log can't be written"
	NoRoom       Piece = "there is no room for a line of dstack's event log"
	OtherVersion Piece = "dstack's event log isn't of version 1"
	Locked       Piece = "dstack's event log is locked by somebody else"
	Unreadable   Piece = "dstack's event log has a line that isn't one"
)

// NativeError is a piece that is missing or wrong.
type NativeError struct {
	Piece Piece
	Err   error
}

func (e *NativeError) Error() string { return string(e.Piece) + ": " + e.Err.Error() }

func (e *NativeError) Unwrap() error { return e.Err }

// ExitCode is Measurement.
func (e *NativeError) ExitCode() exit.Code { return exit.Measurement }

// errUnseen is for an extension after which register, log and agent say that nothing happened.
var errUnseen = errors.New("the image isn't measured, as register, event log and agent agree")

// The lines of the launcher's compose file that mount what it takes.
const (
	registersLine = "- /sys/devices/virtual/misc/tdx_guest/measurements:/run/tsm"
	runtimeLine   = "- /run/log/dstack:/run/log/dstack"
)

// Hints says what helps.
func (e *NativeError) Hints() []string {
	const under = "have this line under volumes in the launcher's compose file, without :ro: "
	switch e.Piece {
	case NoRegisters:
		return []string{under + registersLine, "the kernel has the register from Linux 6.16 on, dstack from 0.6 on"}
	case NoRuntime:
		return []string{under + runtimeLine}
	case ReadOnly, RuntimeFixed:
		line := map[Piece]string{ReadOnly: registersLine, RuntimeFixed: runtimeLine}[e.Piece]
		if errors.Is(e.Err, unix.EROFS) || errors.Is(e.Err, fs.ErrPermission) {
			return []string{under + line}
		}
		return []string{"try again; if it stays that way, reboot the CVM"}
	case NoRoom:
		return []string{"free space in /run of the CVM, or reboot it"}
	case OtherVersion:
		return []string{"the app-compose must not ask for event log version 2: the NEAR verifier doesn't accept it; that needs a new CVM"}
	case Locked:
		return []string{"end what holds the lock, or reboot the CVM"}
	}
	return []string{rebootClears}
}
