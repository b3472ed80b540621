package launch_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// TestTheSharedDirectoryIsTheVolume, or nothing is measured: the workload mounts the volume.
func TestTheSharedDirectoryIsTheVolume(t *testing.T) {
	t.Parallel()
	elsewhere := func(w *world) string { return filepath.Dir(w.SharedDir) }
	in := func(mounts ...string) func(w *world) { // in a container, whose paths aren't the host's
		return func(w *world) {
			self := stranger{name: "launcher", project: "launcher"}
			for _, m := range mounts {
				self.mounts = append(self.mounts, os.Expand(m, func(name string) string {
					return map[string]string{"shared": w.SharedDir, "elsewhere": elsewhere(w)}[name]
				}))
			}
			w.inside(self)
		}
	}
	device := func(place func(w *world) string) func(w *world) { // a volume that is bound to another place
		return func(w *world) {
			w.Engine.Fail(launchtest.EngineFault{Match: "GET /volumes/shared-volume", Times: -1, Edit: func(body []byte) []byte {
				body = bytes.Replace(body, []byte(w.SharedDir), []byte("/var/lib/docker/volumes/shared-volume/_data"), 1)
				return bytes.Replace(body, []byte(`"Options":null`), fmt.Appendf(nil, `"Options":{"type":"none","o":"bind","device":%q}`, place(w)), 1)
			}})
		}
	}
	for name, c := range map[string]struct {
		arrange func(w *world)
		code    exit.Code
	}{
		"the volume":            {func(*world) {}, exit.OK},
		"a link to it":          {func(w *world) { w.settings.SharedDir = w.link(w.SharedDir) }, exit.OK},
		"a directory beside it": {func(w *world) { w.settings.SharedDir = elsewhere(w) }, exit.Config},
		"a directory in it": {func(w *world) {
			w.settings.SharedDir = w.Shared("x")
			require.NoError(w.t, os.Mkdir(w.settings.SharedDir, 0o755))
		}, exit.Config},
		"no such volume": {func(w *world) {
			w.Engine.Fail(launchtest.EngineFault{Match: "GET /volumes/shared-volume", Status: 404, Message: "no", Times: -1})
		}, exit.Config},
		"the volume's own place":                    {device(func(w *world) string { return w.SharedDir }), exit.OK},
		"another one":                               {device(elsewhere), exit.Config},
		"mounted in our container":                  {in("shared-volume:$shared"), exit.OK},
		"mounted by the place of the volume":        {in("$shared:$shared"), exit.OK},
		"another volume in our container":           {in("other-volume:$shared"), exit.Config},
		"another directory in our container":        {in("$elsewhere:$shared"), exit.Config},
		"our container's own, by the volume's path": {in(), exit.Config},
		"a mount beside it":                         {in("shared-volume:/mnt/shared"), exit.Config},
		"a link in our container": {func(w *world) {
			in("$elsewhere:$elsewhere")(w)
			w.settings.SharedDir = w.link(w.SharedDir)
		}, exit.OK},
		"what is above it, in our container":  {in("$elsewhere:$elsewhere"), exit.OK},
		"what is above it, and another below": {in("$elsewhere:$elsewhere", "other-volume:$shared"), exit.Config},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, platform := range []config.Platform{config.TEE, config.NONTEE} {
				w := newWorld(t, options{platform: platform})
				c.arrange(w)
				before := w.seen()
				assert.Equal(t, c.code, w.boot(), "%s", w.stderr)
				if c.code == exit.OK {
					assert.Equal(t, "running", w.status())
					continue
				}
				assert.Contains(t, w.stderr, "volume shared-volume")
				assert.Contains(t, w.stderr, "hint: ")
				assert.Equal(t, before, w.seen(), "nothing is done")
				assert.Zero(t, w.Agent.Emits())
				assert.NoDirExists(t, filepath.Join(w.settings.SharedDir, "launcher"))
			}
		})
	}
}

func (w *world) link(to string) string {
	link := filepath.Join(w.t.TempDir(), "link")
	require.NoError(w.t, os.Symlink(to, link))
	return link
}

