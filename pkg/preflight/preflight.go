// Package preflight answers, without doing anything, whether a boot would succeed and with what
// result.
//
// It is a list of independent checks, in files by what they look at, that run at the same time as
// far as none needs what another one finds out. All of them run, whatever the others find, and what
// they find has a stable code, a severity, and what to do about it.
//
// It guarantees that it loads, writes, measures and starts nothing: it can't reach the code that
// does (its imports are tested), and the doubles of its tests saw no effect after any
// misconfiguration that it is tested with. A good answer is no promise: what was checked can change
// before the boot.
package preflight

import (
	"context"
	"log/slog"
	"os/exec"
	"time"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/registry"
)

// Options is what to check, and how.
type Options struct {
	admission.Settings          // of the boot
	Mistakes           []error  // in flags and environment, which the boot would end at
	Warnings           []string // about the environment

	For        For     // which boot
	Skip       []Group // what is left out
	Offline    bool    // leave out what needs a network
	Deep       bool    // also download and hash every layer
	Arch       string  // architecture of the machine that is to boot; empty: this one's
	AppCompose string  // path of an app-compose document; empty: the agent's

	Log      *slog.Logger                // nil: none
	Patience time.Duration               // how long the event log is read again that can't be had; 0: 5 s
	Proc     string                      // where the kernel shows processes, locks and sockets; empty: /proc
	Free     func(string) (int64, error) // free bytes at a path; nil: what the file system says
	Now      func() time.Time            // nil: time.Now
	Exec     func(*exec.Cmd) error       // runs Compose; nil: as a process that doesn't outlive us
	Tuning   registry.Tuning             // of the network; for tests
}

// For says which boot is asked about.
type For string

// The values of For.
const (
	ForAuto For = ""     // the next boot where a launcher is at work already, else now
	ForNow  For = "now"  // a run that begins now
	ForBoot For = "boot" // the first run of the next boot
)

// Group is a part of the world that may not be there where the checks run.
type Group string

// The groups. Settings are always checked.
const (
	GroupSettings Group = "settings"
	GroupConfig   Group = "config"
	GroupRegistry Group = "registry"
	GroupEngine   Group = "engine"
	GroupCompose  Group = "compose"
	GroupAgent    Group = "agent"
	GroupHost     Group = "host"
)

// Groups returns those that can be left out.
func Groups() []Group {
	return []Group{GroupConfig, GroupRegistry, GroupEngine, GroupCompose, GroupAgent, GroupHost}
}

