package preflight

import (
	"context"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
)

// checkVolume looks for the volume that holds the workload's keys.
func checkVolume(ctx context.Context, f *facts) outcome {
	_, err := f.engine.Volume(ctx, compose.DataVolume)
	if inspect.NotFound(err) {
		return ok("", note(DataVolumeMissing, "there is no volume "+compose.DataVolume+": it would be made, and the node would start without keys",
			"nothing for a new node; otherwise find out where it went before you boot"))
	}
	if err != nil {
		return outcome{unknown: err.Error()} // a boot doesn't ask, it makes it where it is missing
	}
	return ok(compose.DataVolume + " is there")
}
