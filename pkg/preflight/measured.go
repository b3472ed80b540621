package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/state"
)

const reboot = "reboot the CVM: what is in RTMR3 stays there until then"

// checkMeasured compares what is measured with what would be.
func checkMeasured(_ context.Context, f *facts) outcome {
	want := f.decision.Digest
	present, err := f.events.Log.Measured(want)
	if err != nil {
		return fail(OtherMeasured, err)
	}
	// Only what a boot's record refuses is looked at: whoever can write there, nothing becomes allowed by it.
	boot, known := f.own.Boot(f.bootID())
	switch {
	case !present && known && boot.Unfinished():
		return outcome{findings: []Finding{ending(MeasuredByOthers, exit.Measurement,
			fmt.Errorf("an earlier run of this boot was about to measure %s, and the log doesn't show it", boot.Digest), reboot)}}
	case !present:
		return ok("no image yet")
	case known && !boot.Explains(want):
		return outcome{findings: []Finding{ending(MeasuredByOthers, exit.Measurement,
			fmt.Errorf("%s was measured in this boot, but not by a launcher", want), reboot)}}
	}
	f.present = true
	return ok("this image", note(AlreadyMeasured, "this image is measured already; nothing would be measured again"))
}

// bootID returns the kernel's name of this boot; empty where it can't be read.
func (f *facts) bootID() string {
	id, err := state.ReadBootID(f.proc("sys/kernel/random/boot_id"))
	if err != nil {
		return ""
	}
	return id
}

// ofThisBoot tells whether a container may have been created in this boot.
func (f *facts) ofThisBoot(c inspect.Container) bool {
	id := f.bootID()
	return id != "" && c.Labels[compose.BootLabel] == id
}
