package files_test

import (
	"math"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/internal/files"
)

// TestCanWriteAgreesWithWrite, and makes nothing.
func TestCanWriteAgreesWithWrite(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]string{
		"nothing": "", "a file": "file", "a directory": "file/", "a directory beside it": ".file.tmp/", "a file beside it": ".file.tmp",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := t.TempDir()
			switch {
			case plant == "":
			case plant[len(plant)-1] == '/':
				require.NoError(t, os.Mkdir(filepath.Join(path, plant), 0o755))
			default:
				require.NoError(t, os.WriteFile(filepath.Join(path, plant), nil, 0o600))
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
			if wrote := dir.Write("file", []byte("text"), 0o600); wrote == nil {
				assert.NoError(t, can)
			} else {
				assert.ErrorIs(t, can, syscall.EISDIR)
			}
		})
	}
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
