package state_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/launchtest/growth"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/state"
)

const boot = "5b1b8b43-6c35-4f39-a5a0-7f8d3c1f0f0a"

func in(t *testing.T) (dir state.Dir, shared string) {
	shared = t.TempDir()
	opened, err := files.OpenDir(shared)
	require.NoError(t, err)
	t.Cleanup(func() { opened.Close() })
	return state.In(opened), shared
}

func hash(digit string) digest.Digest {
	d, err := digest.Parse("sha256:" + strings.Repeat(digit, 64))
	if err != nil {
		panic(err)
	}
	return d
}

func TestTheZeroValueHoldsNothing(t *testing.T) {
	t.Parallel()
	var d state.Dir
	assert.ErrorIs(t, d.CanMake(), fs.ErrNotExist)
	assert.ErrorIs(t, d.CanRecord(), fs.ErrNotExist)
	assert.ErrorIs(t, d.Make(), fs.ErrNotExist)
	assert.ErrorIs(t, d.Write("report.json", nil), fs.ErrNotExist)
	assert.ErrorIs(t, d.WriteRecord(admission.Record{ID: boot}), fs.ErrNotExist)
	assert.Zero(t, d.Record(boot))
	assert.Empty(t, d.Known(name.MustParseReference("hub.example/node").Context()))
}

func TestReadingMakesNothing(t *testing.T) {
	t.Parallel()
	d, shared := in(t)
	assert.NoError(t, d.CanMake())
	assert.Zero(t, d.Record(boot))
	assert.Empty(t, d.Known(name.MustParseReference("hub.example/node").Context()))
	entries, err := os.ReadDir(shared)
	require.NoError(t, err)
	assert.Empty(t, entries)

	require.NoError(t, d.Make())
	info, err := os.Stat(filepath.Join(shared, state.Name))
	require.NoError(t, err)
	assert.True(t, info.IsDir())
	assert.NoError(t, d.CanMake())
}

func TestWhatIsNoDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	for what, plant := range map[string]func(path string) error{
		"a file":         func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a link":         func(path string) error { return os.Symlink(t.TempDir(), path) },
		"a hanging link": func(path string) error { return os.Symlink("nowhere", path) },
	} {
		d, shared := in(t)
		require.NoError(t, plant(filepath.Join(shared, state.Name)))
		assert.NoError(t, d.CanMake(), what)
		assert.NoError(t, d.CanRecord(), what)
		assert.NoError(t, d.WriteRecord(admission.Record{ID: boot}), "%s is set aside", what)

		require.NoError(t, os.RemoveAll(filepath.Join(shared, state.Name)))
		require.NoError(t, os.RemoveAll(filepath.Join(shared, state.Name+".aside")))
		require.NoError(t, plant(filepath.Join(shared, state.Name)))
		require.NoError(t, os.Mkdir(filepath.Join(shared, state.Name+".aside"), 0o755))
		assert.Error(t, d.CanMake(), what)
		assert.Error(t, d.CanRecord(), what)
		assert.Error(t, d.Make(), what)
		assert.Error(t, d.WriteRecord(admission.Record{ID: boot}), what)
	}
}

