package rtmr_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/launchtest/kernel"
	"tee-launcher/pkg/rtmr"
)

// TestMain lets the test binary play a launcher that is killed while it measures.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "measure-natively" {
		os.Exit(measureNatively())
	}
	os.Exit(m.Run())
}

// machine is a CVM of dstack 0.6: a kernel, dstack's files and an agent that reads both.
type machine struct {
	t       *testing.T
	kernel  *kernel.Kernel
	double  *launchtest.Agent
	agent   *rtmr.Agent
	mounts  rtmr.Mounts
	clock   *clock
	journal *journal
}

func newMachine(t *testing.T, version string) *machine {
	t.Helper()
	k, err := kernel.New()
	require.NoError(t, err, "these tests need /dev/fuse, and root or fusermount3")
	t.Cleanup(func() { assert.NoError(t, k.Close()) })
	m := &machine{t: t, kernel: k, journal: &journal{Recorder: &launchtest.Recorder{}}}
	m.mounts = rtmr.Mounts{Registers: k.Dir(), Runtime: k.Runtime()}
	m.double, m.agent, m.clock = agents(t, launchtest.AgentOptions{
		Release: "0.6.0", Register: k, RuntimeDir: m.mounts.Runtime, LogVersion: version,
	})
	return m
}

func (m *machine) backend() rtmr.Backend { return m.mounts.Backend(m.agent) }

// boot does what a launcher does with the backend, and returns what is measured.
func boot(
	ctx context.Context, b rtmr.Backend, record rtmr.Recorder, images ...digest.Digest,
) (rtmr.Measurement, error) {
	log, _, err := b.Settle(ctx, rtmr.Earlier{Begun: true, Images: images})
	if err != nil {
		return rtmr.Measurement{}, err
	}
	wanted := images[0]
	if events := log.Images(); len(events) > 0 {
		wanted, _ = events[0].Image()
	} else if err := b.CanEmit(ctx); err != nil {
		return rtmr.Measurement{}, err
	}
	return rtmr.Measure(ctx, b, wanted, record)
}

func (m *machine) boot(images ...digest.Digest) (rtmr.Measurement, error) {
	return boot(m.t.Context(), m.backend(), m.journal, images...)
}

// file returns the path of one of dstack's files.
func (m *machine) file(name string) string { return filepath.Join(m.mounts.Runtime, name) }

func (m *machine) logged() string {
	data, err := os.ReadFile(m.file("runtime_events.log"))
	require.NoError(m.t, err)
	return string(data)
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	require.NoError(m.t, os.WriteFile(m.file(name), []byte(text), 0o600))
}

// sound holds what has to hold whatever happened: exactly that one event, extended once, in a log
// that a verifier accepts.
func (m *machine) sound(want digest.Digest) {
	m.t.Helper()
	log, err := rtmr.Parse([]byte(m.double.TCBInfo()))
	require.NoError(m.t, err)
	got, err := log.Accepted()
	assert.NoError(m.t, err)
	assert.Equal(m.t, want, got)
	extended, refused := m.kernel.Writes()
	assert.LessOrEqual(m.t, extended, 1)
	assert.Zero(m.t, refused, "writes that are no extension")
	assert.Empty(m.t, m.double.Unexpected())
	assert.Zero(m.t, m.double.Emits())
}

// line is what dstack would have written.
func line(image digest.Digest) string {
	return fmt.Sprintf(`{"event":"mpc-image-digest","payload":"%s"}`+"\n", base64.StdEncoding.EncodeToString(image[:]))
}

func ahead(m *machine, name string, payload []byte) { m.kernel.Extend(rtmr.DigestV1(name, payload)) }

