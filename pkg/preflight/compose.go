package preflight

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/state"
)

// checkNodeConfig makes the node config, throws it away, and looks whether it could be written.
func checkNodeConfig(_ context.Context, f *facts) outcome {
	if f.options.Platform == "" {
		return outcome{unknown: "the platform isn't known"}
	}
	text, err := f.config.NodeConfig(f.options.Platform, f.decision.Digest)
	if err != nil {
		return fail(admission.NodeConfigFails, err)
	}
	if err := state.CanWriteNodeConfig(f.shared, len(text)); err != nil {
		return refuse("", err)
	}
	return ok(fmt.Sprintf("%d bytes, could be written to %s", len(text), f.shared.Path()))
}

// checkCompose finds the Compose to use and asks it for its version.
func checkCompose(ctx context.Context, f *facts) outcome {
	if f.options.DockerHost == "" {
		return outcome{unknown: "the engine's socket isn't known"}
	}
	tool, err := compose.Find(ctx, f.options.Compose, f.options.DockerHost, f.options.Unmeasured(), f.options.Exec)
	if err != nil {
		return fail(ComposeMissing, err)
	}
	return ok(tool.String() + " " + tool.Version())
}

// Rendered is what a boot would give to Compose and to the workload.
type Rendered struct {
	Compose    string `json:"compose"`
	NodeConfig string `json:"node_config"` // holds the node's secrets
}

// Render makes the Compose file and the node config of a boot. Without an engine, or where it doesn't answer, the image in the Compose file is the
// digest of its config.
func Render(ctx context.Context, options Options) (*Rendered, error) {
	f := newFacts(options)
	defer f.close()
	for _, question := range []func(context.Context, *facts) outcome{checkSharedDir, checkUserConfig, checkApproved, checkSelection, checkCached} {
		if err := firstError(question(ctx, f)); err != nil {
			return nil, err
		}
	}
	if !f.cached.Valid() {
		v, err := f.sourceOf(f.decision.Digest).Resolve(ctx)
		if err != nil {
			return nil, err
		}
		f.image = v
	}
	id := f.verified().ConfigDigest()
	if o := checkEngine(ctx, f); f.engine != nil {
		id = inspect.ID(f.info.Store, f.verified())
	} else {
		f.log.Warn("no engine: the image is named by the digest of its config", "cause", firstError(o))
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	compose, err := f.workload().Render(id.String())
	if err != nil {
		return nil, fmt.Errorf("rendering the compose file: %w", err)
	}
	node, err := f.config.NodeConfig(options.Platform, f.decision.Digest)
	if err != nil {
		return nil, err
	}
	return &Rendered{Compose: string(compose), NodeConfig: string(node)}, nil
}

// firstError returns the errors of an outcome as one, with the exit code of the first.
func firstError(o outcome) error {
	var errs []error
	var code exit.Code
	var fix []string
	for _, f := range o.findings {
		if f.Severity != Error {
			continue
		}
		if len(errs) == 0 {
			code, fix = f.ExitCode, f.Fix
		}
		errs = append(errs, errors.New(f.Found))
	}
	if len(errs) == 0 {
		return nil
	}
	return &exit.Error{Code: code, Err: errors.Join(errs...), Hint: fix}
}
