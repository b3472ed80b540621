package admission

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

// Code names one kind of finding. It never changes its meaning, so that people and scripts can
// refer to it.
type Code string

// The codes of refusals.
const (
	ReportTaken      Code = "SET005"
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

// NoReport is the value of Settings.Report that asks for none.
const NoReport = "none"

// Supervise says who looks after a workload that ends: this process, or the engine by its restart
// policy. The engine does so at its own start too, before anything was measured.
type Supervise string

// The values of Supervise; the empty one is SuperviseAuto.
const (
	SuperviseAuto Supervise = "auto" // on in TEE mode, off outside
	SuperviseOn   Supervise = "on"
	SuperviseOff  Supervise = "off"
)
