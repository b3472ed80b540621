package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tree is a small file system, and what walk says of it.
func tree(t *testing.T) (root string, lines func() []string) {
	t.Helper()
	root = t.TempDir()
	file := filepath.Join(root, "file")
	require.NoError(t, os.WriteFile(file, []byte("content"), 0o640))
	require.NoError(t, os.Link(file, filepath.Join(root, "second")))
	require.NoError(t, os.Symlink("nowhere", filepath.Join(root, "symbolic")))
	require.NoError(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	require.NoError(t, os.Chtimes(root, time.Unix(1, 2), time.Unix(1, 2)))
	return root, func() []string {
		var out strings.Builder
		require.NoError(t, walk(root, &out))
		return strings.Split(strings.TrimSpace(out.String()), "\n")
	}
}

func TestWalkSaysWhatIsThere(t *testing.T) {
	t.Parallel()
	root, lines := tree(t)
	all := lines()
	require.Len(t, all, 5)
	assert.Contains(t, all[0], " time=1.000000002")
	assert.True(t, strings.HasPrefix(all[1], `"`+root+`/fifo" mode=10600 `), all[1])
	assert.Contains(t, all[2], " size=7 sha256=ed7002b439e9ac84")
	assert.Contains(t, all[3], ` links=2 first="`+root+`/file"`)
	assert.Contains(t, all[4], ` to="nowhere"`)
}

// TestWalkTellsApart: whatever a program could see of a file changes what is said of it.
func TestWalkTellsApart(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(file string) error{
		"content": func(f string) error { return os.WriteFile(f, []byte("CONTENT"), 0) },
		"mode":    func(f string) error { return unix.Chmod(f, 0o4755) },
		"time": func(f string) error {
			return os.Chtimes(f, time.Unix(5, 1),
				time.Unix(5, 1))
		},
		"attribute": func(f string) error { return unix.Setxattr(f, "user.a", []byte("1"), 0) },
		"link":      func(f string) error { return os.Remove(filepath.Dir(f) + "/second") },
		"kind":      func(f string) error { _ = os.Remove(f); return os.Mkdir(f, 0o755) },
	} {
		root, lines := tree(t)
		before := lines()
		err := change(filepath.Join(root, "file"))
		if name == "attribute" && err == unix.ENOTSUP {
			continue // a memory file system of an old kernel
		}
		require.NoError(t, err, name)
		assert.NotEqual(t, before, lines(), name)
	}
}
