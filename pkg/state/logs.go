package state

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/internal/files"
)

const (
	// LogDir is the directory, in our own one, of the logs of workloads that gave way to another.
	LogDir    = "logs"
	logSuffix = ".log"
	// keptLogs is how many there are, the newest first.
	keptLogs = 3
	// logTime begins their names, so that these sort by it.
	logTime = "20060102T150405.000Z"
)

// KeepLog writes down the log of a workload that ended then and was of that boot, and forgets all but
// the last few. The name says both, so that what is kept once more, as after a kill, is kept once.
func (d Dir) KeepLog(boot string, ended time.Time, log []byte) (name string, err error) {
	own, err := d.make()
	if err != nil {
		return "", err
	}
	defer own.Close()
	dir, err := own.Sub(LogDir)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	name = ended.UTC().Format(logTime) + "-" + fileName(boot) + logSuffix
	// Where the old ones can't be removed there is no new one: it would be one more at each boot.
	if err := forgetLogs(dir, name); err != nil {
		return "", err
	}
	return LogDir + "/" + name, dir.Write(name, log, 0o644)
}

// fileName is a text from outside as a part of a name.
func fileName(text string) string {
	const longest = 64
	clean := strings.Map(func(r rune) rune {
		if r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return -1
	}, text)
	return clean[:min(longest, len(clean))]
}

// forgetLogs makes room for one more: of all logs, and of what a killed writer left, the newest stay.
func forgetLogs(dir *files.Dir, but string) error {
	names, err := dir.Names(maxEntries)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		log := strings.HasSuffix(name, logSuffix) || strings.HasSuffix(name, logSuffix+".tmp")
		return !log || name == but
	})
	slices.Sort(names)
	for _, name := range names[:max(len(names)-(keptLogs-1), 0)] {
		// A directory that somebody made there is none of ours.
		if err := dir.Remove(name); err != nil && !errors.Is(err, unix.EISDIR) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
