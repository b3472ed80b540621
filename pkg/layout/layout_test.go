package layout_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/layout"
)

var data = []byte("the bytes of a blob")

// made is a layout with one blob.
func made(t *testing.T) (dir, blob string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	blobs := filepath.Join(dir, "blobs", "sha256")
	require.NoError(t, os.MkdirAll(blobs, 0o755))
	blob = filepath.Join(blobs, digest.Of(data).Hex())
	require.NoError(t, os.WriteFile(blob, data, 0o600))
	return dir, blob
}

func tarOf(t *testing.T, path string, headers ...*tar.Header) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		require.NoError(t, w.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write(data[:h.Size])
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
}

func read(at string) ([]byte, error) {
	l, err := layout.Open(at)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	blob, err := l.Blob(digest.Of(data))
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	got := make([]byte, blob.Size)
	_, err = blob.ReadAt(got, 0)
	return got, err
}

func TestBlob(t *testing.T) {
	t.Parallel()
	dir, _ := made(t)
	got, err := read(dir)
	require.NoError(t, err)
	assert.Equal(t, data, got)

	at := filepath.Join(dir, "image.tar")
	tarOf(t, at, &tar.Header{Typeflag: tar.TypeDir, Name: "blobs/", Mode: 0o755},
		&tar.Header{Typeflag: tar.TypeReg, Name: "index.json", Size: 3},
		&tar.Header{Typeflag: tar.TypeReg, Name: "./blobs/sha256/" + digest.Of(data).Hex(), Size: int64(len(data))})
	got, err = read(at)
	require.NoError(t, err)
	assert.Equal(t, data, got)

	l, err := layout.Open(at)
	require.NoError(t, err)
	defer l.Close()
	_, err = l.Blob(digest.Of([]byte("another")))
	require.ErrorIs(t, err, layout.ErrMissing)
}

// TestWhatIsNoLayout: links, pipes, devices and rubbish, of which no byte is told.
func TestWhatIsNoLayout(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	for name, c := range map[string]struct {
		plant func(t *testing.T, dir, blob string) (at string)
		want  error // nil: any
	}{
		"nothing": {func(_ *testing.T, dir, _ string) string { return dir + "/none" }, fs.ErrNotExist},
		"a link to it": {func(t *testing.T, dir, _ string) string {
			require.NoError(t, os.Symlink(dir, dir+"/link"))
			return dir + "/link"
		}, files.ErrNotRegular},
		"a link on the way": {func(t *testing.T, dir, _ string) string {
			require.NoError(t, os.Symlink(dir, dir+"/link"))
			return dir + "/link/blobs"
		}, files.ErrNotRegular},
		"a link to the blobs": {func(t *testing.T, dir, _ string) string {
			require.NoError(t, os.Rename(dir+"/blobs", dir+"/elsewhere"))
			require.NoError(t, os.Symlink("elsewhere", dir+"/blobs"))
			return dir
		}, files.ErrNotRegular},
		"a link to the blob": {func(t *testing.T, dir, blob string) string {
			require.NoError(t, os.Rename(blob, dir+"/elsewhere"))
			require.NoError(t, os.Symlink(dir+"/elsewhere", blob))
			return dir
		}, files.ErrNotRegular},
		"a pipe": {func(t *testing.T, dir, blob string) string {
			require.NoError(t, os.Remove(blob))
			require.NoError(t, syscall.Mkfifo(blob, 0o600))
			return dir
		}, files.ErrNotRegular},
		"a pipe for a tar": {func(t *testing.T, dir, _ string) string {
			require.NoError(t, syscall.Mkfifo(dir+"/x.tar", 0o600))
			return dir + "/x.tar"
		}, files.ErrNotRegular},
		"another file": {func(t *testing.T, dir, _ string) string {
			require.NoError(t, os.WriteFile(dir+"/shadow", []byte(strings.Repeat(secret, 1000)), 0o600))
			return dir + "/shadow"
		}, nil},
		"an empty directory": {func(t *testing.T, _, _ string) string {
			empty, err := filepath.EvalSymlinks(t.TempDir())
			require.NoError(t, err)
			return empty
		}, fs.ErrNotExist},
		"a link in a tar": {func(t *testing.T, dir, _ string) string {
			tarOf(t, dir+"/x.tar", &tar.Header{Typeflag: tar.TypeSymlink, Name: "blobs/sha256/" + digest.Of(data).Hex(), Linkname: "/etc/shadow"})
			return dir + "/x.tar"
		}, layout.ErrMissing},
		"too many entries": {func(t *testing.T, dir, _ string) string {
			var all []*tar.Header
			for i := range 20_001 {
				all = append(all, &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprint(i), Mode: 0o755})
			}
			tarOf(t, dir+"/x.tar", all...)
			return dir + "/x.tar"
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, blob := made(t)
			_, err := read(c.plant(t, dir, blob))
			require.Error(t, err)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
			}
			assert.NotContains(t, err.Error(), secret)
		})
	}
}

func TestBelow(t *testing.T) {
	t.Parallel()
	dir, _ := made(t)
	shared := filepath.Join(dir, "shared")
	require.NoError(t, os.MkdirAll(filepath.Join(shared, "images"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "sharedimages"), 0o755))
	require.NoError(t, os.Symlink(shared, filepath.Join(dir, "link")))
	for at, below := range map[string]bool{
		"shared": true, "shared/images": true, "shared/none": true, "sharedimages": false, "blobs/../shared": true, "blobs": false,
		"link/images": true, "none/at/all": true,
	} {
		assert.Equal(t, below, layout.Below(dir+"/"+at, shared), at)
	}
}