// TestTheReportReplacesNoOtherFile that a boot reads or writes, by whatever path it is named.
func TestTheReportReplacesNoOtherFile(t *testing.T) {
	t.Parallel()
	beside := func(w *world, name string) string { return filepath.Join(filepath.Dir(w.SharedDir), name) }
	for name, place := range map[string]func(w *world) string{
		"the approved list":     func(w *world) string { return w.Shared("image-digest.bin") },
		"the node config":       func(w *world) string { return w.Shared("mpc-config.toml") },
		"what it is made of":    func(w *world) string { return w.Shared(".mpc-config.toml.tmp") },
		"what was set aside":    func(w *world) string { return w.Shared("mpc-config.toml.aside") },
		"our directory":         func(w *world) string { return w.Shared("launcher") },
		"the record":            func(w *world) string { return w.Shared("launcher/measurement.json") },
		"the shared directory":  func(w *world) string { return w.SharedDir },
		"the user config":       func(w *world) string { return w.ConfigFile },
		"the agent":             func(w *world) string { return w.AgentSocket },
		"the engine":            func(w *world) string { return strings.TrimPrefix(w.settings.DockerHost, "unix://") },
		"by another path":       func(w *world) string { return w.Shared("x/../image-digest.bin") },
		"by a link to where":    func(w *world) string { return filepath.Join(w.link(w.SharedDir), "image-digest.bin") },
		"a link to the config":  func(w *world) string { return w.link(w.ConfigFile) },
		"a directory elsewhere": func(w *world) string { return w.t.TempDir() },
		"the config's target": func(w *world) string {
			w.settings.ConfigFile = w.link(w.ConfigFile)
			return w.ConfigFile
		},
		"another name of the config": func(w *world) string {
			require.NoError(w.t, os.Link(w.ConfigFile, beside(w, "hard")))
			return beside(w, "hard")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			w.approve(w.Digests[0])
			w.settings.Report = place(w)
			before := w.seen()
			assert.Equal(t, exit.Usage, w.boot(), "%s", w.stderr)
			assert.Contains(t, w.stderr, "hint: name another place with --report")
			assert.Equal(t, before, w.seen())
			w.settings.Report = ""
			w.mustBoot()
		})
	}
	for name, place := range map[string]func(w *world) string{
		"its own place":    func(w *world) string { return w.Shared("launcher/report.json") },
		"beside our files": func(w *world) string { return w.Shared("report") },
		"what the workload links there": func(w *world) string {
			require.NoError(w.t, os.Link(w.Shared("image-digest.bin"), w.Shared("report")))
			return w.Shared("report")
		},
		"a link of the workload": func(w *world) string {
			require.NoError(w.t, os.Symlink(w.ConfigFile, w.Shared("report")))
			return w.Shared("report")
		},
		"elsewhere": func(w *world) string { return beside(w, "report") },
		"nowhere":   func(w *world) string { return beside(w, "no/such/place") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			w.approve(w.Digests[0])
			files := []string{w.ConfigFile, w.Shared("image-digest.bin")}
			before := [][]byte{w.read(files[0]), w.read(files[1])}
			w.settings.Report = place(w)
			w.mustBoot()
			w.mustBoot()
			assert.Equal(t, before, [][]byte{w.read(files[0]), w.read(files[1])})
			if name != "nowhere" {
				assert.Contains(t, string(w.read(w.settings.Report)), `"exit_code": `)
			}
		})
	}
}

func (w *world) read(path string) []byte {
	w.t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(w.t, err)
	return data
}

// TestADataVolumeElsewhere is a warning of the run that creates the workload, and no more.
func TestADataVolumeElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Engine.Fail(launchtest.EngineFault{Match: "GET /volumes/mpc-data", Times: -1, Edit: func(body []byte) []byte {
		return bytes.Replace(body, []byte(`"Options":null`), []byte(`"Options":{"device":"/x","o":"bind"}`), 1)
	}})
	l := w.watch()
	const says = "the workload gets something that isn't as the engine makes it"
	require.Equal(t, 1, l.said(says), "%q", l.messages())
	assert.Contains(t, string(l.line(says)), "volume mpc-data was made with options of its driver (device, o)")
}
