package preflight

import "context"

// checkEmit asks, without effect, whether the agent can measure an event.
func checkEmit(ctx context.Context, f *facts) outcome {
	if log := f.logged(); log != nil && len(log.Images()) > 0 {
		return outcome{skipped: "an image is measured already"}
	}
	if err := f.agent().CanEmit(ctx); err != nil {
		return fail(AgentCannotEmit, err)
	}
	return ok("the agent can measure")
}
