package preflight

import (
	"context"

	"tee-launcher/pkg/admission"
)

// checkMeasured judges what is measured, and by whom, as far as the log and the records of this
// boot tell.
func checkMeasured(_ context.Context, f *facts) outcome {
	if f.next {
		return outcome{skipped: "nothing is measured yet when a boot begins"}
	}
	known := f.measuring()
	if known.AnImage() && known.Wanted == nil {
		return outcome{unknown: "which image is meant isn't known"}
	}
	verdict := admission.Decide(known)
	if err := verdict.Err(); err != nil {
		return refuse("", err)
	}
	if f.present = verdict.Measured; !f.present {
		return ok("no image yet")
	}
	return ok("this image", note(AlreadyMeasured, "this image is measured already; nothing would be measured again"))
}
