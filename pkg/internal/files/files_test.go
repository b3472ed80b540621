package files_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/internal/files"
)

func open(t *testing.T) (*files.Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := files.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d, path
}

func TestReadRefusesWhatAHostileNeighbourPlants(t *testing.T) {
	t.Parallel()
	d, path := open(t)
	require.NoError(t, os.WriteFile(filepath.Join(path, "plain"), []byte("ok"), 0o600))
	require.NoError(t, os.Symlink(filepath.Join(path, "plain"), filepath.Join(path, "link")))
	require.NoError(t, os.Symlink("/etc", filepath.Join(path, "dirlink")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(path, "pipe"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(path, "dir"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(path, "big"), make([]byte, 11), 0o600))

	got, err := d.Read("plain", 2)
	require.NoError(t, err)
	assert.Equal(t, "ok", string(got))

	for name, want := range map[string]error{
		"link": files.ErrNotRegular, "pipe": files.ErrNotRegular, "dir": files.ErrNotRegular,
		"big": files.ErrTooLarge, "missing": os.ErrNotExist, "../plain": os.ErrInvalid, "": os.ErrInvalid, "..": os.ErrInvalid,
	} {
		_, err := d.Read(name, 10)
		assert.ErrorIs(t, err, want, "reading %q", name)
	}
	_, err = d.Sub("dirlink")
	assert.ErrorIs(t, err, files.ErrNotRegular, "a linked directory")
	_, err = d.Sub("plain")
	assert.ErrorIs(t, err, files.ErrNotRegular, "a file where a directory should be")
	_, err = d.Open("none")
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = d.Names(3)
	assert.ErrorIs(t, err, files.ErrTooLarge)
	_, err = files.ReadFile(filepath.Join(path, "pipe"), 10)
	assert.ErrorIs(t, err, files.ErrNotRegular)
}

func TestWriteReplacesLinksAndLeavesTheirTargetsAlone(t *testing.T) {
	t.Parallel()
	d, path := open(t)
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("mine"), 0o600))
	require.NoError(t, os.Symlink(victim, filepath.Join(path, "out")))
	require.NoError(t, os.Symlink(victim, filepath.Join(path, ".out.tmp")))

	require.NoError(t, d.Write("out", []byte("new"), 0o644))

	got, err := os.ReadFile(victim)
	require.NoError(t, err)
	assert.Equal(t, "mine", string(got), "the link's target was written")
	info, err := os.Lstat(filepath.Join(path, "out"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o644), info.Mode(), "a regular file of the mode asked for")
	names, err := d.Names(10)
	require.NoError(t, err)
	assert.Equal(t, []string{"out"}, names, "no temporary file stays")
}

func TestLockDiesWithItsHolderAndSurvivesUnlinking(t *testing.T) {
	t.Parallel()
	first, path := open(t)
	second, err := files.OpenDir(path)
	require.NoError(t, err)
	defer second.Close()
	require.NoError(t, first.Lock())
	assert.ErrorIs(t, second.Lock(), files.ErrLocked)

	// The neighbour removes and remakes everything below the directory.
	require.NoError(t, os.RemoveAll(filepath.Join(path, "launcher")))
	require.NoError(t, os.Mkdir(filepath.Join(path, "launcher"), 0o755))
	assert.ErrorIs(t, second.Lock(), files.ErrLocked)

	third, err := files.OpenDir(path)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	assert.NoError(t, third.Lock())
	require.NoError(t, third.Close())
}

// TestWriteSurvivesAKillAtAnyPoint kills a real process that rewrites a file in a loop and finds one of its versions,
// whole, each time.
func TestWriteSurvivesAKillAtAnyPoint(t *testing.T) {
	t.Parallel()
	d, path := open(t)
	require.NoError(t, d.Write("f", content(0), 0o644))
	for round := range 25 {
		writer := exec.Command(os.Args[0], "write-forever", path)
		require.NoError(t, writer.Start())
		time.Sleep(time.Duration(5+round*3) * time.Millisecond)
		require.NoError(t, writer.Process.Kill())
		_ = writer.Wait() // killed, as it should be

		got, err := d.Read("f", 1<<20)
		require.NoError(t, err)
		n, err := strconv.Atoi(string(got[:bytes.IndexByte(got, '\n')]))
		require.NoError(t, err)
		require.True(t, bytes.Equal(content(n), got), "round %d: version %d is torn", round, n)
	}
	got, err := d.Read("f", 1<<20)
	require.NoError(t, err)
	assert.NotEqual(t, content(0), got, "the writer never got to write")
}

// content is version n of the file: its number, then a long run that depends on it.
func content(n int) []byte {
	return append([]byte(strconv.Itoa(n)+"\n"), bytes.Repeat([]byte{byte(n)}, 200_000)...)
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "write-forever" {
		d, err := files.OpenDir(os.Args[2])
		for n := 1; err == nil; n++ {
			err = d.Write("f", content(n), 0o644)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}
