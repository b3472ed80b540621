package preflight_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
)

func TestTheLockIsSeenAndNotTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	assert.Equal(t, "free", result(t, w.run(), "lock").Detail)
	info, err := os.Stat(w.SharedDir)
	require.NoError(t, err)
	stat, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	w.write("proc/locks", "1: POSIX  ADVISORY  WRITE 1 "+file+" 0 EOF\n2: FLOCK  ADVISORY  WRITE 1 00:00:1 0 EOF\n")
	assert.Equal(t, "free", result(t, w.run(), "lock").Detail)
	w.write("proc/locks", "2: FLOCK  ADVISORY  WRITE 1234 "+file+" 0 EOF\n")
	report := w.run()
	assert.True(t, noted(report, admission.AnotherLauncher), "%+v", result(t, report, "lock"))
	assert.Equal(t, exit.OK, report.ExitCode, "the next boot is what is asked about")
	assert.Equal(t, preflight.ForBoot, report.For)
	assert.Regexp(t, "^At the next boot, .* with the list, config and sources as they are now.$", report.Summary)
	// One that waits for its next attempt, and what says so without being one.
	const too = "; the same goes for the next attempt of the launcher that waits here."
	for text, waits := range map[string]bool{
		`{"boot_id":"` + bootID + `","exit_code":null,"error":"pull: not there"}`: true,
		`{"boot_id":"` + bootID + `","exit_code":null,"error":null}`:              false,
		`{"boot_id":"` + bootID + `","exit_code":5,"error":"pull: not there"}`:    false,
		`{"boot_id":"another","exit_code":null,"error":"pull: not there"}`:        false,
		`{"boot_id":`: false,
	} {
		w.write("shared/launcher/report.json", text)
		assert.Equal(t, waits, strings.HasSuffix(w.run().Summary, too), "%s", text)
	}
	w.write("shared/launcher/report.json", `{"boot_id":"`+bootID+`","exit_code":null,"error":"pull: not there"}`)
	w.settings.Report = admission.NoReport
	assert.NotContains(t, w.run().Summary, too)
	w.settings.Report = w.path("shared/launcher/report.json")
	assert.Contains(t, w.run().Summary, too)
	w.settings.Report = ""
	w.load()
	w.keep()
	assert.NotContains(t, w.run().Summary, too, "the image may be gone by the next boot")
	w.Agent.Emit("mpc-image-digest", make([]byte, 32))
	assert.NotContains(t, w.run().Summary, too, "what is measured stays for this boot alone")
	w.settings.For = preflight.ForNow
	w.Agent.Reboot()
	report = w.run()
	assert.Equal(t, []string{"HST003"}, codes(report))
	assert.Equal(t, exit.Busy, report.ExitCode)
	assert.Equal(t, preflight.ForNow, report.For)

	dir, err := files.OpenDir(w.SharedDir)
	require.NoError(t, err)
	defer dir.Close()
	impatient := func(context.Context, time.Duration) error { return files.ErrLocked }
	assert.NoError(t, dir.Lock(t.Context(), impatient), "nobody else took it")
}

// TestAnUnknownPlatform says of nothing that it doesn't matter outside a CVM.
func TestAnUnknownPlatform(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.Platform = ""
	report := w.run()
	for _, check := range []string{"event log", "sockets", "record", "node config"} {
		r := result(t, report, check)
		assert.Equal(t, "the platform isn't known", r.Detail, check)
		assert.Equal(t, preflight.Unchecked, r.Status, check)
	}
}
