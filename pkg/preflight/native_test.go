package preflight_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/launchtest/kernel"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/rtmr"
)

// native is a machine of dstack 0.6 whose launcher measures by itself.
func native(t *testing.T, version string) (*world, *kernel.Kernel) {
	t.Helper()
	k, err := kernel.New()
	require.NoError(t, err, "these tests need /dev/fuse, and root or fusermount3")
	t.Cleanup(func() { assert.NoError(t, k.Close()) })
	w := newWorld(t, launchtest.MachineOptions{Agent: launchtest.AgentOptions{
		Release: "0.6.0", Register: k, RuntimeDir: k.Runtime(), LogVersion: version,
	}})
	w.settings.Native = rtmr.Mounts{Registers: k.Dir(), Runtime: k.Runtime()}
	return w, k
}

// TestNative: each piece that is missing has its code, and what mends it; run ends as verify says,
// and verify changes nothing.
func TestNative(t *testing.T) {
	t.Parallel()
	const registers, events = "/sys/devices/virtual/misc/tdx_guest/measurements:/run/tsm", "/run/log/dstack:/run/log/dstack"
	readOnly := func(w *world, of *string) {
		place, end, err := kernel.ReadOnly(*of)
		require.NoError(w.t, err)
		w.t.Cleanup(func() { assert.NoError(w.t, end()) })
		*of = place
	}
	logFile := func(w *world) string { return filepath.Join(w.settings.Native.Runtime, "runtime_events.log") }
	add := func(w *world, text string) {
		data := w.read(logFile(w))
		require.NoError(w.t, os.WriteFile(logFile(w), append(data, text...), 0o600))
	}
	ahead := func(w *world, k *kernel.Kernel, i int) {
		k.Extend(rtmr.DigestV1(rtmr.EventName, w.Digests[i][:]))
	}
	for name, c := range map[string]struct {
		version string
		prepare func(*world, *kernel.Kernel)
		expect  []string
		fix     string
		exit    exit.Code
		next    []string // what is found for the next boot
		noted   preflight.Code
	}{
		"healthy": {},
		"measured": {
			prepare: func(w *world, _ *kernel.Kernel) { w.Agent.Emit(rtmr.EventName, w.Digests[0][:]) },
			noted:   preflight.AlreadyMeasured,
		},
		"no registers": {
			prepare: func(w *world, _ *kernel.Kernel) { w.settings.Native.Registers = w.t.TempDir() },
			expect:  []string{"NAT001"}, fix: registers, exit: exit.Measurement, next: []string{"NAT001"},
		},
		"read-only registers": {
			prepare: func(w *world, _ *kernel.Kernel) { readOnly(w, &w.settings.Native.Registers) },
			expect:  []string{"NAT002"}, fix: registers, exit: exit.Measurement, next: []string{"NAT002"},
		},
		"no log": {
			prepare: func(w *world, _ *kernel.Kernel) { w.settings.Native.Runtime = w.t.TempDir() },
			expect:  []string{"NAT003"}, fix: events, exit: exit.Measurement, next: []string{"NAT003"},
		},
		"a read-only log": {
			prepare: func(w *world, _ *kernel.Kernel) { readOnly(w, &w.settings.Native.Runtime) },
			expect:  []string{"NAT004"}, fix: events, exit: exit.Measurement, next: []string{"NAT004"},
		},
		"nothing at all": {
			prepare: func(w *world, _ *kernel.Kernel) {
				w.settings.Native = rtmr.Mounts{Registers: "/nonexistent", Runtime: "/nonexistent"}
			},
			expect: []string{"NAT001", "NAT003"}, fix: events, exit: exit.Measurement, next: []string{"NAT001", "NAT003"},
		},
		"version 2": {
			version: "2", expect: []string{"NAT005"}, fix: "version 2", exit: exit.Measurement, next: []string{"NAT005"},
		},
		"a full /run": {
			prepare: func(w *world, _ *kernel.Kernel) {
				place, end, err := kernel.Small(8 * 4096)
				require.NoError(w.t, err)
				w.t.Cleanup(func() { assert.NoError(w.t, end()) })
				w.Agent.Emit("pad", make([]byte, (4096-len(w.read(logFile(w)))-40)/4*3))
				w.Agent.Move(place)
				w.settings.Native.Runtime = place
				fillUp(w, place)
			},
			expect: []string{"NAT006"}, fix: "free space", exit: exit.Measurement, next: []string{"NAT006"},
		},
		"a full /run, in whose log the line fits": {
			prepare: func(w *world, _ *kernel.Kernel) {
				place, end, err := kernel.Small(8 * 4096)
				require.NoError(w.t, err)
				w.t.Cleanup(func() { assert.NoError(w.t, end()) })
				w.Agent.Move(place)
				w.settings.Native.Runtime = place
				fillUp(w, place)
			},
		},
		"a lock": {
			prepare: func(w *world, _ *kernel.Kernel) {
				path := filepath.Join(w.settings.Native.Runtime, "runtime_event.lock")
				var stat unix.Stat_t
				require.NoError(w.t, unix.Stat(path, &stat))
				w.write("proc/locks", fmt.Sprintf("1: FLOCK  ADVISORY  WRITE 4711 %02x:%02x:%d 0 EOF\n",
					unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino))
			},
			expect: []string{"NAT007"}, fix: "end it",
		},
		"nonsense": {
			prepare: func(w *world, _ *kernel.Kernel) { add(w, "nonsense\n") },
			expect:  []string{"NAT008"}, fix: "reboot", exit: exit.Measurement, next: []string{"NAT008"},
		},
		"half a line": {
			prepare: func(w *world, _ *kernel.Kernel) { add(w, `{"event":"mpc`) },
			expect:  []string{"NAT008"}, fix: "reboot", exit: exit.Measurement, next: []string{"NAT008"},
		},
		"a line that is missing": {
			prepare: func(w *world, k *kernel.Kernel) { ahead(w, k, 0) }, noted: preflight.LineMissing,
		},
		"half a line, of an event in the register": {
			prepare: func(w *world, k *kernel.Kernel) { ahead(w, k, 0); add(w, `{"event":"mpc`) },
			noted:   preflight.LineMissing,
		},
		"a line of an older image": {
			prepare: func(w *world, k *kernel.Kernel) {
				require.NoError(w.t, w.Approve(w.Digests[0], w.Digests[1]))
				ahead(w, k, 1)
			},
			noted: preflight.LineMissing,
		},
		"an extension without a line": {
			prepare: func(w *world, k *kernel.Kernel) { ahead(w, k, 1) },
			expect:  []string{"AGT004"}, fix: "reboot", exit: exit.Measurement, next: []string{"AGT004"},
		},
		"another machine's agent": {
			prepare: func(w *world, _ *kernel.Kernel) {
				other, _ := native(w.t, "")
				other.Agent.Emit("vault", nil)
				w.settings.AgentSocket = other.AgentSocket
			},
			expect: []string{"NAT010"}, fix: "", exit: exit.Measurement,
		},
		"an intent of which nothing came": {
			prepare: func(w *world, _ *kernel.Kernel) {
				w.write("shared/launcher/measurement.json", `{"boot_id":"@boot@","digest":"@digest0@","intent":"2026-01-02T03:04:05Z","done":false}`)
			},
		},
		"a privileged container": {
			prepare: func(w *world, _ *kernel.Kernel) {
				w.load()
				w.keep()
				w.engine(http.MethodPost, "/containers/create?name=other", map[string]any{
					"Image": w.names["@config0@"], "Cmd": []string{"sleep"},
					"HostConfig": map[string]any{"Privileged": true},
				})
				w.engine(http.MethodPost, "/containers/other/start", nil)
			},
			expect: []string{"ENG008"}, fix: "docker stop", exit: exit.Measurement,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, k := native(t, c.version)
			if c.prepare != nil {
				c.prepare(w, k)
			}
			before := runtimeFiles(t, w.settings.Native)
			report := w.run()
			assert.Equal(t, c.exit, report.ExitCode, "%s", report.Summary)
			assert.Equal(t, c.expect, codes(report))
			if c.noted != "" {
				assert.True(t, noted(report, c.noted))
			}
			var fixes []string
			for _, check := range report.Checks {
				for _, f := range check.Findings {
					fixes = append(fixes, f.Fix...)
				}
			}
			assert.Contains(t, strings.Join(fixes, "\n"), c.fix)
			next := w.settings
			next.For = preflight.ForBoot
			after, err := preflight.Run(t.Context(), next)
			require.NoError(t, err)
			if name != "another machine's agent" && name != "a privileged container" {
				assert.Subset(t, append(c.next, ""), codes(after))
				if len(c.next) > 0 && !strings.HasPrefix(c.next[0], "NAT008") && c.next[0] != "AGT004" && c.next[0] != "NAT006" {
					assert.Equal(t, exit.Measurement, after.ExitCode)
				} else {
					assert.Equal(t, exit.OK, after.ExitCode, "the next boot begins anew: %s", after.Summary)
				}
			}
			assert.Equal(t, before, runtimeFiles(t, w.settings.Native), "it changed something")
			extended, _ := k.Writes()
			assert.Zero(t, extended)

			// And so does run.
			now := time.Now()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l := launch.Launcher{Settings: w.settings.Settings, BootID: bootID, Output: &once{then: cancel},
				Now: func() time.Time { return now },
				Sleep: func(ctx context.Context, d time.Duration) error {
					now = now.Add(d)
					return ctx.Err()
				}}
			got := l.Run(ctx)
			if c.exit == exit.OK {
				require.NoError(t, got)
				log, err := rtmr.Parse([]byte(w.Agent.TCBInfo()))
				require.NoError(t, err)
				_, err = log.Accepted()
				assert.NoError(t, err)
			} else {
				assert.Equal(t, c.exit, exit.Of(got), "%v", got)
				extended, _ := k.Writes()
				assert.Zero(t, extended)
			}
		})
	}
}

func fillUp(w *world, dir string) {
	f, err := os.Create(filepath.Join(dir, "filler"))
	require.NoError(w.t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.ErrorIs(w.t, err, unix.ENOSPC)
}

// once ends a launcher as soon as it says that all is well.
type once struct{ then func() }

func (o *once) Write(p []byte) (int, error) {
	if strings.Contains(string(p), launch.Launched) {
		o.then()
	}
	return len(p), nil
}

// runtimeFiles returns what the launcher could have changed.
func runtimeFiles(t *testing.T, m rtmr.Mounts) string {
	t.Helper()
	var b strings.Builder
	entries, _ := os.ReadDir(m.Runtime)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		fmt.Fprintln(&b, e.Name(), info.Size(), info.ModTime().UnixNano(), info.Mode())
	}
	return b.String()
}
