package preflight

import (
	"context"

	"tee-launcher/pkg/compose"
)

// checkCompose finds the Compose to use and asks it for its version.
func checkCompose(ctx context.Context, f *facts) outcome {
	if f.options.DockerHost == "" {
		return outcome{unknown: "the engine's socket isn't known"}
	}
	tool, err := compose.Find(ctx, f.options.Compose, f.options.DockerHost)
	if err != nil {
		return fail(ComposeMissing, err)
	}
	return ok(tool.String() + " " + tool.Version())
}
