package preflight

import (
	"context"
	"fmt"
	"runtime"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/state"
)

// oldestAPI is the minor version of the API of the oldest engine that was tried, 20.10.
const oldestAPI = 41

// checkEngine asks the engine what it is.
func checkEngine(ctx context.Context, f *facts) outcome {
	if f.options.DockerHost == "" {
		return outcome{unknown: "the engine's socket isn't known"}
	}
	engine, err := inspect.New(f.options.DockerHost)
	if err != nil {
		return outcome{findings: []Finding{ending(EngineDown, exit.Usage, err)}}
	}
	info, err := engine.Info(ctx)
	if err != nil {
		return fail(EngineDown, err)
	}
	if err := admission.Engine(info); err != nil {
		return refuse("", err)
	}
	self, err := state.Self(ctx, engine, f.options.Proc)
	if err != nil {
		return fail(EngineContradicts, err)
	}
	f.engine, f.info, f.self = engine, info, self
	var found []Finding
	if !info.APIAtLeast(oldestAPI) {
		found = append(found, warning(EngineOld, fmt.Sprintf("engine %s speaks API %s; 1.%d, which is 20.10, is the oldest that was tried", info.Version, info.API, oldestAPI),
			"upgrade the Docker engine"))
	}
	if info.OS != "linux" || info.Architecture != runtime.GOARCH {
		found = append(found, warning(EngineOther, fmt.Sprintf("the engine is for %s/%s, the launcher and the image that it would pull are for linux/%s",
			info.OS, info.Architecture, runtime.GOARCH), "use the launcher that was built for the engine's machine"))
	}
	return ok(fmt.Sprintf("%s, API %s, %s store, %s/%s", info.Version, info.API, info.Store, info.OS, info.Architecture), found...)
}
