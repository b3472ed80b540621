package preflight

import (
	"context"
	"fmt"
	"runtime"

	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
)

// oldestAPI is the minor version of the API of the oldest engine that was tried, 20.10.
const oldestAPI = 41

// checkEngine asks the engine what it is.
func checkEngine(ctx context.Context, f *facts) outcome {
	if f.settings.DockerHost == "" {
		return outcome{unknown: "the engine's socket isn't known"}
	}
	engine, err := inspect.New(f.settings.DockerHost)
	if err != nil {
		return outcome{findings: []Finding{ending(EngineDown, exit.Usage, err)}}
	}
	info, err := engine.Info(ctx)
	if err != nil {
		return fail(EngineDown, err)
	}
	self, err := f.findSelf(ctx, engine)
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

// findSelf returns our own container; the zero value for a plain binary. Where nothing can be seen we are nobody's container.
func (f *facts) findSelf(ctx context.Context, engine *inspect.Engine) (inspect.Container, error) {
	mounts, err := files.ReadFile(f.proc("self/mountinfo"), inspect.MaxMountinfo)
	if err != nil {
		return inspect.Container{}, nil
	}
	return engine.Self(ctx, mounts)
}
