package preflight

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
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
	var found []Finding
	if f.native() != nil {
		var ends bool
		if found, ends = f.lookNatively(); ends {
			return outcome{findings: found}
		}
		if f.finished != nil { // the agent can't read it until then
			f.events = &rtmr.Info{Log: *f.finished}
			return ok("as it is once it is completed", found...)
		}
	}
	info, err := f.agent().Info(ctx)
	var failed *rtmr.AgentError
	if errors.As(err, &failed) && failed.Fault == rtmr.Unreachable {
		return fail(AgentDown, err)
	}
	if err != nil {
		return fail(LogUnreadable, err)
	}
	if err := f.differs(info.Log); err != nil {
		return fail(RegisterDiffers, err)
	}
	f.events = &info
	if err := admission.Decide(admission.Facts{Settings: f.options.Settings, Log: &info.Log}).Err(); err != nil {
		var rejected *rtmr.Rejection
		if finding := refused("", err); !f.next || errors.As(err, &rejected) && rejected.Reason == rtmr.WrongVersion {
			return outcome{findings: append(found, finding)}
		} else {
			return ok("", append(found, warning(finding.Code, finding.Found+"; the next boot begins a new one"))...)
		}
	}
	return ok(fmt.Sprintf("%d events, which replay to the register", len(info.Log.Events())), found...)
}

// checkEmit asks, without effect, whether the agent can measure an event.
func checkEmit(ctx context.Context, f *facts) outcome {
	if log := f.logged(); log != nil && len(log.Images()) > 0 {
		return outcome{skipped: "an image is already measured"}
	}
	if f.native() != nil {
		return outcome{skipped: "the launcher measures by itself"}
	}
	if err := f.agent().CanEmit(ctx); err != nil {
		return fail(AgentCannotEmit, err)
	}
	return ok("the agent can measure")
}

// checkMeasured judges what is measured, and by whom, as far as the log and the records of this
// boot tell.
func checkMeasured(_ context.Context, f *facts) outcome {
	if f.next {
		return outcome{skipped: "nothing is measured yet when a boot begins"}
	}
	known := f.measuring()
	if known.AnImage() && known.Wanted == nil {
		return outcome{unknown: "it isn't known which image is wanted"}
	}
	verdict := admission.Decide(known)
	if err := verdict.Err(); err != nil {
		return refuse("", err)
	}
	if f.present = verdict.Measured; !f.present {
		return ok("no image yet")
	}
	return ok("this image", note(AlreadyMeasured, "this image is already measured; nothing would be measured again"))
}

// maxAppCompose bounds an app-compose document.
const maxAppCompose = 4 << 20

// checkAppCompose holds an app-compose, and what the agent says beside it, against the verifier's
// rules. A boot goes on whatever is found: an older attestation may still count. But the next one
// would be refused, and mending it needs a new CVM.
func checkAppCompose(_ context.Context, f *facts) outcome {
	findings := f.objections()
	document, err := f.appCompose()
	switch {
	case err != nil:
		return outcome{findings: append(findings, ending(AppComposeBroken, exit.Config, err))}
	case document == nil && len(findings) > 0:
		return outcome{findings: findings}
	case document == nil:
		return outcome{unknown: "the agent doesn't give it; name a file with --app-compose"}
	}
	found, err := judge(document)
	if err != nil {
		code := exit.Measurement
		if f.options.AppCompose != "" {
			code = exit.Config
		}
		found = []Finding{ending(AppComposeBroken, code, fmt.Errorf("app-compose: %w", err))}
	}
	findings = append(findings, found...)
	if measured, ok := f.measuredCompose(); ok && !bytes.Equal(measured, hash(document)) {
		findings = append(findings, warning(AppComposeDiffers,
			fmt.Sprintf("its sha256 is %x, but %x is measured in this CVM", hash(document), measured),
			"nothing to do if the document is that of another CVM"))
	}
	held := fmt.Sprintf("checked against the verifiers' rules, hash %.6x…", hash(document))
	return ok(held, findings...)
}

// appCompose returns the document that was named, or the agent's; nil: there is none.
func (f *facts) appCompose() ([]byte, error) {
	if f.options.AppCompose != "" {
		data, err := files.ReadFile(f.options.AppCompose, maxAppCompose)
		if err != nil {
			return nil, fmt.Errorf("app-compose: %w", err)
		}
		return data, nil
	}
	if f.events == nil || f.events.AppCompose == "" {
		return nil, nil
	}
	return []byte(f.events.AppCompose), nil
}

// objections returns for what else than app-compose and image a verifier refuses the event log.
func (f *facts) objections() []Finding {
	if f.events == nil {
		return nil
	}
	var findings []Finding
	for _, objection := range f.events.Log.Objections() {
		var rejected *rtmr.Rejection
		if errors.As(objection, &rejected) && rejected.Reason != rtmr.AppCompose {
			findings = append(findings,
				ending(LogRefused, exit.Measurement, objection, exit.Hints(objection)...))
		}
	}
	return findings
}

func hash(document []byte) []byte {
	sum := sha256.Sum256(document)
	return sum[:]
}

// measuredCompose returns the hash of the app-compose that this boot measured.
func (f *facts) measuredCompose() ([]byte, bool) {
	if f.events == nil {
		return nil, false
	}
	for _, e := range f.events.Log.Events() {
		if e.Name == "compose-hash" {
			return e.Payload, true
		}
	}
	return nil, false
}

// judge returns what breaks the verifier's rules.
func judge(document []byte) ([]Finding, error) {
	faults, err := rtmr.JudgeAppCompose(document)
	if err != nil {
		return nil, err
	}
	codes := map[rtmr.FaultKind]Code{
		rtmr.RefusedValue:  AppComposeRefused,
		rtmr.RefusedField:  AppComposeUnknown,
		rtmr.RefusedScript: AppComposeScript,
	}
	var found []Finding
	for _, fault := range faults {
		found = append(found, ending(codes[fault.Kind], exit.Measurement, errors.New(fault.Message),
			"correct the app-compose; it needs a new CVM, because its hash is measured"))
	}
	return found, nil
}
