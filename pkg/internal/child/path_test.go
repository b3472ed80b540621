package child_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/internal/child"
)

// TestSearch finds no program where anybody may have put it, whatever links lead there. PATH is the
// process's, so this test isn't parallel.
func TestSearch(t *testing.T) {
	root := t.TempDir()
	bin, theirs := filepath.Join(root, "bin"), filepath.Join(root, "theirs")
	for _, path := range []string{bin + "/ours", bin + "/both", theirs + "/both", theirs + "/b/only"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755))
	}
	require.NoError(t, os.Symlink(theirs+"/b", root+"/link"))
	require.NoError(t, os.Symlink(theirs+"/b/only", bin+"/linked"))
	t.Chdir(root)
	t.Setenv("PATH", strings.Join([]string{"bin", "", ".", theirs, theirs + "/../theirs/b", root + "/link", bin}, ":"))

	p := child.Search("", []string{"/nonexistent", theirs + "/"})
	assert.Equal(t, bin, p.String())
	assert.Equal(t, bin+"/ours", p.Look("ours"))
	assert.Equal(t, bin+"/both", p.Look("both"))
	for _, name := range []string{"only", "linked", "missing", ""} {
		assert.Empty(t, p.Look(name), name)
	}
	assert.Equal(t, bin, child.Search("", []string{"theirs"}).String(), "a relative one is one of the working directory")
	assert.Equal(t, theirs+"/both", child.Search("", []string{"/", ""}).Look("both"), "the root would leave nothing")

	t.Setenv("PATH", "")
	assert.Empty(t, child.Search("", nil).Look("ours"))
	assert.Equal(t, bin+"/ours", child.Search(bin, nil).Look("ours"))
}