func TestNativeExactlyOnce(t *testing.T) {
	t.Parallel()
	wished, other := image(t, measuredHex), image(t, otherHex)
	readOnly := func(dir string) func(*machine) {
		return func(m *machine) {
			of := &m.mounts.Registers
			if dir == "runtime" {
				of = &m.mounts.Runtime
			}
			place, end, err := kernel.ReadOnly(*of)
			require.NoError(m.t, err)
			m.t.Cleanup(func() { assert.NoError(m.t, end()) })
			*of = place
		}
	}
	for name, c := range map[string]struct {
		version string
		prepare func(*machine)
		ok      bool
		already bool
		piece   rtmr.Piece
		outcome rtmr.Outcome
		reason  rtmr.Reason
		fault   rtmr.Fault
		writes  int
		again   bool // a further run of the boot ends well, once what is wrong was put right
		waited  bool
	}{
		"all is well": {ok: true, writes: 1},
		"already measured": {
			prepare: func(m *machine) { m.double.Emit(rtmr.EventName, wished[:]) }, ok: true, already: true,
		},
		"another image": {
			prepare: func(m *machine) { m.double.Emit(rtmr.EventName, other[:]) }, reason: rtmr.OtherDigest,
		},
		"measured twice": {
			prepare: func(m *machine) {
				m.double.Emit(rtmr.EventName, wished[:])
				m.double.Emit(rtmr.EventName, wished[:])
			}, reason: rtmr.DuplicateEvent,
		},
		"somebody's other event": {
			prepare: func(m *machine) { m.double.Emit("vault", []byte{1}) }, ok: true, writes: 1,
		},

		// What is missing.
		"no register":        {prepare: func(m *machine) { m.mounts.Registers = m.t.TempDir() }, piece: rtmr.NoRegisters},
		"no such directory":  {prepare: func(m *machine) { m.mounts.Registers += "/x" }, piece: rtmr.NoRegisters},
		"read-only register": {prepare: readOnly("registers"), piece: rtmr.ReadOnly},
		"no log directory":   {prepare: func(m *machine) { m.mounts.Runtime += "/x" }, piece: rtmr.NoRuntime},
		"empty directory":    {prepare: func(m *machine) { m.mounts.Runtime = m.t.TempDir() }, piece: rtmr.NoRuntime},
		"read-only log":      {prepare: readOnly("runtime"), piece: rtmr.RuntimeFixed},
		"a link in the log's place": {
			prepare: func(m *machine) {
				log := m.file("runtime_events.log")
				require.NoError(m.t, os.Rename(log, log+".real"))
				require.NoError(m.t, os.Symlink(log+".real", log))
			}, piece: rtmr.NoRuntime,
		},
		"version 2":        {version: "2", piece: rtmr.OtherVersion},
		"an odd version":   {prepare: func(m *machine) { m.write("runtime_event_version", "3") }, piece: rtmr.OtherVersion},
		"no version":       {prepare: func(m *machine) { require.NoError(m.t, os.Remove(m.file("runtime_event_version"))) }, piece: rtmr.NoRuntime},
		"version, newline": {prepare: func(m *machine) { m.write("runtime_event_version", "1\n") }, ok: true, writes: 1},
		"a line of version 2": {
			prepare: func(m *machine) {
				m.kernel.Extend(rtmr.DigestV2("x", nil))
				m.write("runtime_events.log", m.logged()+`{"event":"x","payload":"","version":2}`+"\n")
			}, reason: rtmr.WrongVersion,
		},
		"half a line": {
			prepare: func(m *machine) { m.write("runtime_events.log", m.logged()+line(wished)[:20]) },
			piece:   rtmr.Unreadable,
		},
		"nonsense": {
			prepare: func(m *machine) { m.write("runtime_events.log", m.logged()+"nonsense\n") },
			piece:   rtmr.Unreadable,
		},
		"a line that isn't in the register": {
			prepare: func(m *machine) { m.write("runtime_events.log", m.logged()+line(wished)) },
			reason:  rtmr.WrongRegister,
		},
		"an extension without its line": {
			prepare: func(m *machine) { ahead(m, "vault", nil) }, reason: rtmr.WrongRegister,
		},
		"an empty log": {prepare: func(m *machine) { m.write("runtime_events.log", "") }, reason: rtmr.NoEvents},
		"a lock for ever": {
			prepare: func(m *machine) { m.holdLock() }, piece: rtmr.Locked, waited: true,
		},
		"a full /run": {prepare: func(m *machine) { m.fill() }, piece: rtmr.NoRoom},

		// What the agent says counts as well.
		"no agent": {
			prepare: func(m *machine) { require.NoError(m.t, m.double.Stop()) }, fault: rtmr.Unreachable,
		},
		"the agent of another machine": {
			prepare: func(m *machine) {
				m.journal.onIntent = func() { m.agent.Socket = newMachine(m.t, "").double.Socket() }
			}, outcome: rtmr.Unclear, reason: rtmr.WrongRegister, writes: 1, // whose register is the same until ours is extended
		},
		"the agent of another machine, which measured more": {
			prepare: func(m *machine) {
				m.journal.onIntent = func() {
					another := newMachine(m.t, "")
					another.double.Emit("vault", nil)
					m.agent.Socket = another.double.Socket()
				}
			}, outcome: rtmr.NotEmitted, reason: rtmr.WrongRegister,
		},

		// The extension.
		"busy twice": {
			prepare: func(m *machine) { m.kernel.Fail(kernel.Fault{Err: syscall.EBUSY}, kernel.Fault{Err: syscall.EIO}) },
			ok:      true, writes: 1,
		},
		"busy": {
			prepare: func(m *machine) {
				busy := kernel.Fault{Err: syscall.EBUSY}
				m.kernel.Fail(busy, busy, busy)
			}, outcome: rtmr.NotEmitted, again: true,
		},
		// The register's file shows then what it held before, so that only a quote tells.
		"done, and an error": {
			prepare: func(m *machine) { m.kernel.Fail(kernel.Fault{Err: syscall.EIO, Done: true}) },
			outcome: rtmr.Unclear, reason: rtmr.WrongRegister, piece: rtmr.ReadOnly, writes: 1,
		},
		"busy, and no quote that tells": {
			prepare: func(m *machine) {
				m.kernel.Fail(kernel.Fault{Err: syscall.EBUSY})
				m.kernel.Around(nil, func() {
					m.double.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails, Times: -1})
				})
			}, outcome: rtmr.Unclear, fault: rtmr.Refused, piece: rtmr.ReadOnly, again: true, waited: true,
		},
		"success, and nothing done": {
			prepare: func(m *machine) { m.kernel.Fail(kernel.Fault{}) }, outcome: rtmr.Unclear, again: true,
		},
		"moved right before": {
			prepare: func(m *machine) { m.kernel.Around(func() { ahead(m, "x", nil) }, nil) },
			outcome: rtmr.Poisoned, reason: rtmr.WrongRegister, writes: 1,
		},
		"moved right after": {
			prepare: func(m *machine) { m.kernel.Around(nil, func() { ahead(m, "x", nil) }) },
			outcome: rtmr.Poisoned, reason: rtmr.WrongRegister, writes: 1,
		},
		"moved by our own event, twice": {
			prepare: func(m *machine) { m.kernel.Around(nil, func() { ahead(m, rtmr.EventName, wished[:]) }) },
			outcome: rtmr.Poisoned, reason: rtmr.WrongRegister, writes: 1,
		},
		"unreadable afterwards": {
			prepare: func(m *machine) { m.kernel.Around(nil, func() { m.kernel.Break(true) }) },
			outcome: rtmr.Unclear, piece: rtmr.NoRegisters, writes: 1, again: true,
		},
		"no quote afterwards": {
			prepare: func(m *machine) {
				m.kernel.Around(nil, func() {
					m.double.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails, Times: -1})
				})
			}, outcome: rtmr.Unclear, fault: rtmr.Refused, writes: 1, again: true, waited: true,
		},
		"somebody else, after the intent": {
			prepare: func(m *machine) {
				m.journal.onIntent = func() { m.double.Emit(rtmr.EventName, wished[:]) }
			}, ok: true, already: true,
		},
		"another image, after the intent": {
			prepare: func(m *machine) {
				m.journal.onIntent = func() { m.double.Emit(rtmr.EventName, other[:]) }
			}, outcome: rtmr.NotEmitted, reason: rtmr.OtherDigest,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, c.version)
			if c.prepare != nil {
				c.prepare(m)
			}
			proof, err := m.boot(wished)
			if name == "another image" { // which the rules refuse before it comes to that
				proof, err = rtmr.Measure(t.Context(), m.backend(), wished, m.journal)
			}
			if c.ok {
				require.NoError(t, err)
				assert.Equal(t, wished, proof.Digest())
				assert.Equal(t, c.already, proof.AlreadyPresent())
				assert.Equal(t, m.double.RTMR3(), proof.RTMR3().String())
				m.sound(wished)
				assert.Equal(t, !c.already, strings.Contains(strings.Join(m.journal.Effects(), " "), "done"))
			} else {
				require.Error(t, err)
				assert.Zero(t, proof.Digest())
			}
			assert.Equal(t, c.waited, m.clock.elapsed > 0, "waited %v", m.clock.elapsed)
			var measuring *rtmr.MeasureError
			if errors.As(err, &measuring) {
				assert.Equal(t, c.outcome, measuring.Outcome, "%v", err)
			} else {
				assert.Empty(t, c.outcome, "%v", err)
			}
			var missing *rtmr.NativeError
			if errors.As(err, &missing) && c.piece != "" || c.piece != "" {
				require.ErrorAs(t, err, &missing)
				assert.Equal(t, c.piece, missing.Piece, "%v", err)
				assert.NotEmpty(t, missing.Hints())
			}
			var rejected *rtmr.Rejection
			if errors.As(err, &rejected) || c.reason != "" {
				require.ErrorAs(t, err, &rejected)
				assert.Equal(t, c.reason, rejected.Reason, "%v", err)
			}
			var failed *rtmr.AgentError
			if errors.As(err, &failed) || c.fault != "" {
				require.ErrorAs(t, err, &failed)
				assert.Equal(t, c.fault, failed.Fault, "%v", err)
			}
			extended, refused := m.kernel.Writes()
			assert.Equal(t, c.writes, extended)
			assert.Zero(t, refused)
			if !c.again {
				_, err := m.boot(wished)
				assert.Equal(t, c.ok || c.reason == rtmr.OtherDigest, err == nil, "%v", err)
				extended, _ = m.kernel.Writes()
				assert.Equal(t, c.writes, extended, "a further run extends nothing")
				return
			}
			m.kernel.Break(false)
			m.double.Heal()
			_, err = m.boot(wished)
			require.NoError(t, err)
			m.sound(wished)
		})
	}
}

