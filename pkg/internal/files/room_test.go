package files_test

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/internal/files"
)

// TestCanWriteAgreesWithWrite, and makes nothing.
func TestCanWriteAgreesWithWrite(t *testing.T) {
	t.Parallel()
	for name, plants := range map[string][]string{
		"nothing": nil, "a file": {"file"}, "a directory": {"file/"}, "a full one": {"file/", "file/x"},
		"a directory beside it": {".file.tmp/"}, "a file beside it": {".file.tmp"}, "both": {"file/", ".file.tmp/"},
		"a directory, and one was set aside": {"file/", "file.aside/"}, "a directory, and a file was": {"file/", "file.aside"},
		"a file, and one was set aside": {"file", "file.aside/"}, "beside it, and one was set aside": {".file.tmp/", ".file.tmp.aside/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := t.TempDir()
			for _, plant := range plants {
				if plant[len(plant)-1] == '/' {
					require.NoError(t, os.Mkdir(filepath.Join(path, plant), 0o755))
				} else {
					require.NoError(t, os.WriteFile(filepath.Join(path, plant), nil, 0o600))
				}
			}
			before, err := os.ReadDir(path)
			require.NoError(t, err)
			dir, err := files.OpenDir(path)
			require.NoError(t, err)
			defer dir.Close()

			can := dir.CanWrite("file", 4)
			after, err := os.ReadDir(path)
			require.NoError(t, err)
			assert.Len(t, after, len(before))
			wrote := dir.Write("file", []byte("text"), 0o600)
			assert.Equal(t, wrote == nil, can == nil, "%v, %v", wrote, can)
			assert.Equal(t, len(plants) == 2 && plants[0][len(plants[0])-1] == '/' && strings.HasPrefix(plants[1], strings.TrimSuffix(plants[0], "/")+".aside"), wrote != nil)
			if wrote == nil {
				data, err := dir.Read("file", 4)
				require.NoError(t, err)
				assert.Equal(t, "text", string(data))
				require.NoError(t, dir.Write("file", []byte("more"), 0o600), "and again")
			} else {
				assert.ErrorIs(t, can, fs.ErrExist)
				assert.ErrorIs(t, wrote, fs.ErrExist)
			}
		})
	}
}

// TestADirectoryIsMade in the place of whatever stands there, which is kept once.
func TestADirectoryIsMade(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(path string) error{
		"a file":        func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
		"a link":        func(path string) error { return os.Symlink("/etc", path) },
		"a broken link": func(path string) error { return os.Symlink("/none", path) },
		"a pipe":        func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, path := open(t)
			require.NoError(t, plant(filepath.Join(path, "dir")))
			before, err := os.Lstat(filepath.Join(path, "dir"))
			require.NoError(t, err)
			sub, err := d.Sub("dir")
			require.NoError(t, err)
			require.NoError(t, sub.Close())
			assert.DirExists(t, filepath.Join(path, "dir"))
			kept, err := os.Lstat(filepath.Join(path, "dir.aside"))
			require.NoError(t, err)
			assert.True(t, os.SameFile(before, kept))

			require.NoError(t, os.Remove(filepath.Join(path, "dir")))
			require.NoError(t, plant(filepath.Join(path, "dir")))
			sub, err = d.Sub("dir")
			require.NoError(t, err, "and once more")
			require.NoError(t, sub.Close())
			require.NoError(t, os.Remove(filepath.Join(path, "dir")))
			require.NoError(t, os.Remove(filepath.Join(path, "dir.aside")))

			require.NoError(t, plant(filepath.Join(path, "dir")))
			require.NoError(t, os.Mkdir(filepath.Join(path, "dir.aside"), 0o700))
			_, err = d.Sub("dir")
			assert.ErrorIs(t, err, fs.ErrExist, "a directory that was set aside isn't replaced")
		})
	}
}

// TestWhatIsPlantedIsLookedAtBeforeItIsOpened: with some devices opening is doing.
func TestWhatIsPlantedIsLookedAtBeforeItIsOpened(t *testing.T) {
	t.Parallel()
	d, path := open(t)
	pipe := filepath.Join(path, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		if w, err := os.OpenFile(pipe, os.O_WRONLY, 0); err == nil { // ends when somebody opens it to read
			w.Close()
		}
	}()
	for range 100 {
		_, err := d.Read("pipe", 10)
		require.ErrorIs(t, err, files.ErrNotRegular)
		_, err = files.ReadFile(pipe, 10)
		require.ErrorIs(t, err, files.ErrNotRegular)
	}
	select {
	case <-opened:
		assert.Fail(t, "it was opened")
	default:
	}
	r, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	require.NoError(t, err)
	defer r.Close()
	<-opened
}

func TestWhatHasNoRoom(t *testing.T) {
	t.Parallel()
	dir, err := files.OpenDir(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	assert.NoError(t, dir.CanAdd(1))
	assert.ErrorIs(t, dir.CanAdd(math.MaxInt64/2), syscall.ENOSPC)
	assert.ErrorIs(t, dir.CanWrite("file", math.MaxInt64/2), syscall.ENOSPC)
}
