package admission

import (
	"fmt"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

// Step is a step of the boot.
type Step string

// The steps.
const (
	AtSettings  Step = "settings"
	AtProbe     Step = "probe"
	AtGate      Step = "gate"
	AtConfig    Step = "config"
	AtPull      Step = "pull"
	AtLoad      Step = "load"
	AtCreate    Step = "create"
	AtMeasure   Step = "measure"
	AtStart     Step = "start"
	AtSupervise Step = "supervise"
)

// Steps returns the steps in their order.
func Steps() []Step {
	return []Step{
		AtSettings, AtProbe, AtGate, AtConfig, AtPull, AtLoad, AtCreate, AtMeasure, AtStart, AtSupervise,
	}
}

// Code names one kind of finding. It never changes its meaning, so that people and scripts can
// refer to it.
type Code string

// The codes of refusals.
const (
	SharedMissing    Code = "CFG004"
	OwnDirBlocked    Code = "CFG005"
	ConfigUnreadable Code = "CFG001"
	ListUnreadable   Code = "CFG006"
	ListWrong        Code = "CFG007"
	OverrideRefused  Code = "CFG008"
	NodeConfigFails  Code = "CFG010"
	RecordBlocked    Code = "CFG012"
	SharedElsewhere  Code = "CFG013"
	SpaceShort       Code = "ENG005"
	WorkloadStopped  Code = "ENG007"
	SocketHeld       Code = "ENG008"
	WorkloadRestarts Code = "ENG009"
	WorkloadPaused   Code = "ENG012"
	EngineNotDocker  Code = "ENG013"
	ImpostorEnded    Code = "ENG016"
	LogWrong         Code = "AGT004"
	OtherMeasured    Code = "AGT005"
	MeasuredByOthers Code = "AGT007"
	AnotherLauncher  Code = "HST003"
	BootUnknown      Code = "HST005"
)

// Refusal is why a boot ends.
type Refusal struct {
	Code Code
	Exit exit.Code
	Err  error
	Hint []string
}

func (r *Refusal) Error() string       { return r.Err.Error() }
func (r *Refusal) Unwrap() error       { return r.Err }
func (r *Refusal) ExitCode() exit.Code { return r.Exit }

// Hints says what helps.
func (r *Refusal) Hints() []string { return r.Hint }

// typed makes a refusal of an error that says by its type how the boot ends and what helps.
func typed(code Code, err error) *Refusal {
	return &Refusal{code, exit.Of(err), err, exit.Hints(err)}
}

// SharedDir refuses to go on without the shared directory.
func SharedDir(err error) *Refusal {
	return &Refusal{SharedMissing, exit.Config, fmt.Errorf("shared directory: %w", err),
		[]string{"mount the shared volume there, or name its place with --shared-dir"}}
}

// NotTheVolume refuses a shared directory that is another place than the one that the workload will see.
func NotTheVolume(err error) *Refusal {
	return &Refusal{SharedElsewhere, exit.Config, fmt.Errorf("shared directory: %w", err), []string{
		"in a container, mount the volume there: volumes: [\"" + compose.SharedVolume + ":" + compose.SharedDir + "\"], and {name: " + compose.SharedVolume + "} below the file's own volumes",
		"outside of one, name its place with --shared-dir: docker volume inspect " + compose.SharedVolume,
	}}
}

// Locked refuses where somebody else holds the shared directory's lock.
func Locked(err error) *Refusal {
	return &Refusal{AnotherLauncher, exit.Busy, fmt.Errorf("another launcher is at work here: %w", err),
		[]string{
			"wait until it has ended, or stop it",
			"if there is none, a workload of an earlier boot holds the lock of its volume: " +
				"docker stop " + compose.Name,
		}}
}

// NoBoot refuses where the kernel doesn't say which boot this is: then nobody can say what belongs
// to it.
func NoBoot(err error) *Refusal {
	return &Refusal{BootUnknown, exit.Measurement, err,
		[]string{"the kernel tells it in /proc; is that mounted?"}}
}

// UserConfig refuses a user config that can't be read.
func UserConfig(err error) *Refusal {
	return &Refusal{ConfigUnreadable, exit.Config, fmt.Errorf("user config: %w", err),
		[]string{"write the user config there, or name its place with --config"}}
}

// Unlisted refuses an approved list that is there and can't be read: never the default instead.
func Unlisted(err error) *Refusal {
	return &Refusal{ListUnreadable, exit.Config, fmt.Errorf("approved list: %w", err),
		[]string{"the workload writes this file: look at what stands in its place"}}
}

// BadList refuses an approved list that isn't one.
func BadList(err error) *Refusal { return typed(ListWrong, err) }

// Unrecorded refuses to measure what couldn't be written down before.
func Unrecorded(err error) *Refusal {
	return &Refusal{RecordBlocked, exit.Config, fmt.Errorf("record of the measurement: %w", err),
		[]string{"make room in the shared volume, or remove what stands in the record's place; " +
			"it is made anew"}}
}

// NodeConfig refuses where the workload's config can't be written.
func NodeConfig(err error) *Refusal {
	return &Refusal{NodeConfigFails, exit.Config, fmt.Errorf("node config: %w", err),
		[]string{"make room in the shared volume, or remove what stands in the file's place; " +
			"it is made anew"}}
}

// NotOurs refuses an image event that no launcher of this boot can have made.
func NotOurs(digest digest.Digest) *Refusal {
	return &Refusal{MeasuredByOthers, exit.Measurement,
		fmt.Errorf("%s was measured in this boot, but not by a launcher", digest),
		[]string{"reboot the CVM: whoever measured it may have passed for that image"}}
}

// UnderWay refuses to emit where another emit may still be under way.
func UnderWay(digest digest.Digest) *Refusal {
	return &Refusal{MeasuredByOthers, exit.Measurement,
		fmt.Errorf("an earlier run of this boot was about to measure %s, and the log doesn't show it",
			digest),
		[]string{"reboot the CVM: if that is still under way, a second one would make two, " +
			"which no verifier accepts"}}
}