func TestARecordIsOfItsBootAlone(t *testing.T) {
	t.Parallel()
	d, shared := in(t)
	begun := admission.Record{ID: boot}
	intent := admission.Record{ID: boot, Digest: hash("a"), Intent: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	done := intent
	done.Done = true
	for _, want := range []admission.Record{begun, intent, done} {
		require.NoError(t, d.WriteRecord(want))
		assert.Equal(t, want, d.Record(boot))
		for _, other := range []string{"", "another"} {
			assert.Zero(t, d.Record(other), "%q", other)
		}
	}
	assert.Equal(t, []bool{false, true, false}, []bool{begun.Unfinished(), intent.Unfinished(), done.Unfinished()})
	assert.Equal(t, []bool{false, true, true}, []bool{begun.Explains(hash("a")), intent.Explains(hash("a")), done.Explains(hash("a"))})
	for _, b := range []admission.Record{begun, intent, done} {
		assert.False(t, b.Explains(hash("b")))
		assert.False(t, b.Explains(digest.Digest{}), "no digest is none that could have been measured")
	}

	path := filepath.Join(shared, state.Name, "measurement.json")
	for _, forged := range []string{
		"", "{", "null", "[]", `{"boot_id":5}`, `{"boot_id":""}`, `{"boot_id":"` + boot + `","digest":"sha256:short"}`,
		`{"boot_id":"` + boot + `"}` + strings.Repeat(" ", 4<<10),
	} {
		require.NoError(t, os.WriteFile(path, []byte(forged), 0o600))
		assert.Zero(t, d.Record(boot), "%.80s", forged)
		assert.Zero(t, d.Record(""), "%.80s", forged)
	}
}

func TestTheLastFewImagesAreKept(t *testing.T) {
	t.Parallel()
	t.Run("and no other", func(t *testing.T) { t.Parallel(); keepsTheLastFew(t, -1) })
	t.Run("and the one that runs", func(t *testing.T) { t.Parallel(); keepsTheLastFew(t, 1) })
}

// keepsTheLastFew keeps five images, and the last three and the one of that number are there then.
func keepsTheLastFew(t *testing.T, spared int) {
	t.Helper()
	hub, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	defer hub.Close()
	d, shared := in(t)
	var refs []name.Digest
	for i := range 5 {
		layers, err := launchtest.RandomLayers(1, 100+i)
		require.NoError(t, err)
		img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
		require.NoError(t, err)
		ref, err := hub.Push("node", img)
		require.NoError(t, err)
		v, err := new(registry.Client).Source(ref).Resolve(t.Context())
		require.NoError(t, err)
		var but []digest.Digest
		if spared >= 0 && spared < i {
			running, err := digest.Parse(refs[spared].DigestStr())
			require.NoError(t, err)
			but = append(but, running)
		}
		require.NoError(t, d.Keep(v, but...))
		old := time.Now().Add(time.Duration(i-10) * time.Minute)
		require.NoError(t, os.Chtimes(filepath.Join(shared, state.Name, "image-"+strings.TrimPrefix(ref.DigestStr(), "sha256:")+".json"), old, old))
		refs = append(refs, ref)
	}
	require.NoError(t, hub.Close())
	require.NoError(t, d.Write("image-of-somebody", []byte("{}")))

	for i, ref := range refs {
		v, err := d.Restore(ref)
		if i < 2 && i != spared {
			assert.ErrorIs(t, err, fs.ErrNotExist)
			continue
		}
		require.NoError(t, err)
		assert.Equal(t, ref.DigestStr(), v.Digest().String())
	}
	more := 0
	if spared >= 0 {
		more = 1
	}
	assert.Len(t, d.Known(refs[0].Context()), 3+more)

	// One under another's name proves nothing.
	path := func(ref name.Digest) string {
		return filepath.Join(shared, state.Name, "image-"+strings.TrimPrefix(ref.DigestStr(), "sha256:")+".json")
	}
	require.NoError(t, os.Rename(path(refs[3]), path(refs[4])))
	_, err = d.Restore(refs[4])
	assert.Error(t, err)
	assert.Len(t, d.Known(refs[0].Context()), 1+more)
}

// TestGrowth restores what somebody else put in the place of a cached document.
func TestGrowth(t *testing.T) {
	d, shared := in(t)
	require.NoError(t, d.Make())
	ref, err := name.NewDigest("registry.test/a@" + hash("a").String())
	require.NoError(t, err)
	file := filepath.Join(shared, state.Name, "image-"+hash("a").Hex()+".json")
	for _, around := range []string{"%s", `{"Manifest":%s}`} {
		growth.Check(t, 128<<20, growth.JSON(around), func(document []byte) {
			require.NoError(t, os.WriteFile(file, document, 0o600))
			_, err := d.Restore(ref)
			require.Error(t, err)
			require.NotErrorIs(t, err, fs.ErrNotExist)
		})
	}
}

func TestWhoseLockItIs(t *testing.T) {
	t.Parallel()
	of := func(name string) state.Lock {
		return state.Lock{PID: "7", Container: &admission.Container{Container: inspect.Container{Name: name}}}
	}
	assert.False(t, state.Lock{}.Launcher(), "nobody's")
	assert.True(t, state.Lock{PID: "7"}.Launcher())
	assert.True(t, of("launcher").Launcher())
	assert.False(t, of("mpc-node").Launcher())
}

// TestTheLastFewLogsAreKept, whatever stands in their place, and nothing outside is touched.
func TestTheLastFewLogsAreKept(t *testing.T) {
	t.Parallel()
	d, shared := in(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	keep := func(boot string, hours int) string {
		t.Helper()
		name, err := d.KeepLog(boot, at.Add(time.Duration(hours)*time.Hour), []byte(boot))
		require.NoError(t, err)
		return filepath.Base(name)
	}
	logs := filepath.Join(shared, state.Name, state.LogDir)
	names := func() (names []string) {
		entries, err := os.ReadDir(logs)
		require.NoError(t, err)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	assert.Equal(t, "20260102T030405.006Z-"+boot+".log", keep(boot, 0))
	keep(boot, 0)
	assert.Len(t, names(), 1, "the same one")
	for i := range 5 {
		keep(boot, i)
		assert.LessOrEqual(t, len(names()), 3)
	}
	assert.Equal(t, "20260102T070405.006Z-"+boot+".log", names()[2])
	oldest := keep("../../of/an earlier time", -1)
	assert.Equal(t, "20260102T020405.006Z-ofanearliertime.log", oldest)
	assert.Contains(t, names(), oldest, "the one that was just kept stays, whatever the clocks say")
	assert.Len(t, names(), 3)
	long := keep(strings.Repeat("x", 1000), 9)
	assert.Less(t, len(long), 100)

	// What a killed writer left goes, and a directory stays where it is.
	for i := range 3 {
		require.NoError(t, os.WriteFile(filepath.Join(logs, fmt.Sprintf(".%d.log.tmp", i)), nil, 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(logs, "somebody's"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(logs, "a.log"), 0o755))
	keep(boot, 10)
	assert.Len(t, names(), 4, "%q", names())

	outside := t.TempDir()
	require.NoError(t, os.RemoveAll(logs))
	require.NoError(t, os.Symlink(outside, logs))
	keep(boot, 11)
	assert.Len(t, names(), 1)
	left, err := os.ReadDir(outside)
	require.NoError(t, err)
	assert.Empty(t, left)

	require.NoError(t, os.RemoveAll(logs))
	require.NoError(t, os.RemoveAll(logs+".aside"))
	require.NoError(t, os.WriteFile(logs, nil, 0o600))
	require.NoError(t, os.MkdirAll(logs+".aside/full", 0o755))
	_, err = d.KeepLog(boot, at, nil)
	assert.ErrorIs(t, err, fs.ErrExist)
	_, err = state.Dir{}.KeepLog(boot, at, nil)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}
