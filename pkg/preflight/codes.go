package preflight

import "tee-launcher/pkg/admission"

// Code names one kind of finding. It never changes its meaning, so that people and scripts can refer to it.
type Code = admission.Code

// The codes, beside those of refusals, which package admission has.
const (
	SettingWrong    Code = "SET001"
	SettingUnknown  Code = "SET002"
	SettingInsecure Code = "SET003"
	SettingAlone    Code = "SET004"

	ConfigWrong     Code = "CFG002"
	ConfigOld       Code = "CFG003"
	OverrideIgnored Code = "CFG009"
	KeptUseless     Code = "CFG011"

	RegistryDown     Code = "REG001"
	RegistryRefuses  Code = "REG002"
	ManifestMissing  Code = "REG003"
	PlatformMissing  Code = "REG004"
	ManifestWrong    Code = "REG005"
	LayerMissing     Code = "REG006"
	RateLow          Code = "REG007"
	NewerUnavailable Code = "REG008"
	LayerWrong       Code = "REG009"

	EngineDown        Code = "ENG001"
	EngineOld         Code = "ENG002"
	EngineOther       Code = "ENG003"
	ImageBroken       Code = "ENG004"
	WorkloadReplaced  Code = "ENG006"
	DataVolumeMissing Code = "ENG010"
	EngineContradicts Code = "ENG011"
	ComposeMissing    Code = "CMP001"
	AgentDown         Code = "AGT001"
	AgentCannotEmit   Code = "AGT002"
	LogUnreadable     Code = "AGT003"
	AlreadyMeasured   Code = "AGT006"
	LogRefused        Code = "AGT008"
	AppComposeBroken  Code = "APP001"
	AppComposeRefused Code = "APP002"
	AppComposeUnknown Code = "APP003"
	AppComposeScript  Code = "APP004"
	AppComposeDiffers Code = "APP005"
	ClockWrong        Code = "HST001"
	PortTaken         Code = "HST002"
	PortPrivileged    Code = "HST004"
	StartsByItself    Code = "ENG014"
	ImageUnheld       Code = "ENG015"
)

// Class describes a code for documents.
type Class struct {
	Code    Code
	Meaning string
}

// Codes returns every code.
func Codes() []Class {
	return []Class{
		{SettingWrong, "a flag or environment variable is missing or wrong"},
		{SettingUnknown, "a variable looks like a setting and is none"},
		{SettingInsecure, "plain http is allowed for a registry"},
		{SettingAlone, "not supervised in a CVM: the engine may start an old workload before anything is measured"},
		{admission.ConfigUnreadable, "the user config can't be read"},
		{ConfigWrong, "a mistake in the user config, with its place"},
		{ConfigOld, "something in the user config is deprecated or ignored"},
		{admission.SharedMissing, "the shared directory is missing"},
		{admission.OwnDirBlocked, "the launcher's own directory in the shared one can't be used"},
		{admission.ListUnreadable, "the approved list can't be read"},
		{admission.ListWrong, "the approved list isn't one"},
		{admission.OverrideRefused, "the override isn't approved"},
		{OverrideIgnored, "the override says nothing while there is no approved list"},
		{admission.NodeConfigFails, "the node config can't be made or written"},
		{KeptUseless, "the manifest that an earlier boot kept doesn't prove itself"},
		{admission.RecordBlocked, "the record of a measurement couldn't be written, so that nothing would be measured"},
		{admission.SharedElsewhere, "the shared directory isn't the volume that the workload mounts"},
		{RegistryDown, "the registry doesn't answer well"},
		{RegistryRefuses, "the registry refuses access"},
		{ManifestMissing, "the registry doesn't have the image"},
		{PlatformMissing, "there is no image for this machine"},
		{ManifestWrong, "manifest or config aren't what the digest says, or lie"},
		{LayerMissing, "the registry doesn't have a layer, or another one"},
		{RateLow, "the registry's rate limit is nearly used up"},
		{NewerUnavailable, "a newer approved digest can't be pulled while an older one can"},
		{LayerWrong, "a layer that was downloaded isn't what its digest says"},
		{EngineDown, "the engine doesn't answer"},
		{EngineOld, "the engine is older than any that was tried"},
		{EngineOther, "the engine is for other machines than this launcher"},
		{ImageBroken, "the engine has the image, but broken; it would be loaded anew"},
		{admission.SpaceShort, "too little space for the image on the engine's disk"},
		{WorkloadReplaced, "a container would be replaced"},
		{admission.WorkloadStopped, "a container would be stopped"},
		{admission.SocketHeld, "somebody else's container holds the guest agent's socket"},
		{admission.WorkloadRestarts, "an image is measured, and a container that restarts by itself may have done that"},
		{DataVolumeMissing, "there is no data volume: the node would start without keys"},
		{EngineContradicts, "the engine answers, but not to everything that a boot asks"},
		{admission.WorkloadPaused, "the workload's container is paused, and can't be started"},
		{admission.EngineNotDocker, "it isn't a Docker engine that answers"},
		{StartsByItself, "the engine will start a container by itself at the next boot"},
		{ImageUnheld, "the engine has the image, and may have lost it by the next boot"},
		{admission.ImpostorEnded, "an image is measured, and a container that nobody had measured ran before in this boot and may have done that"},
		{ComposeMissing, "no Compose of version 2 or later"},
		{AgentDown, "the guest agent doesn't answer"},
		{AgentCannotEmit, "the guest agent can't measure an event"},
		{LogUnreadable, "the event log can't be read, so what is measured isn't known"},
		{admission.LogWrong, "the event log doesn't replay to the register, or no verifier would believe it"},
		{admission.OtherMeasured, "another image is measured already"},
		{AlreadyMeasured, "this image is measured already"},
		{admission.MeasuredByOthers, "an image was, or may still be, measured by somebody whom this launcher's records don't know to have succeeded"},
		{LogRefused, "verifiers refuse the event log, for something else than the image"},
		{AppComposeBroken, "the app-compose document can't be read"},
		{AppComposeRefused, "the app-compose has a value that verifiers refuse"},
		{AppComposeUnknown, "the app-compose has a field that verifiers don't know, which they refuse"},
		{AppComposeScript, "the app-compose has a script, which verifiers refuse"},
		{AppComposeDiffers, "the app-compose isn't the one that is measured here"},
		{ClockWrong, "the clock is wrong"},
		{PortTaken, "a host port is taken"},
		{admission.AnotherLauncher, "another launcher is at work here"},
		{PortPrivileged, "a host port is below 1024"},
		{admission.BootUnknown, "the kernel doesn't say which boot this is"},
	}
}
