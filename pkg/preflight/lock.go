package preflight

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/internal/files"
)

// maxLocks bounds the kernel's list of locks.
const maxLocks = 1 << 20

// checkLock looks, without taking it, whether somebody holds the shared directory's lock. It is no error: the launcher that supervises the workload holds it all the
// time, and what is asked is mostly what the next boot will do.
func checkLock(_ context.Context, f *facts) outcome {
	data, err := files.ReadFile(f.proc("locks"), maxLocks)
	if err != nil {
		return outcome{unknown: "the kernel's list of locks can't be read here"}
	}
	info, err := os.Stat(f.shared.Path())
	if err != nil {
		return outcome{unknown: err.Error()}
	}
	stat, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat {
		return outcome{unknown: "the shared directory has no inode"}
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	for line := range strings.Lines(string(data)) {
		// "1: FLOCK  ADVISORY  WRITE 1234 08:02:5678 0 EOF"
		fields := strings.Fields(line)
		if len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == file {
			return ok("held", note(AnotherLauncher, fmt.Sprintf("process %s holds the lock: until it ends, another run ends with exit code 10", fields[4]),
				"nothing, if the next boot is what you ask about; else stop that launcher"))
		}
	}
	return ok("free")
}