// holdLock is somebody who takes dstack's lock and never gives it up.
func (m *machine) holdLock() {
	lock, err := os.OpenFile(m.file("runtime_event.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(m.t, err)
	m.t.Cleanup(func() { lock.Close() })
	require.NoError(m.t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
}

// fill moves dstack's files to a /run that is full right behind the log's last line, and returns
// what makes room.
func (m *machine) fill() (free func()) {
	m.t.Helper()
	const page = 4096
	place, end, err := kernel.Small(16 * page)
	require.NoError(m.t, err)
	m.t.Cleanup(func() { assert.NoError(m.t, end()) })
	padding := make([]byte, (page-len(m.logged())-len(`{"event":"pad","payload":""}`)-8)/4*3)
	m.double.Emit("pad", padding)
	log := m.logged()
	require.Less(m.t, page-len(log), 60)
	require.LessOrEqual(m.t, len(log), page)
	m.double.Move(place)
	m.mounts.Runtime = place
	filler := m.file("filler")
	f, err := os.Create(filler)
	require.NoError(m.t, err)
	defer f.Close()
	_, err = io.Copy(f, endless{})
	require.ErrorIs(m.t, err, unix.ENOSPC)
	return func() { require.NoError(m.t, os.Remove(filler)) }
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestARepair: a register that is ahead of the log by an event of one of the images gets its line,
// wherever that line ends by now.
func TestARepair(t *testing.T) {
	t.Parallel()
	wished, other := image(t, measuredHex), image(t, otherHex)
	m := newMachine(t, "")
	before := m.logged()
	ahead(m, rtmr.EventName, wished[:])
	for written := range len(line(wished)) {
		m.write("runtime_events.log", before+line(wished)[:written])
		if written > 0 && written < len(line(wished))-1 {
			_, err := m.agent.Info(t.Context())
			require.Error(t, err, "dstack can't read half a line")
		}
		// By now another image is the first of the list.
		proof, err := m.boot(other, wished)
		require.NoError(t, err, "%d", written)
		assert.Equal(t, wished, proof.Digest())
		assert.True(t, proof.AlreadyPresent())
		assert.Equal(t, before+line(wished), m.logged())
		m.sound(wished)
	}
	extended, _ := m.kernel.Writes()
	assert.Zero(t, extended, "nothing but the line was missing")
	assert.Empty(t, m.journal.Effects())

	for name, tail := range map[string]string{
		"no line, and not in the list": "", "another image's line": line(other)[:40], "somebody's line": `{"event":"x`,
	} {
		images := []digest.Digest{other, wished}
		if tail == "" {
			images = images[:1]
		}
		m.write("runtime_events.log", before+tail)
		_, err := m.boot(images...)
		require.Error(t, err, name)
		assert.Equal(t, before+tail, m.logged(), name)
	}

	// Two events are ahead: no line could mend that.
	ahead(m, rtmr.EventName, wished[:])
	for _, text := range []string{before, before + line(wished)} {
		m.write("runtime_events.log", text)
		_, err := m.boot(wished)
		require.Error(t, err)
		assert.Equal(t, text, m.logged())
	}
}

// TestARepairInAFullRun waits for room, and doesn't write half a line.
func TestARepairInAFullRun(t *testing.T) {
	t.Parallel()
	wished := image(t, measuredHex)
	m := newMachine(t, "")
	free := m.fill()
	ahead(m, rtmr.EventName, wished[:])
	before := m.logged()
	_, err := m.boot(wished)
	var missing *rtmr.NativeError
	require.ErrorAs(t, err, &missing)
	assert.Equal(t, rtmr.NoRoom, missing.Piece)
	assert.Equal(t, before, m.logged())
	free()
	_, err = m.boot(wished)
	require.NoError(t, err)
	m.sound(wished)
}

// TestRoomIsReserved: a /run that fills up between the extension and the line has room for it.
func TestRoomIsReserved(t *testing.T) {
	t.Parallel()
	wished := image(t, measuredHex)
	m := newMachine(t, "")
	free := m.fill()
	free()
	m.kernel.Around(func() {
		f, err := os.Create(m.file("filler"))
		if assert.NoError(t, err) {
			defer f.Close()
			_, err = io.Copy(f, endless{})
			assert.ErrorIs(t, err, unix.ENOSPC)
		}
	}, nil)
	_, err := m.boot(wished)
	require.NoError(t, err)
	m.sound(wished)
}

// TestManyAtOnce: launchers and dstack's own writers under the same lock.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	wished := image(t, measuredHex)
	for range 5 {
		m := newMachine(t, "")
		m.agent.Sleep, m.agent.Now, m.agent.WithTimeout = nil, nil, nil
		first := make(chan bool, 2)
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				proof, err := m.boot(wished)
				assert.NoError(t, err)
				first <- !proof.AlreadyPresent()
			})
		}
		for i := range 2 {
			all.Go(func() {
				for n := range 5 {
					m.double.Emit("vault", []byte{byte(i), byte(n)})
				}
			})
		}
		all.Wait()
		assert.NotEqual(t, <-first, <-first, "one of them measured it")
		m.sound(wished)
		assert.Len(t, m.double.Events(), 8+10+1)
	}
}

