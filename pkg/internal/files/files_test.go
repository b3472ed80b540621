package files_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/internal/files"
)

// bound is how long anything may take on the busiest of machines.
const bound = time.Minute

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
	_, err = d.Open("dirlink")
	assert.ErrorIs(t, err, files.ErrNotRegular, "a linked directory")
	_, err = d.Open("plain")
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

// sleeper is a clock that only counts.
type sleeper struct{ slept time.Duration }

func (s *sleeper) sleep(_ context.Context, d time.Duration) error {
	s.slept += d
	return nil
}

// TestTwoNamesOfOneFileGiveWay: a rename of one to the other does nothing, and says that it did.
func TestTwoNamesOfOneFileGiveWay(t *testing.T) {
	t.Parallel()
	d, path := open(t)
	at := func(name string) string { return filepath.Join(path, name) }
	require.NoError(t, os.WriteFile(at("launcher"), []byte("theirs"), 0o600))
	require.NoError(t, os.Link(at("launcher"), at("launcher.aside")))
	sub, err := d.Sub("launcher")
	require.NoError(t, err)
	require.NoError(t, sub.Close())
	kept, err := os.ReadFile(at("launcher.aside"))
	require.NoError(t, err)
	assert.Equal(t, "theirs", string(kept))

	names := []string{"f", ".f.tmp", "f.aside", ".f.tmp.aside"}
	for i, name := range names {
		require.NoError(t, os.RemoveAll(at(name)))
		for _, other := range names[:i] {
			require.NoError(t, os.RemoveAll(at(other)))
			require.NoError(t, os.WriteFile(at(other), []byte("theirs"), 0o666))
			require.NoError(t, os.RemoveAll(at(name)))
			require.NoError(t, os.Link(at(other), at(name)))
			require.NoError(t, d.Write("f", []byte("ours"), 0o600), "%s and %s", other, name)
			info, err := os.Lstat(at("f"))
			require.NoError(t, err)
			assert.Equal(t, fs.FileMode(0o600), info.Mode(), "%s and %s", other, name)
			got, err := d.Read("f", 10)
			require.NoError(t, err)
			assert.Equal(t, "ours", string(got), "%s and %s", other, name)
			assert.NoFileExists(t, at(".f.tmp"))
		}
	}
}

func TestLockDiesWithItsHolderAndSurvivesUnlinking(t *testing.T) {
	t.Parallel()
	first, path := open(t)
	second, err := files.OpenDir(path)
	require.NoError(t, err)
	defer second.Close()
	var clock sleeper
	require.NoError(t, first.Lock(t.Context(), clock.sleep))
	assert.Zero(t, clock.slept, "it is free")
	assert.ErrorIs(t, second.Lock(t.Context(), clock.sleep), files.ErrLocked)
	assert.Equal(t, 3*time.Second, clock.slept)

	// The neighbour removes and remakes everything below the directory.
	require.NoError(t, os.RemoveAll(filepath.Join(path, "launcher")))
	require.NoError(t, os.Mkdir(filepath.Join(path, "launcher"), 0o755))
	assert.ErrorIs(t, second.Lock(t.Context(), clock.sleep), files.ErrLocked)

	why := errors.New("told to stop")
	interrupted := func(context.Context, time.Duration) error { return why }
	assert.ErrorIs(t, second.Lock(t.Context(), interrupted), why)

	third, err := files.OpenDir(path)
	require.NoError(t, err)
	require.NoError(t, second.Close())
	err = third.Lock(t.Context(), clock.sleep)
	assert.ErrorIs(t, err, files.ErrLocked, "who never had it can't give it up")
	require.NoError(t, first.Close())
	clock.slept = 0
	assert.NoError(t, third.Lock(t.Context(), clock.sleep))
	assert.Zero(t, clock.slept)
	require.NoError(t, third.Close())
}

// TestALockIsGivenUpWhateverIsBeingStarted: between fork and exec every child has a copy of all
// descriptors.
func TestALockIsGivenUpWhateverIsBeingStarted(t *testing.T) {
	t.Parallel()
	_, path := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	impatient := func(context.Context, time.Duration) error { return errors.New("it is held") }
	var forks atomic.Int64
	var forking sync.WaitGroup
	defer func() { cancel(); forking.Wait() }()
	for range 4 {
		forking.Go(func() {
			for ctx.Err() == nil {
				assert.NoError(t, exec.Command("true").Run())
				forks.Add(1)
			}
		})
	}
	for forks.Load() < 400 {
		d, err := files.OpenDir(path)
		require.NoError(t, err)
		err = d.Lock(t.Context(), impatient)
		assert.NoError(t, errors.Join(err, d.Close()))
		if t.Failed() {
			return
		}
	}
}

