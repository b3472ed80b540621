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
	SettingFallback Code = "SET006"

	ConfigWrong     Code = "CFG002"
	ConfigOld       Code = "CFG003"
	OverrideIgnored Code = "CFG009"
	CachedUnusable  Code = "CFG011"

	RegistryDown     Code = "REG001"
	RegistryRefuses  Code = "REG002"
	ManifestMissing  Code = "REG003"
	PlatformMissing  Code = "REG004"
	ManifestWrong    Code = "REG005"
	LayerMissing     Code = "REG006"
	RateLow          Code = "REG007"
	NewerUnavailable Code = "REG008"
	LayerWrong       Code = "REG009"
	ImageUnusable    Code = "REG010"
	SourceMisses     Code = "REG011"
	SourceWantsLogin Code = "REG012"
	SourceLies       Code = "REG013"

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
	RegisterMissing   Code = "NAT001"
	RegisterReadOnly  Code = "NAT002"
	RuntimeMissing    Code = "NAT003"
	RuntimeReadOnly   Code = "NAT004"
	RuntimeVersion    Code = "NAT005"
	RuntimeFull       Code = "NAT006"
	RuntimeLocked     Code = "NAT007"
	RuntimeBroken     Code = "NAT008"
	LineMissing       Code = "NAT009"
	RegisterDiffers   Code = "NAT010"
	AppComposeBroken  Code = "APP001"
	AppComposeRefused Code = "APP002"
	AppComposeUnknown Code = "APP003"
	AppComposeScript  Code = "APP004"
	AppComposeDiffers Code = "APP005"
	ClockWrong        Code = "HST001"
	PortTaken         Code = "HST002"
	PortPrivileged    Code = "HST004"
	StartsByItself    Code = "ENG014"
	ImagePrunable     Code = "ENG015"
	ImageTooDeep      Code = "ENG018"
	ImageUntried      Code = "ENG019"
	PlacedElsewhere   Code = "ENG026"
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
		{SettingUnknown, "an environment variable looks like a setting but isn't one"},
		{SettingInsecure, "plain http is allowed for a registry"},
		{SettingAlone, "not supervised in a CVM: the engine may start an old workload before anything is measured"},
		{SettingFallback, "an older approved image may run than the newest, where that can't be had"},
		{admission.ReportTaken, "the launch report would replace a file that a boot reads or writes"},
		{admission.ConfigUnreadable, "the user config can't be read"},
		{ConfigWrong, "a mistake in the user config, with its place"},
		{ConfigOld, "something in the user config is deprecated or ignored"},
		{admission.SharedMissing, "the shared directory is missing"},
		{admission.OwnDirBlocked, "the launcher's own directory in the shared one can't be used"},
		{admission.ListUnreadable, "the approved list can't be read"},
		{admission.ListWrong, "the approved list is malformed"},
		{admission.OverrideRefused, "the override isn't approved"},
		{OverrideIgnored, "the override has no effect without an approved list"},
		{admission.NodeConfigFails, "the node config can't be made or written"},
		{CachedUnusable, "the cached manifest can't be used"},
		{admission.RecordBlocked, "the record of the measurement couldn't be written, so nothing would be measured"},
		{admission.SharedElsewhere, "the shared directory isn't the volume that the workload mounts"},
		{RegistryDown, "the registry doesn't answer, or answers with errors"},
		{RegistryRefuses, "the registry refuses access"},
		{ManifestMissing, "the registry doesn't have the image"},
		{PlatformMissing, "there is no image for this machine"},
		{ManifestWrong, "the manifest or config doesn't match its digest, or contradicts the rest of the image"},
		{LayerMissing, "the registry doesn't have a layer, or has a different one"},
		{RateLow, "the registry's rate limit is nearly used up"},
		{NewerUnavailable, "a newer approved digest can't be pulled while an older one can"},
		{LayerWrong, "a downloaded layer doesn't match its digest"},
		{ImageUnusable, "the image is in a form that can't be used"},
		{SourceMisses, "a source of the user config, or the registry beside them, can't give the image, or not all of it"},
		{SourceWantsLogin, "a source wants a login that there is none of"},
		{SourceLies, "what a source gives isn't what was asked for"},
		{EngineDown, "the engine doesn't answer"},
		{EngineOld, "the engine is older than any version that was tested"},
		{EngineOther, "the engine's platform isn't the launcher's"},
		{ImageBroken, "the engine's copy of the image is broken; it would be loaded again"},
		{admission.SpaceShort, "too little space for the image on the engine's disk"},
		{WorkloadReplaced, "a container would be replaced"},
		{admission.WorkloadStopped, "a container would be stopped"},
		{admission.SocketHeld, "another container could measure: it holds the guest agent's socket or, where the launcher measures natively, the register or its log"},
		{admission.WorkloadRestarts, "an image is already measured, and a container that restarts by itself may have measured it"},
		{DataVolumeMissing, "there is no data volume: the node would start without keys"},
		{EngineContradicts, "the engine answers, but not every request that a boot makes"},
		{admission.WorkloadPaused, "the workload's container is paused, and can't be started"},
		{admission.EngineNotDocker, "what answers at the engine's socket isn't a Docker engine"},
		{StartsByItself, "the engine will start a container by itself at the next boot"},
		{ImagePrunable, "the engine has the image, but may lose it before the next boot"},
		{ImageTooDeep, "the image has more layers than the engine takes"},
		{ImageUntried, "the engine doesn't say whether it could unpack the image"},
		{PlacedElsewhere, "a volume or the network of the workload was made with a driver or options of its own"},
		{admission.ImpostorEnded, "an image is already measured, and a container that no launcher had measured ran before in this boot and may have measured it"},
		{ComposeMissing, "no Compose of version 2 or later"},
		{AgentDown, "the guest agent doesn't answer"},
		{AgentCannotEmit, "the guest agent can't measure an event"},
		{LogUnreadable, "the event log can't be read, so what is measured isn't known"},
		{admission.LogWrong, "the event log doesn't replay to the register, or no verifier would accept it"},
		{admission.OtherMeasured, "another image is already measured"},
		{AlreadyMeasured, "this image is already measured"},
		{admission.MeasuredByOthers, "an image was measured by something other than a launcher, or an earlier measurement may still be under way"},
		{LogRefused, "verifiers refuse the event log, for a reason other than the image"},
		{RegisterMissing, "measuring natively: the kernel's register can't be read"},
		{RegisterReadOnly, "measuring natively: the kernel's register can't be extended, because its mount is read-only"},
		{RuntimeMissing, "measuring natively: dstack's event log can't be read"},
		{RuntimeReadOnly, "measuring natively: dstack's event log can't be written, because its mount is read-only"},
		{RuntimeVersion, "measuring natively: dstack's event log isn't of version 1, which is the only one that verifiers know"},
		{RuntimeFull, "measuring natively: there is no room for a line of dstack's event log"},
		{RuntimeLocked, "measuring natively: somebody holds the lock of dstack's event log"},
		{RuntimeBroken, "measuring natively: dstack's event log has a line that can't be read"},
		{LineMissing, "measuring natively: an earlier run put an event into the register and didn't finish its line, which would be completed"},
		{RegisterDiffers, "measuring natively: the kernel's register isn't the one that the agent quotes"},
		{AppComposeBroken, "the app-compose document can't be read"},
		{AppComposeRefused, "the app-compose has a value that verifiers refuse"},
		{AppComposeUnknown, "the app-compose has a field that verifiers don't know and therefore refuse"},
		{AppComposeScript, "the app-compose has a script, which verifiers refuse"},
		{AppComposeDiffers, "the app-compose isn't the one measured in this CVM"},
		{ClockWrong, "the clock is wrong"},
		{PortTaken, "a host port is taken"},
		{admission.AnotherLauncher, "another launcher is at work here"},
		{PortPrivileged, "a host port is below 1024"},
		{admission.BootUnknown, "the kernel doesn't say which boot this is"},
	}
}
