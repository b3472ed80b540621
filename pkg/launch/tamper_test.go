package launch_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
)

// TestATamperedSharedDirectory plants below the shared directory what a workload could leave there for the next boot. It runs
// measured, exactly once, or it is a clear refusal before anything is emitted; and nothing outside is touched.
func TestATamperedSharedDirectory(t *testing.T) {
	t.Parallel()
	const bait = "not ours to write"
	type plant func(w *world, path, outside string)
	link := func(w *world, path, outside string) { require.NoError(w.t, os.Symlink(outside, path)) }
	hanging := func(w *world, path, _ string) { require.NoError(w.t, os.Symlink("/nonexistent/target", path)) }
	pipe := func(w *world, path, _ string) { require.NoError(w.t, unix.Mkfifo(path, 0o666)) }
	socket := func(w *world, path, _ string) {
		require.NoError(w.t, unix.Mknod(path, unix.S_IFSOCK|0o666, 0))
	}
	huge := func(w *world, path, _ string) {
		require.NoError(w.t, os.WriteFile(path, nil, 0o600))
		require.NoError(w.t, os.Truncate(path, 1<<40))
	}
	directory := func(w *world, path, _ string) { require.NoError(w.t, os.MkdirAll(path+"/full", 0o755)) }
	file := func(w *world, path, _ string) { require.NoError(w.t, os.WriteFile(path, []byte("x"), 0)) }
	hard := func(w *world, path, outside string) { require.NoError(w.t, os.Link(outside, path)) }
	kinds := map[string]plant{
		"a link": link, "a hanging link": hanging, "a pipe": pipe, "a socket": socket, "a huge file": huge, "a directory": directory,
		"a file": file, "a hard link": hard,
	}
	// What becomes of each kind at each place; OK where nothing is said.
	places := map[string]map[string]exit.Code{
		"launcher":                       {},
		"launcher/measurement.json":      {},
		"launcher/.measurement.json.tmp": {},
		"launcher/report.json":           {},
		"launcher/.report.json.tmp":      {},
		"launcher/logs":                  {},
		"launcher/image-KEPT.json":       {},
		"launcher/image-zzz.json":        {},
		"mpc-config.toml":                {},
		".mpc-config.toml.tmp":           {},
		"image-digest.bin": { // there and unreadable is never the default
			"a link": exit.Config, "a hanging link": exit.Config, "a pipe": exit.Config, "a socket": exit.Config, "a huge file": exit.Config,
			"a directory": exit.Config, "a file": exit.Config, "a hard link": exit.Config,
		},
		"something else": {},
	}
	cases := 0
	for _, place := range slices.Sorted(maps.Keys(places)) {
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			if cases++; cases%stride != 0 {
				continue
			}
			codes, do := places[place], kinds[kind]
			t.Run(place+" is "+kind, func(t *testing.T) {
				t.Parallel()
				w, j := judgedWorld(t)
				dir := filepath.Join(filepath.Dir(w.SharedDir), "elsewhere")
				require.NoError(t, os.Mkdir(dir, 0o755))
				outside := filepath.Join(dir, "outside")
				require.NoError(t, os.WriteFile(outside, []byte(bait), 0o640))
				path := w.Shared(strings.Replace(place, "KEPT", strings.TrimPrefix(w.Digests[0].String(), "sha256:"), 1))
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				do(w, path, outside)

				code := w.boot()
				assert.Equal(t, codes[kind], code, "%s", w.stderr)
				w.sound(j)
				if code == exit.OK {
					w.accepted(w.Digests[0])
					assert.Equal(t, "running", w.status())
				} else {
					assert.Zero(t, w.Agent.Emits())
					assert.NotContains(t, strings.Join(w.seen(), "\n"), "start mpc-node")
					assert.Contains(t, w.stderr, "error: ")
				}
				data, err := os.ReadFile(outside)
				require.NoError(t, err)
				assert.Equal(t, bait, string(data), "something outside was written to")
				info, err := os.Stat(outside)
				require.NoError(t, err)
				assert.Equal(t, os.FileMode(0o640), info.Mode())
				left, err := os.ReadDir(dir)
				require.NoError(t, err)
				assert.Len(t, left, 1)
			})
		}
	}
}

