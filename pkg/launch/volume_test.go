package launch_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
