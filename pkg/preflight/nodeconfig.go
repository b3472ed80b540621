package preflight

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/exit"
)

// checkNodeConfig makes the node config, throws it away, and looks whether it could be written.
func checkNodeConfig(_ context.Context, f *facts) outcome {
	if f.settings.Platform == "" {
		return outcome{unknown: "the platform isn't known"}
	}
	text, err := f.config.NodeConfig(f.settings.Platform, f.decision.Digest)
	if err != nil {
		return fail(NodeConfigFails, err)
	}
	cannot := func(err error, fix string) outcome {
		return outcome{findings: []Finding{ending(NodeConfigFails, exit.Config, fmt.Errorf("node config: %w", err), fix)}}
	}
	path := f.shared.Path()
	if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
		return cannot(fmt.Errorf("writing in %s: %w", path, err), "mount the shared volume so that the launcher can write there")
	}
	if info, err := f.shared.Stat(compose.NodeConfig); err == nil && info.IsDir() {
		return cannot(errors.New(path+"/"+compose.NodeConfig+" is a directory"), "remove it: rm -r "+path+"/"+compose.NodeConfig)
	}
	return ok(fmt.Sprintf("%d bytes, could be written to %s", len(text), path))
}
