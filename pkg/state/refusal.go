package state

import (
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/exit"
)

// What can't be read or written ends a boot in these words; what was read is judged by package
// admission.

// SharedDir refuses to go on without the shared directory.
func SharedDir(err error) *admission.Refusal {
	return refusal(admission.SharedMissing, exit.Config, fmt.Errorf("shared directory: %w", err),
		"mount the shared volume there, or name its place with --shared-dir")
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
	return refusal(admission.ConfigUnreadable, exit.Config, fmt.Errorf("user config: %w", err),
		"write the user config there, or name its place with --config")
}

// unlisted refuses an approved list that is there and can't be read: never the default instead.
func unlisted(err error) *admission.Refusal {
	return refusal(admission.ListUnreadable, exit.Config, fmt.Errorf("approved list: %w", err),
		"the workload writes this file: look at what stands in its place")
}

// badList refuses an approved list that isn't one.
func badList(err error) *admission.Refusal {
	return refusal(admission.ListWrong, exit.Of(err), err, exit.Hints(err)...)
}

// unrecorded refuses to measure what couldn't be written down before.
func unrecorded(err error) *admission.Refusal {
	return refusal(admission.RecordBlocked, exit.Config,
		fmt.Errorf("record of the measurement: %w", err),
		"make room in the shared volume, or remove what stands in the record's place; "+
			"it is made again")
}

// NodeConfig refuses where the workload's config can't be written. A boot goes on without any other
// file of ours but the record before an emit: without this one, the workload would run with an old
// config, or with what somebody put there.
func NodeConfig(err error) *admission.Refusal {
	return refusal(admission.NodeConfigFails, exit.Config, fmt.Errorf("node config: %w", err),
		"make room in the shared volume, or remove what stands in the file's place; "+
			"it is made again")
}

func refusal(
	code admission.Code, exitCode exit.Code, err error, hint ...string,
) *admission.Refusal {
	return &admission.Refusal{Code: code, Exit: exitCode, Err: err, Hint: hint}
}