// TestTheLockOfADeadProcessIsWaitedFor: a process that was killed while it started a child has left
// its lock in that for as long as the child takes to its exec.
func TestTheLockOfADeadProcessIsWaitedFor(t *testing.T) {
	t.Parallel()
	d, path := open(t)
	alive, told, err := os.Pipe()
	require.NoError(t, err)
	defer alive.Close()
	ready, tell, err := os.Pipe()
	require.NoError(t, err)
	defer ready.Close()
	holder := exec.Command(os.Args[0], "lock-and-start-a-child", path)
	holder.ExtraFiles = []*os.File{alive, tell}
	require.NoError(t, holder.Start())
	require.NoError(t, tell.Close())
	_, err = ready.Read(make([]byte, 1))
	require.NoError(t, err, "the child has the lock's descriptor")
	require.NoError(t, holder.Process.Kill())
	_ = holder.Wait() // killed, as it should be

	// A child that stays looks like any other holder.
	var clock sleeper
	assert.ErrorIs(t, d.Lock(t.Context(), clock.sleep), files.ErrLocked)

	tries := 0
	assert.NoError(t, d.Lock(t.Context(), func(context.Context, time.Duration) error {
		if tries++; tries == 2 {
			require.NoError(t, told.Close())
			_, err := ready.Read(make([]byte, 1))
			assert.ErrorIs(t, err, io.EOF, "the child has ended")
		}
		return nil
	}))
	assert.Equal(t, 2, tries)
}

// lockAndStartAChild locks a directory and starts a child as it is before its exec: with the
// descriptor of the lock.
func lockAndStartAChild(path string) error {
	d, err := files.OpenDir(path)
	if err != nil {
		return err
	}
	if err := d.Lock(context.Background(), new(sleeper).sleep); err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	child := exec.Command("sh", "-c", "echo >&4; read -r wait <&3")
	child.ExtraFiles = []*os.File{os.NewFile(3, "alive"), os.NewFile(4, "tell")}
	for _, e := range entries {
		if target, _ := os.Readlink("/proc/self/fd/" + e.Name()); target != path {
			continue
		}
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		child.ExtraFiles = append(child.ExtraFiles, os.NewFile(uintptr(n), path))
	}
	if len(child.ExtraFiles) != 3 {
		return fmt.Errorf("%d descriptors of %s", len(child.ExtraFiles)-2, path)
	}
	if err := child.Start(); err != nil {
		return err
	}
	return child.Wait()
}

// TestWriteSurvivesAKillAtAnyPoint kills a real process that rewrites a file in a loop and finds
// one of its versions, whole, each time.
func TestWriteSurvivesAKillAtAnyPoint(t *testing.T) {
	t.Parallel()
	d, path := open(t)
	require.NoError(t, d.Write("f", content(0), 0o644))
	size := func(name string) int64 {
		info, err := os.Lstat(filepath.Join(path, name))
		if err != nil {
			return -1
		}
		return info.Size()
	}
	points := []func() bool{
		func() bool { return true },
		func() bool { return size(".f.tmp") == 0 },
		func() bool { return size(".f.tmp") > 0 },
		func() bool { return size(".f.tmp") < 0 },
	}
	for round := range 24 {
		writer := exec.Command(os.Args[0], "write-forever", path)
		written, err := writer.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, writer.Start())
		_, err = io.ReadFull(written, make([]byte, 1+round/len(points)))
		require.NoError(t, err)
		for began, point := time.Now(), points[round%len(points)]; !point(); {
			require.Less(t, time.Since(began), bound, "the writer doesn't write")
		}
		require.NoError(t, writer.Process.Kill())
		_ = writer.Wait() // killed, as it should be

		got, err := d.Read("f", 1<<20)
		require.NoError(t, err)
		n, err := strconv.Atoi(string(got[:bytes.IndexByte(got, '\n')]))
		require.NoError(t, err)
		require.True(t, bytes.Equal(content(n), got), "round %d: version %d is torn", round, n)
		require.Positive(t, n, "the writer said that it wrote one")
	}
}

// content is version n of the file: its number, then a long run that depends on it.
func content(n int) []byte {
	return append([]byte(strconv.Itoa(n)+"\n"), bytes.Repeat([]byte{byte(n)}, 200_000)...)
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "write-forever" {
		d, err := files.OpenDir(os.Args[2])
		for n := 1; err == nil; n++ {
			if err = d.Write("f", content(n), 0o644); err == nil {
				_, err = os.Stdout.WriteString("x")
			}
		}
		os.Exit(1)
	}
	if len(os.Args) == 3 && os.Args[1] == "lock-and-start-a-child" {
		fmt.Fprintln(os.Stderr, lockAndStartAChild(os.Args[2]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}
