package launch_test

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/launchtest/kernel"
	"tee-launcher/pkg/rtmr"
)

// nativeWorld is a machine of dstack 0.6 whose launcher measures by itself.
func nativeWorld(t *testing.T) (*world, *kernel.Kernel) {
	t.Helper()
	k, err := kernel.New()
	require.NoError(t, err, "these tests need /dev/fuse, and root or fusermount3")
	t.Cleanup(func() { assert.NoError(t, k.Close()) })
	w := newWorld(t, options{machine: launchtest.MachineOptions{Agent: launchtest.AgentOptions{
		Release: "0.6.0", Register: k, RuntimeDir: k.Runtime(),
	}}})
	w.settings.Native = rtmr.Mounts{Registers: k.Dir(), Runtime: k.Runtime()}
	return w, k
}

func TestANativeBoot(t *testing.T) {
	t.Parallel()
	w, k := nativeWorld(t)
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Equal(t, "running", w.status())
	report := w.report()
	assert.Equal(t, w.Agent.RTMR3(), report.Measurement.RTMR3)
	assert.False(t, report.Measurement.AlreadyPresent)

	require.NoError(t, w.Approve(w.Digests[1], w.Digests[0])) // for the next boot
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.True(t, w.report().Measurement.AlreadyPresent)
	assert.Equal(t, 1, w.workload().Starts)
	extended, refused := k.Writes()
	assert.Equal(t, [2]int{1, 0}, [2]int{extended, refused})
	assert.Equal(t, []string{"Info"}, slices.Compact(w.Agent.Requests()))

	w.reboot()
	w.mustBoot()
	w.accepted(w.Digests[1])
}

// TestTheAgentIsNotReplaced: no way falls back to the other.
func TestTheAgentIsNotReplaced(t *testing.T) {
	t.Parallel()
	w, k := nativeWorld(t)
	native := w.settings.Native
	w.settings.Native = rtmr.Mounts{}
	assert.Equal(t, exit.Measurement, w.boot())
	assert.Contains(t, w.stderr, "LAUNCHER_MEASURE=native")
	w.settings.Native = native
	w.settings.Native.Registers = t.TempDir()
	assert.Equal(t, exit.Measurement, w.boot())
	assert.Contains(t, w.stderr, "hint: have this line under volumes")
	assert.Equal(t, launch.Status("failed"), w.stepStatus("probe"))
	extended, _ := k.Writes()
	assert.Zero(t, extended)
	assert.NotContains(t, w.seen(), "load")
}

// TestKilledAroundTheExtension: what a killed launcher began is finished, or wasn't begun, and the
// register says which. The next run of the same boot goes on.
func TestKilledAroundTheExtension(t *testing.T) {
	t.Parallel()
	for _, extended := range []bool{false, true} {
		for _, supervise := range []admission.Supervise{admission.SuperviseAuto, admission.SuperviseOff} {
			t.Run(string(supervise)+map[bool]string{true: ", after", false: ", before"}[extended], func(t *testing.T) {
				t.Parallel()
				w, k := nativeWorld(t)
				w.settings.Supervise = supervise
				reached, release := make(chan struct{}), make(chan struct{})
				hold := func() { close(reached); <-release }
				if extended {
					k.Around(nil, hold)
				} else {
					k.Around(func() { hold(); k.Fail(kernel.Fault{}) }, nil) // whom nobody waits for any more
				}
				p := w.start(0)
				require.True(t, p.until(func() bool {
					select {
					case <-reached:
						return true
					default:
						return false
					}
				}), "%s", &p.stderr)
				require.NoError(t, p.cmd.Process.Kill())
				close(release) // what was written is done before the launcher is gone
				<-p.ended

				want := w.Digests[1]
				require.NoError(t, w.Approve(w.Digests[1], w.Digests[0]))
				if extended {
					want = w.Digests[0]
				}
				w.mustBoot()
				w.accepted(want)
				assert.Equal(t, "running", w.status())
				w.mustBoot()
				w.accepted(want)
				assert.Equal(t, 1, w.workload().Starts)
			})
		}
	}
}