// checks is the list, in the order in which a boot would come to what they look at.
func checks() []check {
	at := func(s admission.Step) func(admission.Facts) admission.Step {
		return func(admission.Facts) admission.Step { return s }
	}
	files, engine := filesAt, engineAt
	containers, judged := containersAt, gateAt
	settings, probe, gate, pull, load := at(admission.AtSettings), at(admission.AtProbe), at(admission.AtGate), at(admission.AtPull), at(admission.AtLoad)
	create, start, never := at(admission.AtCreate), at(admission.AtStart), at("")
	return []check{
		{name: "settings", group: GroupSettings, step: settings, do: checkSettings},
		{name: "boot", group: GroupHost, step: settings, do: checkBoot},
		{name: "shared directory", group: GroupConfig, step: settings, do: checkSharedDir},
		{name: "engine", group: GroupEngine, step: engine, do: checkEngine},
		{name: "containers", group: GroupEngine, step: containers, needs: []string{"engine"}, after: []string{"boot", "lock"}, do: checkContainers},
		{name: "shared volume", group: GroupEngine, step: settings, needs: []string{"shared directory", "engine"}, do: checkSharedVolume},
		{name: "report", group: GroupConfig, step: settings, needs: []string{"shared directory"}, do: checkReport},
		{name: "lock", group: GroupHost, step: settings, needs: []string{"shared directory"}, after: []string{"boot", "engine"}, do: checkLock},
		{name: "own directory", group: GroupConfig, step: settings, needs: []string{"shared directory"}, do: checkOwnDir},
		{name: "event log", group: GroupAgent, step: probe, after: []string{"lock", "shared directory"}, do: checkEventLog},
		{name: "emit", group: GroupAgent, step: probe, needs: []string{"event log"}, do: checkEmit},
		{name: "sockets", group: GroupEngine, step: judged, needs: []string{"containers"}, do: checkSockets},
		{name: "impostor", group: GroupEngine, step: probe, needs: []string{"event log", "containers"}, do: checkImpostor},
		{name: "user config", group: GroupConfig, step: files, do: checkUserConfig},
		{name: "approved list", group: GroupConfig, step: files, needs: []string{"shared directory"}, do: checkApproved},
		{name: "selection", group: GroupConfig, step: files, needs: []string{"user config", "approved list"}, after: []string{"event log"}, do: checkSelection},
		{name: "measured", group: GroupAgent, step: probe, needs: []string{"event log"}, after: []string{"boot", "own directory", "selection"}, do: checkMeasured},
		{name: "holders", group: GroupEngine, step: judged, needs: []string{"sockets"}, after: []string{"measured"}, do: checkHolders},
		{name: "record", group: GroupConfig, step: gate, needs: []string{"own directory"}, after: []string{"measured"}, do: checkRecord},
		{name: "cached manifest", group: GroupConfig, step: pull, needs: []string{"selection", "own directory"}, do: checkCached},
		{name: "manifest", group: GroupRegistry, step: pull, needs: []string{"selection"}, do: checkManifest},
		{name: "other digests", group: GroupRegistry, step: pull, needs: []string{"selection"}, after: []string{"manifest"}, do: checkOthers},
		{name: "rate limit", group: GroupRegistry, step: pull, needs: []string{"manifest"}, do: checkRate},
		{name: "image", group: GroupEngine, step: load, needs: []string{"engine"}, after: []string{"manifest", "cached manifest", "containers"}, do: checkImage},
		{name: "space", group: GroupEngine, step: load, needs: []string{"image"}, do: checkSpace},
		{name: "layers", group: GroupRegistry, step: load, needs: []string{"selection"}, after: []string{"image"}, do: checkLayers},
		{name: "sources", group: GroupRegistry, step: never, needs: []string{"user config", "selection"}, after: []string{"layers"}, do: checkSources},
		{name: "download", group: GroupRegistry, step: load, needs: []string{"manifest"}, do: checkDownload},
		{name: "fallback", group: GroupRegistry, step: pull, needs: []string{"selection"}, after: []string{"cached manifest", "manifest", "image", "layers", "download"}, do: checkFallback},
		{name: "node config", group: GroupConfig, step: create, needs: []string{"shared directory", "selection"}, do: checkNodeConfig},
		{name: "data volume", group: GroupEngine, step: create, needs: []string{"engine"}, do: checkVolume},
		{name: "compose", group: GroupCompose, step: create, do: checkCompose},
		{name: "workload", group: GroupEngine, step: create, needs: []string{"containers", "image"}, after: []string{"measured"}, do: checkWorkload},
		{name: "state", group: GroupEngine, step: start, needs: []string{"workload"}, after: []string{"sockets"}, do: checkState},
		{name: "ports", group: GroupHost, step: start, needs: []string{"user config"}, after: []string{"containers"}, do: checkPorts},
		{name: "app-compose", group: GroupAgent, step: never, after: []string{"event log"}, do: checkAppCompose},
		{name: "clock", group: GroupHost, step: never, after: []string{"rate limit"}, do: checkClock},
	}
}

// filesAt returns the step at which a boot reads user config and approved list: where an image is
// measured already, the probe has to know which one is wanted.
func filesAt(f admission.Facts) admission.Step {
	if f.AnImage() {
		return admission.AtProbe
	}
	return admission.AtConfig
}

// engineAt returns the step at which a boot ends if the engine can't be asked.
func engineAt(f admission.Facts) admission.Step {
	if f.Settings.TEE() {
		return admission.AtSettings
	}
	return admission.AtPull
}

// containersAt returns the step at which a boot first needs to know the engine's containers.
func containersAt(f admission.Facts) admission.Step {
	switch {
	case !f.Settings.TEE():
		return admission.AtCreate
	case f.Settings.Supervised():
		return admission.AtSettings
	}
	return gateAt(f)
}

// gateAt returns the step at which it judges them.
func gateAt(f admission.Facts) admission.Step {
	if f.AnImage() {
		return admission.AtProbe
	}
	return admission.AtGate
}

// Run does all checks that are wanted. Its error is the context's.
func Run(ctx context.Context, options Options) (*Report, error) {
	f := newFacts(options)
	defer f.close()
	started := f.now()
	results := runAll(ctx, checks(), f)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return f.report(results, started), nil
}