// order is what a launcher is told that runs as a process of its own.
type order struct {
	Socket string
	Mounts rtmr.Mounts
	Images []digest.Digest
	Halt   int // the line of its log after which it stands still
}

// nobody keeps no record, and is asked for one in vain.
type nobody struct{}

func (nobody) Intent(digest.Digest) error  { return nil }
func (nobody) Done(rtmr.Measurement) error { return nil }

// halting stands still after a line.
type halting struct{ left int }

func (h *halting) Write(p []byte) (int, error) {
	n, err := os.Stdout.Write(p)
	if h.left--; h.left == 0 {
		select {}
	}
	return n, err
}

func measureNatively() int {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	log := slog.New(slog.NewTextHandler(&halting{o.Halt}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	_, err := boot(context.Background(), o.Mounts.Backend(&rtmr.Agent{Socket: o.Socket, Logger: log}), nobody{}, o.Images...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// until starts a launcher, kills it after so many lines of its log, or lets it end, and returns them.
func (m *machine) until(halt int, images ...digest.Digest) []string {
	m.t.Helper()
	data, err := json.Marshal(order{m.double.Socket(), m.mounts, images, halt})
	require.NoError(m.t, err)
	cmd := exec.CommandContext(m.t.Context(), os.Args[0], "measure-natively")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(data), &stderr
	out, err := cmd.StdoutPipe()
	require.NoError(m.t, err)
	require.NoError(m.t, cmd.Start())
	var lines []string
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		_, line, _ := strings.Cut(scanner.Text(), "msg=")
		if lines = append(lines, line); len(lines) == halt {
			require.NoError(m.t, cmd.Process.Kill())
		}
	}
	err = cmd.Wait()
	if halt == 0 {
		require.NoError(m.t, err, "%s", &stderr)
	}
	return lines
}

// TestKilledNatively kills a launcher before and after each thing that it does. Whatever it was at:
// the next run of the boot and the first of the next one end well, with one event.
func TestKilledNatively(t *testing.T) {
	t.Parallel()
	wished, other := image(t, measuredHex), image(t, otherHex)
	reference := newMachine(t, "")
	lines := reference.until(0, wished)
	reference.sound(wished)
	said := strings.Join(lines, "\n")
	for _, step := range []string{"locking", "reading", "comparing", "reserving", "emitting", "reading back", "appending", "syncing"} {
		assert.Contains(t, said, step)
	}
	for i, line := range lines {
		t.Run(fmt.Sprintf("%d %.40s", i+1, line), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, "")
			m.until(i+1, wished)
			proof, err := m.boot(other, wished) // the list changed in between
			require.NoError(t, err)
			extended, _ := m.kernel.Writes()
			assert.Equal(t, 1, extended)
			assert.Contains(t, []digest.Digest{other, wished}, proof.Digest())
			m.sound(proof.Digest())
			again, err := m.boot(wished, other)
			require.NoError(t, err)
			assert.Equal(t, proof.Digest(), again.Digest())
			assert.True(t, again.AlreadyPresent())
			m.sound(proof.Digest())

			m.double.Reboot()
			m.until(i+1, wished)
			m.double.Reboot()
			proof, err = m.boot(other, wished)
			require.NoError(t, err)
			assert.Equal(t, other, proof.Digest())
			m.sound(other)
		})
	}
}
