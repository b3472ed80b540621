package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// TestOddImages pulls and describes what pullers stumbled over: it is taken, or refused for a true
// reason before a byte of a layer is fetched.
func TestOddImages(t *testing.T) {
	t.Parallel()
	for _, store := range []struct {
		api        int
		containerd bool
	}{{41, false}, {51, false}, {52, false}, {45, true}, {51, true}, {52, true}} {
		t.Run(fmt.Sprintf("1.%d, containerd %t", store.api, store.containerd), func(t *testing.T) {
			t.Parallel()
			r, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
			require.NoError(t, err)
			defer r.Close()
			for _, o := range launchtest.OddImages() {
				ref, err := o.Push(r, "nearone/odd")
				require.NoError(t, err)
				want := o.On(store.containerd, store.api)
				engine, environ := oddEngine(t, launchtest.EngineOptions{
					Containerd: store.containerd, APIVersion: fmt.Sprintf("1.%d", store.api),
				})
				stdout, stderr, code := run(t, environ, "pull", "--progress", "none", ref.String())
				if want == launchtest.Taken {
					assert.Equal(t, exit.OK, code, "%s: %s", o.Name, stderr)
					assert.NotEmpty(t, stdout, o.Name)
					continue
				}
				assert.Equal(t, exit.Code(want), code, "%s: %s", o.Name, stderr)
				assert.Contains(t, stderr, o.Says, o.Name)
				assert.Equal(t, 1, strings.Count(stderr, "error: "), "%s: %s", o.Name, stderr)
				assert.NotContains(t, stderr, "suspect", o.Name)
				assert.Zero(t, engine.Loads(), "%s: nothing is loaded", o.Name)
			}
		})
	}
	t.Run("digest", func(t *testing.T) {
		t.Parallel()
		r, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
		require.NoError(t, err)
		defer r.Close()
		for _, o := range launchtest.OddImages() {
			ref, err := o.Push(r, "nearone/odd")
			require.NoError(t, err)
			stdout, stderr, code := run(t, nil, "digest", ref.String())
			if o.Classic != launchtest.Taken && !strings.Contains(o.Says, "only for") {
				assert.Equal(t, exit.Code(o.Classic), code, "%s: %s", o.Name, stderr)
				assert.Empty(t, stdout, o.Name)
				continue
			}
			assert.Equal(t, exit.OK, code, "%s: %s", o.Name, stderr)
			assert.Equal(t, ref.DigestStr()+"\n", stdout, o.Name)
			assert.Equal(t, o.Classic != launchtest.Taken, strings.Contains(stderr, "no image for this machine"),
				"%s: it warns where a pull would refuse: %s", o.Name, stderr)
			assert.Equal(t, strings.Contains(o.Name, "lies"), strings.Contains(stderr, "an image that can't be used"),
				"%s: %s", o.Name, stderr)
		}
	})
}

// oddEngine is an engine that has nothing, and an environment for it.
func oddEngine(t *testing.T, o launchtest.EngineOptions) (*launchtest.Engine, []string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "odd") // short: a socket's path has to fit into 107 bytes
	require.NoError(t, err)
	engine, err := launchtest.NewEngine(filepath.Join(dir, "docker.sock"), o)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, engine.Close())
		assert.NoError(t, os.RemoveAll(dir))
	})
	return engine, []string{"DOCKER_HOST=" + engine.Host(), "LAUNCHER_SHARED_DIR=" + dir + "/none"}
}
