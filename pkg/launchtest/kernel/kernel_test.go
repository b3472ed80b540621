package kernel_test

import (
	"crypto/sha512"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/launchtest/kernel"
)

// TestTheRegister takes what the kernel's takes: exactly 48 bytes at offset 0.
func TestTheRegister(t *testing.T) {
	t.Parallel()
	k, err := kernel.New()
	require.NoError(t, err, "this test needs /dev/fuse, and root or fusermount3")
	defer func() { assert.NoError(t, k.Close()) }()
	path := filepath.Join(k.Dir(), kernel.Name)
	read := func() []byte {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		return data
	}
	assert.Equal(t, make([]byte, 48), read())

	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	digest := sha512.Sum384([]byte("event"))
	for _, wrong := range []struct {
		data   []byte
		offset int64
	}{{digest[:47], 0}, {append(digest[:], 0), 0}, {digest[:], 1}, {digest[:], 48}, {append(digest[:], digest[:]...), 0}} {
		_, err := f.WriteAt(wrong.data, wrong.offset)
		assert.ErrorIs(t, err, unix.EINVAL, "%d bytes at %d", len(wrong.data), wrong.offset)
	}
	assert.Equal(t, make([]byte, 48), read(), "nothing happened")
	want := [48]byte{}
	for range 2 {
		n, err := f.WriteAt(digest[:], 0)
		require.NoError(t, err)
		assert.Equal(t, 48, n)
		want = sha512.Sum384(append(want[:], digest[:]...))
		assert.Equal(t, want[:], read(), "it is live")
		assert.Equal(t, want, k.Value())
	}
	extended, refused := k.Writes()
	assert.Equal(t, [2]int{2, 5}, [2]int{extended, refused})

	place, end, err := kernel.ReadOnly(k.Dir())
	require.NoError(t, err)
	_, err = os.OpenFile(filepath.Join(place, kernel.Name), os.O_WRONLY, 0)
	assert.ErrorIs(t, err, unix.EROFS)
	assert.NoError(t, end())
	k.Reset()
	assert.Equal(t, make([]byte, 48), read())
}
