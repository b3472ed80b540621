package preflight

import "context"

// checkEmit asks, without effect, whether the agent can measure an event.
func checkEmit(ctx context.Context, f *facts) outcome {
	if len(f.events.Log.Images()) > 0 {
		return outcome{skipped: "an image is measured already"}
	}
	if err := f.agent().CanEmit(ctx); err != nil {
		return fail(AgentCannotEmit, err)
	}
	return ok("the agent can measure")
}
