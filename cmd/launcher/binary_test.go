package main_test

import (
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	maxModules  = 16
	maxLauncher = 12_000_000 // bytes
)

// TestTrustBase holds what is linked into the launcher to a list, so that a new dependency is a
// visible decision. It builds with the flags of the tests, of whose packages only the linking is
// left to do; TestE2EDropIn holds the binary of the image to the same list.
func TestTrustBase(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "launcher")
	commit := strings.Repeat("ab", 20)
	ldflags := "-s -w -X main.version=v1.2.3 -X main.commit=" + commit
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-ldflags", ldflags, "-o", binary, ".")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	info, err := buildinfo.ReadFile(binary)
	require.NoError(t, err)

	var linked []string
	for _, m := range info.Deps {
		linked = append(linked, m.Path)
	}
	slices.Sort(linked)
	list := filepath.Join("..", "..", "testdata", "modules.txt")
	if *update {
		require.NoError(t, os.WriteFile(list, []byte(strings.Join(linked, "\n")+"\n"), 0o644))
	}
	known, err := os.ReadFile(list)
	require.NoError(t, err)
	assert.Equal(t, strings.Fields(string(known)), linked, "a dependency is added or gone: is it worth its place in the trust base? Then edit %s", list)
	assert.LessOrEqual(t, len(linked), maxModules, "modules in the trust base")

	file, err := os.Stat(binary)
	require.NoError(t, err)
	assert.LessOrEqual(t, file.Size(), int64(maxLauncher), "bytes of the launcher")

	t.Run("says so itself", func(t *testing.T) {
		out, err := exec.CommandContext(t.Context(), binary, "version", "-o", "json").Output()
		require.NoError(t, err)
		var said struct {
			Version, Commit string
			Modified        bool
			Modules         []struct{ Path, Version, Sum string }
		}
		require.NoError(t, json.Unmarshal(out, &said))
		assert.Equal(t, "v1.2.3", said.Version)
		assert.Equal(t, commit, said.Commit)
		assert.False(t, said.Modified)
		require.Len(t, said.Modules, len(info.Deps))
		for i, m := range info.Deps {
			assert.Equal(t, m.Path, said.Modules[i].Path)
			assert.Equal(t, m.Version, said.Modules[i].Version, m.Path)
			assert.Equal(t, m.Sum, said.Modules[i].Sum, m.Path)
			assert.True(t, strings.HasPrefix(m.Sum, "h1:"), "%s isn't pinned by hash", m.Path)
		}
	})
}
