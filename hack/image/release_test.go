package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeGo stands for the go command: what hack/image and hack/sbom would write takes minutes.
const fakeGo = `#!/bin/sh
set -e
case "$2" in
./hack/image)
	test "$3" = -out && test "$9" = -release
	mkdir -p "$4/image/blobs" "$4/release"
	for f in image/index.json image/blobs/one image.tar release/NOTICES \
		release/launcher-linux-amd64 release/launcher-darwin-arm64; do echo $f >"$4/$f"; done
	echo sha256:abc ;;
./hack/sbom) echo list >"$6" ;;
*) exit 9 ;;
esac
`

// TestRelease: what hack/release makes of what is built, and that nothing of an earlier one stays.
func TestRelease(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), mode))
	}
	script, err := os.ReadFile(filepath.Join("..", "release"))
	require.NoError(t, err)
	write("hack/release", string(script), 0o755)
	write("bin/go", fakeGo, 0o755)
	write("docs/man/launcher.1", "manual", 0o644)
	write("CHANGELOG.md", "# Changelog\n\n## Unreleased\n\nlater\n\n## v1.2.3\n\nnow\n\n## v1.2.2\n\nold\n", 0o644)
	write("dist/launcher-v1.2.2-linux-amd64", "old", 0o755)
	release := func(version string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "hack", "release"), version)
		cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "COMMIT=c0ffee")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	dist := func() map[string]string {
		files := map[string]string{}
		require.NoError(t, filepath.WalkDir(filepath.Join(dir, "dist"), func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			files[strings.TrimPrefix(path, filepath.Join(dir, "dist")+"/")] = string(data)
			return err
		}))
		return files
	}

	for _, version := range []string{"", "1.2.3", "v1.2", "v1.2.3;"} {
		out, err := release(version)
		assert.Error(t, err, "version %q", version)
		assert.Contains(t, out, "error: a release needs a version")
		assert.Contains(t, dist(), "launcher-v1.2.2-linux-amd64", "still there")
	}

	out, err := release("v1.2.3")
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "sha256:abc\n", out)
	files := dist()
	var names []string
	for name := range files {
		names = append(names, name)
	}
	assert.ElementsMatch(t, []string{
		"SHA256SUMS", "image/index.json", "image/blobs/one", "launcher-v1.2.3.oci.tar", "launcher-v1.2.3.docker.tar",
		"launcher-v1.2.3.digest", "launcher-v1.2.3.sbom.cdx.json", "launcher-v1.2.3.NOTICES.txt",
		"launcher-v1.2.3.man.tar", "launcher-v1.2.3.notes.md", "launcher-v1.2.3-linux-amd64",
		"launcher-v1.2.3-darwin-arm64",
	}, names, "all of it, and nothing of the release before")
	info, err := os.Stat(filepath.Join(dir, "dist", "launcher-v1.2.3-linux-amd64"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o755), info.Mode())

	notes := files["launcher-v1.2.3.notes.md"]
	for _, want := range []string{
		"sha256:abc", "crane push image ", "--preserve-digests", "make release VERSION=v1.2.3 COMMIT=c0ffee", "\nnow\n",
	} {
		assert.Contains(t, notes, want)
	}
	for _, other := range []string{"later", "old"} {
		assert.NotContains(t, notes, other)
	}

	check := exec.CommandContext(t.Context(), "sha256sum", "--strict", "-c", "SHA256SUMS")
	check.Dir = filepath.Join(dir, "dist")
	sums, err := check.CombinedOutput()
	require.NoError(t, err, "%s", sums)
	assert.Equal(t, len(files)-1, strings.Count(string(sums), ": OK\n"), "sums of all of it")
	once := files["SHA256SUMS"]
	_, err = release("v1.2.3")
	require.NoError(t, err)
	assert.Equal(t, once, dist()["SHA256SUMS"], "again")
}
