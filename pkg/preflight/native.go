package preflight

import (
	"errors"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

// native returns what measures without the agent; nil: the agent does.
func (f *facts) native() *rtmr.Native {
	native, _ := f.options.Native.Backend(f.agent()).(*rtmr.Native)
	return native
}

// lookNatively looks for all that measuring natively needs, and whether register and log agree. Where
// something stands in the way there is nothing to ask the agent.
func (f *facts) lookNatively() (found []Finding, ends bool) {
	var images []digest.Digest
	if f.shared != nil {
		images = state.Candidates(f.options.Settings, f.shared)
	}
	log, unfinished, faults := f.native().Look(images)
	for _, fault := range faults {
		found = append(found, f.fault(fault))
	}
	if pid, err := state.LogLockHolder(f.options.Settings, f.options.Proc); err == nil && pid != "" && !f.next {
		found = append(found, warning(RuntimeLocked,
			fmt.Sprintf("process %s holds the lock of dstack's event log; run would wait 30 s for it", pid),
			"end it if it doesn't end by itself"))
	}
	if len(faults) > 0 {
		return found, true
	}
	f.seen = &log
	if unfinished {
		f.finished = &log
	}
	if unfinished && !f.next {
		image, _ := log.Images()[0].Image()
		found = append(found, note(LineMissing, fmt.Sprintf(
			"the register holds an event for %s that dstack's event log lacks; run would complete the log", image)))
	}
	return found, false
}

// fault is the finding for what stands in the way. In the next boot register and log begin anew.
func (f *facts) fault(err error) Finding {
	codes := map[rtmr.Piece]Code{
		rtmr.NoRegisters: RegisterMissing, rtmr.ReadOnly: RegisterReadOnly,
		rtmr.NoRuntime: RuntimeMissing, rtmr.RuntimeFixed: RuntimeReadOnly,
		rtmr.OtherVersion: RuntimeVersion, rtmr.NoRoom: RuntimeFull, rtmr.Unreadable: RuntimeBroken,
	}
	code := admission.LogWrong
	var missing *rtmr.NativeError
	if errors.As(err, &missing) {
		code = codes[missing.Piece]
	}
	var rejected *rtmr.Rejection
	version := errors.As(err, &rejected) && rejected.Reason == rtmr.WrongVersion
	if f.next && (code == RuntimeBroken || code == RuntimeFull || code == admission.LogWrong && !version) {
		return warning(code, err.Error()+"; the next boot begins anew")
	}
	return failure(code, err)
}

// differs returns why the agent's log is another one than that of the kernel.
func (f *facts) differs(log rtmr.Log) error {
	if f.seen == nil || f.next {
		return nil
	}
	live, _ := f.seen.Reported()
	if quoted, _ := log.Reported(); quoted != live {
		return &rtmr.Rejection{
			Reason: rtmr.WrongRegister, Entry: "the agent quotes another register than the kernel's",
			Got: quoted.String(), Want: live.String(),
		}
	}
	return nil
}
