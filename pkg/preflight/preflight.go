// Package preflight answers, without doing anything, whether a boot would succeed and with what result.
//
// It is a list of independent checks, each in a file of its own, that run at the same time as far as none needs what another one finds
// out. All of them run, whatever the others find, and what they find has a stable code, a severity, and what to do about it.
//
// It guarantees that it loads, writes, measures and starts nothing: it can't reach the code that does (its imports are tested), and
// the doubles of its tests saw no effect after any misconfiguration that it is tested with. A good answer is no promise: what was
// checked can change before the boot.
package preflight

import (
	"context"
	"log/slog"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/registry"
)

// Settings is what the boot's flags and environment say, and what to check.
type Settings struct {
	Platform      config.Platform // empty where it isn't known
	DefaultDigest v1.Hash
	ConfigFile    string
	SharedDir     string
	AgentSocket   string
	DockerHost    string
	Compose       string
	Insecure      []string
	Supervised    bool     // whether the boot would look after the workload itself
	Mistakes      []error  // in flags and environment, which the boot would end at
	Warnings      []string // about the environment

	Skip       []Group // what is left out
	Offline    bool    // leave out what needs a network
	Deep       bool    // also download and hash every layer
	AppCompose string  // path of an app-compose document; empty: the agent's

	Log      *slog.Logger                // nil: none
	Patience time.Duration               // how long the event log is read again that can't be had; 0: 5 s
	Proc     string                      // where the kernel shows processes, locks and sockets; empty: /proc
	Free     func(string) (int64, error) // free bytes at a path; nil: what the file system says
	Now      func() time.Time            // nil: time.Now
	Tuning   registry.Tuning             // of the network; for tests
}

func (s Settings) tee() bool { return s.Platform == config.TEE }

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
	return []check{
		{name: "settings", group: GroupSettings, step: atSettings, do: checkSettings},
		{name: "shared directory", group: GroupConfig, step: atSettings, do: checkSharedDir},
		{name: "lock", group: GroupHost, step: atSettings, needs: []string{"shared directory"}, do: checkLock},
		{name: "event log", group: GroupAgent, step: atProbe, do: checkEventLog},
		{name: "emit", group: GroupAgent, step: atProbe, needs: []string{"event log"}, do: checkEmit},
		{name: "user config", group: GroupConfig, step: atConfig, do: checkUserConfig},
		{name: "approved list", group: GroupConfig, step: atConfig, needs: []string{"shared directory"}, do: checkApproved},
		{name: "selection", group: GroupConfig, step: atConfig, needs: []string{"user config", "approved list"}, do: checkSelection},
		{name: "measured", group: GroupAgent, step: atProbe, needs: []string{"event log", "selection"}, do: checkMeasured},
		{name: "engine", group: GroupEngine, step: atEngine, do: checkEngine},
		{name: "containers", group: GroupEngine, step: atEngine, needs: []string{"engine"}, after: []string{"event log", "measured"}, do: checkContainers},
		{name: "kept copy", group: GroupConfig, step: atPull, needs: []string{"selection"}, do: checkKept},
		{name: "manifest", group: GroupRegistry, step: atPull, needs: []string{"selection"}, do: checkManifest},
		{name: "other digests", group: GroupRegistry, step: atPull, needs: []string{"selection"}, after: []string{"manifest"}, do: checkOthers},
		{name: "rate limit", group: GroupRegistry, step: atPull, needs: []string{"manifest"}, do: checkRate},
		{name: "image", group: GroupEngine, step: atLoad, needs: []string{"engine"}, after: []string{"manifest", "kept copy"}, do: checkImage},
		{name: "space", group: GroupEngine, step: atLoad, needs: []string{"image"}, do: checkSpace},
		{name: "layers", group: GroupRegistry, step: atLoad, needs: []string{"manifest"}, after: []string{"image"}, do: checkLayers},
		{name: "download", group: GroupRegistry, step: atLoad, needs: []string{"manifest"}, do: checkDownload},
		{name: "node config", group: GroupConfig, step: atCreate, needs: []string{"shared directory", "selection"}, do: checkNodeConfig},
		{name: "data volume", group: GroupEngine, step: atCreate, needs: []string{"engine"}, do: checkVolume},
		{name: "compose", group: GroupCompose, step: atCreate, do: checkCompose},
		{name: "workload", group: GroupEngine, step: atCreate, needs: []string{"containers", "image"}, after: []string{"measured"}, do: checkWorkload},
		{name: "ports", group: GroupHost, step: atStart, needs: []string{"user config"}, after: []string{"engine"}, do: checkPorts},
		{name: "app-compose", group: GroupAgent, step: atEnd, after: []string{"event log"}, do: checkAppCompose},
		{name: "clock", group: GroupHost, step: atEnd, after: []string{"rate limit"}, do: checkClock},
	}
}

// Run does all checks that are wanted. Its error is the context's.
func Run(ctx context.Context, settings Settings) (*Report, error) {
	f := newFacts(settings)
	defer f.close()
	started := f.now()
	results := runAll(ctx, checks(), f)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return f.report(results, started), nil
}
