package preflight

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/rtmr"
)

func (f *facts) agent() *rtmr.Agent {
	return &rtmr.Agent{Socket: f.options.AgentSocket, Patience: f.options.Patience, Logger: f.log}
}

// checkEventLog asks the agent what is measured, and whether a verifier would believe it.
func checkEventLog(ctx context.Context, f *facts) outcome {
	switch {
	case f.options.Platform == "":
		return outcome{unknown: "the platform isn't known"}
	case !f.options.TEE():
		return outcome{skipped: "nothing is measured outside a CVM"}
	case f.options.AgentSocket == "":
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
	f.events = &info
	if err := admission.Decide(admission.Facts{Settings: f.options.Settings, Log: &info.Log}).Err(); err != nil {
		var rejected *rtmr.Rejection
		if found := refused("", err); !f.next || errors.As(err, &rejected) && rejected.Reason == rtmr.WrongVersion {
			return outcome{findings: []Finding{found}}
		} else {
			return ok("", warning(found.Code, found.Found+"; the next boot begins another one"))
		}
	}
	return ok(fmt.Sprintf("%d events, which replay to the register", len(info.Log.Events())))
}
