package preflight

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
)

const reboot = "reboot the CVM: what is in RTMR3 stays there until then"

// checkMeasured compares what is measured with what would be.
func checkMeasured(_ context.Context, f *facts) outcome {
	want := f.decision.Digest
	present, err := f.events.Log.Admit(want)
	if err != nil {
		return fail(OtherMeasured, err)
	}
	// Only what a boot's record refuses is looked at: whoever can write there, nothing becomes allowed by it.
	boot, known := f.bootRecord()
	switch {
	case !present && known && !boot.Done && !boot.Intent.IsZero():
		return outcome{findings: []Finding{ending(MeasuredByOthers, exit.Measurement,
			fmt.Errorf("an earlier run of this boot was about to measure %s, and the log doesn't show it", boot.Digest), reboot)}}
	case !present:
		return ok("no image yet")
	case known && (boot.Digest != want || boot.Intent.IsZero()):
		return outcome{findings: []Finding{ending(MeasuredByOthers, exit.Measurement,
			fmt.Errorf("%s was measured in this boot, but not by a launcher", want), reboot)}}
	}
	f.present = true
	return ok("this image", note(AlreadyMeasured, "this image is measured already; nothing would be measured again"))
}

// bootRecord is what a run of this boot wrote down in the launcher's own directory.
type bootRecord struct {
	BootID string    `json:"boot_id"`
	Digest v1.Hash   `json:"digest,omitzero"`
	Intent time.Time `json:"intent,omitzero"`
	Done   bool      `json:"done"`
}

// bootRecord returns the record of this boot; one of another boot, or one that can't be read, says nothing.
func (f *facts) bootRecord() (bootRecord, bool) {
	if f.shared == nil {
		return bootRecord{}, false
	}
	data, err := f.readOwn("measurement.json", 4<<10)
	if err != nil {
		return bootRecord{}, false
	}
	var got bootRecord
	if json.Unmarshal(data, &got) != nil || got.BootID == "" || got.BootID != f.bootID() {
		return bootRecord{}, false
	}
	return got, true
}

// bootID returns the kernel's name of this boot; empty where it can't be read.
func (f *facts) bootID() string {
	id, err := files.ReadFile(f.proc("sys/kernel/random/boot_id"), 64)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// ofThisBoot tells whether a container may have been created in this boot.
func (f *facts) ofThisBoot(c inspect.Container) bool {
	id := f.bootID()
	return id != "" && c.Labels[compose.BootLabel] == id
}