// TestHoldersOfTheRegister: whatever else could extend it, or write its log, could measure in our
// name.
func TestHoldersOfTheRegister(t *testing.T) {
	t.Parallel()
	bind := func(source string) map[string]any {
		return map[string]any{"Binds": []string{source + ":/x:ro"}}
	}
	const sys = "/sys/devices/virtual/misc/tdx_guest"
	for name, c := range map[string]struct {
		host    func(w *world) map[string]any
		refused string // in the message; empty: it isn't
		project string
		state   string
	}{
		"nothing":                {host: func(*world) map[string]any { return nil }},
		"the log directory":      {host: func(w *world) map[string]any { return bind(w.settings.Native.Runtime) }, refused: "dstack's event log through"},
		"above it":               {host: func(w *world) map[string]any { return bind(filepath.Dir(w.settings.Native.Runtime)) }, refused: "holds "},
		"the log itself":         {host: func(w *world) map[string]any { return bind(w.settings.Native.Runtime + "/runtime_events.log") }, refused: "dstack's event log through"},
		"the registers":          {host: func(w *world) map[string]any { return bind(w.settings.Native.Registers) }, refused: "the kernel's register through"},
		"the kernel's directory": {host: func(*world) map[string]any { return bind(sys + "/measurements") }, refused: "register"},
		"the register's file":    {host: func(*world) map[string]any { return bind(sys + "/measurements/rtmr3:sha384") }, refused: "register"},
		"by its class":           {host: func(*world) map[string]any { return bind("/sys/class/misc/tdx_guest") }, refused: "register"},
		"by its number":          {host: func(*world) map[string]any { return bind("/sys/dev/char/10:125") }, refused: "register"},
		"the host's /proc":       {host: func(*world) map[string]any { return bind("/proc") }, refused: "register"},
		"a volume of the kernel's": {
			host: func(w *world) map[string]any {
				w.Engine.Fail(launchtest.EngineFault{Match: "GET /volumes/sys", Times: -1, Edit: func([]byte) []byte {
					return []byte(`{"Name":"sys","Mountpoint":"/x","Options":{"type":"sysfs","device":"none"}}`)
				}})
				return map[string]any{"Binds": []string{"sys:/x"}}
			}, refused: "register",
		},
		"all of /sys":                 {host: func(*world) map[string]any { return bind("/sys") }, refused: "register"},
		"/dev":                        {host: func(*world) map[string]any { return bind("/dev") }, refused: "holds "},
		"another part of /sys":        {host: func(*world) map[string]any { return bind("/sys/fs/cgroup") }},
		"privileged":                  {host: func(*world) map[string]any { return map[string]any{"Privileged": true} }, refused: "its privileges"},
		"a capability":                {host: func(*world) map[string]any { return map[string]any{"CapAdd": []string{"CAP_SYS_ADMIN"}} }, refused: "SYS_ADMIN"},
		"opening by handle":           {host: func(*world) map[string]any { return map[string]any{"CapAdd": []string{"DAC_READ_SEARCH"}} }, refused: "DAC_READ_SEARCH"},
		"all capabilities":            {host: func(*world) map[string]any { return map[string]any{"CapAdd": []string{"all"}} }, refused: "ALL"},
		"a harmless capability":       {host: func(*world) map[string]any { return map[string]any{"CapAdd": []string{"NET_ADMIN"}} }},
		"rules for devices":           {host: func(*world) map[string]any { return map[string]any{"DeviceCgroupRules": []string{"c 10:* rwm"}} }, refused: "rules"},
		"the host's processes":        {host: func(*world) map[string]any { return map[string]any{"PidMode": "host"} }, refused: "processes"},
		"the device":                  {host: device("/dev/tdx_guest"), refused: "the device /dev/tdx_guest"},
		"the device by its number":    {host: device("/dev/char/10:125"), refused: "device"},
		"another device":              {host: device("/dev/kvm")},
		"privileged, and ours":        {host: func(*world) map[string]any { return map[string]any{"Privileged": true} }, project: "launcher"},
		"privileged, and not live":    {host: func(*world) map[string]any { return map[string]any{"Privileged": true} }, state: "created"},
		"the agent's socket, as ever": {host: func(w *world) map[string]any { return bind(w.AgentSocket) }, refused: "the guest agent's socket through"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, k := nativeWorld(t)
			w.inside(stranger{name: "launcher", project: "launcher", mounts: []string{
				w.AgentSocket + ":/var/run/dstack.sock", "shared-volume:" + w.SharedDir,
			}})
			if c.project == "" {
				c.project = "monitoring"
			}
			host := map[string]any{"RestartPolicy": map[string]any{"Name": "no"}}
			maps.Copy(host, c.host(w))
			_, err := w.Engine.Call(http.MethodPost, "/containers/create?name=other", map[string]any{
				"Image": w.workloadImage, "Cmd": []string{"sleep"}, "HostConfig": host,
				"Labels": map[string]string{"com.docker.compose.project": c.project},
			})
			require.NoError(t, err)
			if c.state == "" {
				w.does("POST", "/containers/other/start")
			}
			if c.refused == "" {
				w.mustBoot()
				w.accepted(w.Digests[0])
				return
			}
			assert.Equal(t, exit.Measurement, w.boot())
			assert.Contains(t, w.stderr, "container other ")
			assert.Contains(t, w.stderr, c.refused)
			assert.Equal(t, launch.Status("failed"), w.stepStatus("gate"))
			extended, _ := k.Writes()
			assert.Zero(t, extended)

			// Where the agent measures, only its socket counts.
			if name == "the agent's socket, as ever" {
				return
			}
			w.settings.Native = rtmr.Mounts{}
			w.boot()
			assert.NotContains(t, w.stderr, "container other ")
		})
	}
}

func device(path string) func(*world) map[string]any {
	return func(*world) map[string]any {
		return map[string]any{"Devices": []any{map[string]string{
			"PathOnHost": path, "PathInContainer": "/dev/x", "CgroupPermissions": "rwm",
		}}}
	}
}

// TestAttributionNatively: an event that no record explains may be that of whoever could extend. Nothing is started then.
func TestAttributionNatively(t *testing.T) {
	t.Parallel()
	w, _ := nativeWorld(t)
	w.mustBoot()
	w.workloadImage = w.workload().Image
	require.NoError(t, os.RemoveAll(w.Shared("launcher")))
	_, err := w.Engine.Call(http.MethodPost, "/containers/create?name=other", map[string]any{
		"Image": w.workloadImage, "Cmd": []string{"sleep"}, "HostConfig": map[string]any{"Privileged": true},
	})
	require.NoError(t, err)
	w.does("POST", "/containers/other/start")
	w.mustBoot()
	assert.Equal(t, 1, w.workload().Starts, "what runs stays")
	w.does("POST", "/containers/mpc-node/stop")
	assert.Equal(t, exit.Measurement, w.boot())
	assert.Contains(t, w.stderr, "its privileges")
	assert.Equal(t, launch.Status("failed"), w.stepStatus("probe"))
	assert.Equal(t, 1, w.workload().Starts)
}
