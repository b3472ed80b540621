package state

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
)

// What can't be read or written ends a boot in these words; what was read is judged by package
// admission.

// SharedDir refuses to go on without the shared directory.
func SharedDir(err error) *admission.Refusal {
	return refusal(admission.SharedMissing, exit.Config, fmt.Errorf("shared directory: %w", err),
		shared(err))
}

// notTheVolume refuses a shared directory that is another place than the one that the workload will
// see.
func notTheVolume(err error) *admission.Refusal {
	return refusal(admission.SharedElsewhere, exit.Config,
		fmt.Errorf("shared directory: %w", err),
		"in a container, mount the volume there: volumes: [\""+compose.SharedVolume+":"+
			compose.SharedDir+"\"], and {name: "+compose.SharedVolume+"} below the file's own volumes",
		"outside of one, name its place with --shared-dir: docker volume inspect "+compose.SharedVolume)
}

// Locked refuses where another process holds the shared directory's lock.
func Locked(err error) *admission.Refusal {
	return refusal(admission.AnotherLauncher, exit.Busy,
		fmt.Errorf("another launcher is at work here: %w", err),
		"wait until it has ended, or stop it",
		"if there is none, a workload of an earlier boot holds the lock of its volume: "+
			"docker stop "+compose.Name)
}

// noBoot refuses where the kernel doesn't say which boot this is: then nobody can say what belongs
// to it.
func noBoot(err error) *admission.Refusal {
	return refusal(admission.BootUnknown, exit.Measurement, err,
		"the kernel gives it in /proc; is that mounted?")
}

// noConfig refuses a user config that can't be read.
func noConfig(err error) *admission.Refusal {
	hint := "write the user config there, or name its place with --config"
	switch {
	case errors.Is(err, fs.ErrPermission):
		hint = "this user may not read it: run the launcher as root, or as the file's owner"
	case errors.Is(err, files.ErrTooLarge):
		hint = "is it the right file? --config names its place"
	case errors.Is(err, files.ErrNotRegular):
		hint = "docker makes a directory where what is to be mounted is missing: " +
			"write the file on the host, and create the launcher's container anew"
	}
	return refusal(admission.ConfigUnreadable, exit.Config, fmt.Errorf("user config: %w", err), hint)
}

// unlisted refuses an approved list that is there and can't be read: never the default instead.
func unlisted(err error) *admission.Refusal {
	return refusal(admission.ListUnreadable, exit.Config, fmt.Errorf("approved list: %w", err),
		"the node writes this file: remove what is there instead of it; "+
			"the default digest runs until the node has written it")
}

// badList refuses an approved list that isn't one.
func badList(err error) *admission.Refusal {
	return refusal(admission.ListWrong, exit.Of(err), err, exit.Hints(err)...)
}

// unrecorded refuses to measure what couldn't be written down before.
func unrecorded(err error) *admission.Refusal {
	return refusal(admission.RecordBlocked, exit.Config,
		fmt.Errorf("record of the measurement: %w", err),
		unwritable(err))
}

// NodeConfig refuses where the workload's config can't be written. A boot goes on without any other
// file of ours but the record before an emit: without this one, the workload would run with an old
// config, or with what somebody put there.
func NodeConfig(err error) *admission.Refusal {
	return refusal(admission.NodeConfigFails, exit.Config, fmt.Errorf("node config: %w", err),
		unwritable(err))
}

// shared says what helps where the shared directory can't be opened.
func shared(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "this user may not open it: run the launcher as root, or as the directory's owner"
	}
	return "mount the shared volume there, or name its place with --shared-dir"
}

// unwritable says what helps where a file in the shared directory can't be written.
func unwritable(err error) string {
	switch {
	case errors.Is(err, syscall.EROFS):
		return "the shared volume is mounted read-only: mount it with :rw"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "the shared volume is full: make room on its disk; df -h and df -i show what is left"
	case errors.Is(err, fs.ErrPermission):
		return "this user may not write there: run the launcher as root, or as the volume's owner"
	}
	return "remove what is there instead of it; it is made again"
}

func refusal(
	code admission.Code, exitCode exit.Code, err error, hint ...string,
) *admission.Refusal {
	return &admission.Refusal{Code: code, Exit: exitCode, Err: err, Hint: hint}
}
