package preflight

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/rtmr"
)

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
		return outcome{unknown: "the agent doesn't tell it; --app-compose names a file"}
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
			fmt.Sprintf("sha256 is %x, measured in this CVM is %x", hash(document), measured),
			"nothing, if the document is that of another CVM"))
	}
	held := fmt.Sprintf("held against the verifiers' rules, hash %.6x…", hash(document))
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
