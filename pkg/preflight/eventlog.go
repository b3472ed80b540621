package preflight

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/rtmr"
)

func (f *facts) agent() *rtmr.Agent {
	return &rtmr.Agent{Socket: f.settings.AgentSocket, Patience: f.settings.Patience, Logger: f.log}
}

// checkEventLog asks the agent what is measured, and whether a verifier would believe it.
func checkEventLog(ctx context.Context, f *facts) outcome {
	switch {
	case f.settings.Platform == "":
		return outcome{unknown: "the platform isn't known"}
	case !f.settings.tee():
		return outcome{skipped: "nothing is measured outside a CVM"}
	case f.settings.AgentSocket == "":
		return outcome{unknown: "the agent's socket isn't known"}
	}
	info, err := f.agent().Info(ctx)
	var failed *rtmr.AgentError
	if errors.As(err, &failed) && failed.Fault == rtmr.Unreachable {
		return fail(AgentDown, err)
	}
	if err != nil {
		return fail(LogUnreadable, err)
	}
	if err := info.Log.Replays(); err != nil {
		return fail(LogWrong, err)
	}
	f.events = &info
	return ok(fmt.Sprintf("%d events, which replay to the register", len(info.Log.Events())))
}
