package preflight_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// TestFallback: what a boot comes to in the end where the newest approved digest can't be had, and an older one may run.
func TestFallback(t *testing.T) {
	t.Parallel()
	unknown := digest.Of([]byte("unknown"))
	list := func(w *world, hashes ...digest.Digest) {
		require.NoError(w.t, w.Approve(hashes...))
	}
	waits := func(newest, older digest.Digest, after string) string {
		return fmt.Sprintf("; it would wait for %s, and fall back to %s after %s.", newest, older, after)
	}
	const again = "; it would wait and try again."
	for what, c := range map[string]struct {
		arrange func(w *world)
		code    exit.Code
		says    func(w *world) string
		instead int // of the machine's digests; -1: none
	}{
		"the newest isn't pushed": {
			func(w *world) { list(w, unknown, w.Digests[0]) }, exit.Refused,
			func(w *world) string { return waits(unknown, w.Digests[0], "30 minutes") }, 0,
		},
		"nor the next": {
			func(w *world) {
				list(w, unknown, digest.Of(nil), w.Digests[1], w.Digests[0])
				w.settings.FallbackAfter = 90 * time.Second
			}, exit.Refused,
			func(w *world) string { return waits(unknown, w.Digests[1], "1m30s") }, 1,
		},
		"a layer of the newest is missing": {
			func(w *world) {
				list(w, w.Digests[0], w.Digests[1])
				w.Registry.Fail(launchtest.RegistryFault{
					Kind: launchtest.FaultStatus, Status: 404, Times: -1, On: launchtest.RequestBlob, Digest: image.Hash(w.resolve(w.Digests[0]).Layers()[0].Digest),
				})
				w.settings.FallbackAfter = time.Minute
			}, exit.Refused,
			func(w *world) string { return waits(w.Digests[0], w.Digests[1], "1 minute") }, 1,
		},
		"a layer of the newest is missing, and the disk is full": { // which says nothing of the newest
			func(w *world) {
				list(w, w.Digests[0], w.Digests[1])
				w.Registry.Fail(launchtest.RegistryFault{
					Kind: launchtest.FaultStatus, Status: 404, Times: -1, On: launchtest.RequestBlob, Digest: image.Hash(w.resolve(w.Digests[0]).Layers()[0].Digest),
				})
				w.settings.Free = func(string) (int64, error) { return 100_000, nil }
			}, exit.Engine,
			func(*world) string { return again }, 1,
		},
		"a layer of the newest is damaged": {
			func(w *world) {
				list(w, w.Digests[0], w.Digests[1])
				w.Registry.Fail(launchtest.RegistryFault{
					Kind: launchtest.FaultFlip, Times: -1, On: launchtest.RequestBlob, Digest: image.Hash(w.resolve(w.Digests[0]).Layers()[0].Digest),
				})
				w.settings.Deep = true
			}, exit.Mismatch,
			func(w *world) string { return waits(w.Digests[0], w.Digests[1], "30 minutes") }, 1,
		},
		"the registry knows nobody any more, and the older one is here from an earlier boot": {
			func(w *world) {
				list(w, unknown, w.Digests[0])
				w.load()
				w.keep()
				w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 403, Times: -1, On: launchtest.RequestManifest})
			}, exit.Refused,
			func(w *world) string { return waits(unknown, w.Digests[0], "30 minutes") }, 0,
		},
		"nor is its manifest": {
			func(w *world) {
				list(w, unknown, w.Digests[0])
				w.load()
				w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 403, Times: -1, On: launchtest.RequestManifest})
			}, exit.Refused,
			func(*world) string { return again }, -1,
		},
		"the engine has the older one, of which the registry has only the manifest": {
			func(w *world) {
				list(w, unknown, w.Digests[0])
				w.load()
				w.Registry.Fail(launchtest.RegistryFault{
					Kind: launchtest.FaultStatus, Status: 404, Times: -1, On: launchtest.RequestBlob, Digest: image.Hash(w.resolve(w.Digests[0]).Layers()[0].Digest),
				})
			}, exit.Refused,
			func(w *world) string { return waits(unknown, w.Digests[0], "30 minutes") }, 0,
		},
		"it is off": {
			func(w *world) { list(w, unknown, w.Digests[0]); w.settings.FallbackAfter = 0 }, exit.Refused,
			func(*world) string { return again }, -1,
		},
		"nobody supervises": {
			func(w *world) { list(w, unknown, w.Digests[0]); w.settings.Supervise = admission.SuperviseOff }, exit.Refused,
			func(*world) string { return ": REG003." }, -1,
		},
		"no older one is there": {
			func(w *world) { list(w, unknown, digest.Of(nil)) }, exit.Refused,
			func(*world) string { return again }, -1,
		},
		"nothing answers": {
			func(w *world) { list(w, w.Digests[1], w.Digests[0]); require.NoError(w.t, w.Registry.Stop()) }, exit.Unavailable,
			func(*world) string { return again }, -1,
		},
		"an override": {
			func(w *world) {
				list(w, w.Digests[0], unknown)
				require.NoError(w.t, w.Configure(fmt.Sprintf("mpc_hash_override = %q", unknown), `home_dir = "/data"`))
			}, exit.Refused,
			func(*world) string { return again }, -1,
		},
		"the newest is there": {
			func(w *world) { list(w, w.Digests[1], w.Digests[0]) }, exit.OK,
			func(*world) string { return "start the workload." }, -1,
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, launchtest.MachineOptions{})
			w.settings.FallbackAfter = 30 * time.Minute
			c.arrange(w)
			r := w.run()
			assert.Equal(t, c.code, r.ExitCode, "%s", r.Summary)
			assert.True(t, strings.HasSuffix(r.Summary, c.says(w)), "%s", r.Summary)
			require.NotNil(t, r.WouldRun)
			if c.instead < 0 {
				assert.Nil(t, r.WouldRun.Fallback)
				return
			}
			require.NotNil(t, r.WouldRun.Fallback)
			assert.Equal(t, w.Digests[c.instead], *r.WouldRun.Fallback)
			assert.NotEqual(t, w.Digests[c.instead], r.WouldRun.Digest, "what would run is what is wanted")
		})
	}
}