// TestWhatWasSetAsideIsNotReplaced: the run goes on without the file, unless it can't do without.
func TestWhatWasSetAsideIsNotReplaced(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]exit.Code{
		"launcher": exit.Config, "launcher/measurement.json": exit.Config, "launcher/.measurement.json.tmp": exit.Config,
		"mpc-config.toml": exit.Config, ".mpc-config.toml.tmp": exit.Config, // before anything is measured
		"launcher/report.json": exit.OK, "launcher/.report.json.tmp": exit.OK, "launcher/image-KEPT.json": exit.OK,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, j := judgedWorld(t)
			path := w.Shared(strings.Replace(name, "KEPT", w.Digests[0].Hex(), 1))
			if name == "launcher" {
				require.NoError(t, os.WriteFile(path, nil, 0o600))
			} else {
				require.NoError(t, os.MkdirAll(path+"/full", 0o755))
			}
			require.NoError(t, os.MkdirAll(path+".aside/full", 0o755))
			assert.Equal(t, code, w.boot(), "%s", w.stderr)
			w.sound(j)
			assert.DirExists(t, path+".aside/full")
			if code != exit.OK {
				assert.Contains(t, w.stderr, "hint: ")
				assert.Zero(t, w.Agent.Emits())
				return
			}
			w.accepted(w.Digests[0])
			w.mustBoot()
			w.rebootJudged(j)
			w.mustBoot() // which keeps the end of the old workload's log
			assert.DirExists(t, path+"/full")
		})
	}

	// Where nothing is measured, nothing depends on our directory.
	w := newWorld(t, options{platform: config.NONTEE})
	require.NoError(t, os.WriteFile(w.Shared("launcher"), nil, 0o600))
	require.NoError(t, os.Mkdir(w.Shared("launcher.aside"), 0o700))
	w.mustBoot()
	assert.Equal(t, "running", w.status())
	info, err := os.Stat(w.Shared("mpc-config.toml"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode(), "it holds the node's keys")
}

// TestForgedManifestsProveThemselvesOrAreOfNoUse: what is kept for a boot without network comes from where the workload can write.
func TestForgedManifestsProveThemselvesOrAreOfNoUse(t *testing.T) {
	t.Parallel()
	for name, forge := range map[string]func(kept map[string]any, other map[string]any) any{
		"another image's":         func(_, other map[string]any) any { return other },
		"another image's config":  func(kept, other map[string]any) any { kept["Config"] = other["Config"]; return kept },
		"nothing":                 func(map[string]any, map[string]any) any { return map[string]any{} },
		"no object":               func(map[string]any, map[string]any) any { return []string{"x"} },
		"fields of another kind":  func(map[string]any, map[string]any) any { return map[string]any{"Manifest": 1, "Config": true} },
		"a manifest that is none": func(kept, _ map[string]any) any { kept["Manifest"] = "e30="; return kept },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, j := judgedWorld(t)
			kept := make([]map[string]any, 2)
			for i := range w.Digests {
				w.approve(w.Digests[i])
				require.NoError(t, w.watch().terminate())
				w.reboot()
				data, err := os.ReadFile(w.kept(i))
				require.NoError(t, err)
				require.NoError(t, json.Unmarshal(data, &kept[i]))
			}
			data, err := json.Marshal(forge(kept[0], kept[1]))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(w.kept(0), data, 0o600))
			w.approve(w.Digests[0])
			w.mustBoot()
			w.accepted(w.Digests[0])
			w.sound(j)
			assert.Equal(t, w.report().Image.ConfigDigest, w.workload().Image)
		})
	}
}

func (w *world) kept(image int) string {
	return w.Shared("launcher/image-" + strings.TrimPrefix(w.Digests[image].String(), "sha256:") + ".json")
}

// TestATamperedBoot has the shared directory changed while the launcher is at work, between any two steps.
func TestATamperedBoot(t *testing.T) {
	t.Parallel()
	cases := 0
	for name, tamper := range map[string]func(w *world){
		"our directory is removed": func(w *world) { require.NoError(w.t, os.RemoveAll(w.Shared("launcher"))) },
		"our directory is another": func(w *world) {
			require.NoError(w.t, os.Rename(w.Shared("launcher"), w.Shared("was")))
			require.NoError(w.t, os.Mkdir(w.Shared("launcher"), 0o700))
		},
		"our directory is a link": func(w *world) {
			require.NoError(w.t, os.Rename(w.Shared("launcher"), w.Shared("was")))
			require.NoError(w.t, os.Symlink("was", w.Shared("launcher")))
		},
		"the record says it is done": func(w *world) {
			w.forge(fmt.Sprintf(`{"boot_id":%q,"digest":%q,"intent":"2026-01-01T00:00:00Z","done":true}`, w.bootID, w.Digests[0]))
		},
		"the list names another": func(w *world) { w.approve(w.Digests[1]) },
	} {
		for _, step := range []string{"gate", "config", "pull", "load", "create", "measure", "start", "supervise"} {
			if cases++; cases%stride != 0 {
				continue
			}
			t.Run(name+" before "+step, func(t *testing.T) {
				t.Parallel()
				w, j := judgedWorld(t)
				w.approve(w.Digests[0])
				busy := exit.OK
				w.onLine = func(message string) {
					if message != "step started "+step {
						return
					}
					tamper(w)
					busy = exit.Of(w.second())
				}
				if code := w.boot(); code != exit.OK {
					assert.Contains(t, []exit.Code{exit.Config, exit.Measurement}, code, "%s", w.stderr)
					assert.NotContains(t, strings.Join(w.seen(), "\n"), "start mpc-node")
				}
				assert.Equal(t, exit.Busy, busy, "unlinked or not, nobody else gets to work beside it")
				w.sound(j)
			})
		}
	}
}
