package rtmr_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

// journal records for Measure, into the same list as the agent.
type journal struct {
	*launchtest.Recorder
	intent, done error
	onIntent     func()
}

func (j *journal) Intent(digest.Digest) error {
	if j.onIntent != nil {
		j.onIntent()
	}
	if j.intent == nil {
		j.Record("intent")
	}
	return j.intent
}

func (j *journal) Done(m rtmr.Measurement) error {
	if j.done == nil {
		j.Record("done " + m.Digest().String()[:11])
	}
	return j.done
}

// bench is an agent, its client, and what a case does to them.
type bench struct {
	double  *launchtest.Agent
	agent   *rtmr.Agent
	clock   *clock
	journal *journal
}

func newBench(t testing.TB, release string) *bench {
	t.Helper()
	j := &journal{Recorder: &launchtest.Recorder{}}
	double, agent, c := agents(t, launchtest.AgentOptions{Release: release, Recorder: j.Recorder})
	return &bench{double, agent, c, j}
}

func (b *bench) fail(kind launchtest.AgentFaultKind, times int) {
	b.double.Fail(launchtest.AgentFault{Kind: kind, Match: "EmitEvent mpc-image-digest", Times: times})
}

// images counts the image events of this boot.
func (b *bench) images() int {
	n := 0
	for _, e := range b.double.Events() {
		if e.Name == rtmr.EventName {
			n++
		}
	}
	return n
}

// asked counts the emits that were asked for over the socket, whatever became of them.
func (b *bench) asked() int {
	n := 0
	for _, r := range b.double.Requests() {
		if r == "EmitEvent mpc-image-digest" {
			n++
		}
	}
	return n
}

func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	const emitted = "emit mpc-image-digest"
	const recorded = "done sha256:564a"
	measured := []string{"intent", emitted, recorded}
	began := []string{"intent"}
	quoteFails := launchtest.AgentFault{Kind: launchtest.QuoteFails, Times: -1}

	for name, c := range map[string]struct {
		release string
		prepare func(*testing.T, *bench)
		already bool
		outcome rtmr.Outcome // of the MeasureError; empty: none
		fault   rtmr.Fault   // of the AgentError in the error; empty: none
		reason  rtmr.Reason  // of the Rejection in the error; empty: none
		ok      bool
		effects []string
		asked   int // emits over the socket
		images  int // events in the log afterwards, with all that was put off
		waited  time.Duration
	}{
		"all is well":   {ok: true, effects: measured, asked: 1, images: 1},
		"dstack 0.5.0":  {release: "0.5.0", ok: true, effects: measured, asked: 1, images: 1},
		"dstack 0.5.11": {release: "0.5.11", ok: true, effects: measured, asked: 1, images: 1},

		// The log decides before the emit.
		"already measured": {
			prepare: func(t *testing.T, b *bench) { b.double.Emit(rtmr.EventName, unhex(t, measuredHex)) },
			ok:      true, already: true, images: 1,
		},
		"another image": {
			prepare: func(t *testing.T, b *bench) { b.double.Emit(rtmr.EventName, unhex(t, otherHex)) },
			reason:  rtmr.OtherDigest, images: 1,
		},
		"measured twice": {
			prepare: func(t *testing.T, b *bench) {
				b.double.Emit(rtmr.EventName, unhex(t, measuredHex))
				b.double.Emit(rtmr.EventName, unhex(t, measuredHex))
			},
			reason: rtmr.DuplicateEvent, images: 2,
		},
		"an image event without a digest": {
			prepare: func(t *testing.T, b *bench) { b.double.Emit(rtmr.EventName, nil) },
			reason:  rtmr.WrongPayload, images: 1,
		},
		"an image event in disguise": {
			prepare: func(t *testing.T, b *bench) { b.double.Emit(rtmr.EventName+":x", make([]byte, 30)) },
			reason:  rtmr.AmbiguousEvent,
		},
		"somebody's other event": {
			prepare: func(t *testing.T, b *bench) { b.double.Emit("vault", []byte{1}) },
			ok:      true, effects: measured, asked: 1, images: 1,
		},
		"a log that doesn't replay": {
			prepare: func(t *testing.T, b *bench) { b.poison(t) },
			reason:  rtmr.WrongRegister,
		},
		"no quote for ever": {
			prepare: func(t *testing.T, b *bench) { b.double.Fail(quoteFails) },
			fault:   rtmr.Refused, waited: 30 * time.Second,
		},
		"no quote at first": {
			prepare: func(t *testing.T, b *bench) {
				b.double.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails, Times: 2})
			},
			ok: true, effects: measured, asked: 1, images: 1, waited: 3 * time.Second,
		},
		"no agent": {
			prepare: func(t *testing.T, b *bench) { require.NoError(t, b.double.Stop()) },
			fault:   rtmr.Unreachable,
		},
		"an agent that talks nonsense": {
			prepare: func(t *testing.T, b *bench) {
				b.double.Fail(launchtest.AgentFault{Kind: launchtest.AgentGarbles, Match: "Info"})
			},
			fault: rtmr.Malformed,
		},

		// The log decides after it, whatever was answered.
		"refused once": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentRefuses, 1) },
			ok:      true, effects: measured, asked: 2, images: 1, waited: time.Second,
		},
		"refused twice": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentRefuses, 2) },
			ok:      true, effects: measured, asked: 3, images: 1, waited: 2 * time.Second,
		},
		"refused for ever": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentRefuses, -1) },
			outcome: rtmr.NotEmitted, fault: rtmr.Refused, effects: began, asked: 3, waited: 3 * time.Second,
		},
		"a method that is gone": {
			release: "0.6.0",
			outcome: rtmr.NotEmitted, fault: rtmr.Missing, effects: began, asked: 1, waited: time.Second,
		},
		// What was answered with yes may come yet, and a second one would make two.
		"yes, and nothing done": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.EmitSwallows, 1) },
			outcome: rtmr.Unclear, effects: began, asked: 1, waited: 30 * time.Second,
		},
		"yes, and nothing done, like a simulator": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.EmitSwallows, -1) },
			outcome: rtmr.Unclear, effects: began, asked: 1, waited: 30 * time.Second,
		},
		"yes, and done late": {
			prepare: func(t *testing.T, b *bench) {
				b.fail(launchtest.EmitSwallows, 1)
				b.onNap(3, func() { b.double.Emit(rtmr.EventName, unhex(t, measuredHex)) })
			},
			ok: true, effects: []string{"intent", recorded}, asked: 1, images: 1, waited: 7 * time.Second,
		},
		"refused, then yes, and nothing done": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentRefuses, 1); b.fail(launchtest.EmitSwallows, 1) },
			outcome: rtmr.Unclear, effects: began, asked: 2, waited: 31 * time.Second,
		},
		"logged and not extended": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.EmitPoisons, 1) },
			outcome: rtmr.Poisoned, reason: rtmr.WrongRegister, effects: []string{"intent", emitted}, asked: 1, images: 1, waited: 31 * time.Second,
		},
		"extended late": {
			prepare: func(t *testing.T, b *bench) {
				b.fail(launchtest.EmitSettles, 1)
				b.onNap(3, b.double.Release)
			},
			ok: true, effects: measured, asked: 1, images: 1, waited: 7 * time.Second,
		},
		"extended too late": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.EmitSettles, 1) },
			outcome: rtmr.Poisoned, reason: rtmr.WrongRegister, effects: []string{"intent", emitted}, asked: 1, images: 1, waited: 30 * time.Second,
		},

		// After a lost answer nothing is asked for again.
		"done, answer lost": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentLoses, 1) },
			ok:      true, effects: measured, asked: 1, images: 1, waited: time.Second,
		},
		"done, answer never comes": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentHangsDone, 1) },
			ok:      true, effects: measured, asked: 1, images: 1, waited: time.Second,
		},
		"done, answer is nonsense": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentGarbles, 1) },
			ok:      true, effects: measured, asked: 1, images: 1, waited: time.Second,
		},
		"done, answer is endless": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentFloods, 1) },
			ok:      true, effects: measured, asked: 1, images: 1, waited: time.Second,
		},
		// Nobody knows whether what panicked has given up for good.
		"not done, answer in other words": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentBreaks, 1) },
			outcome: rtmr.Unclear, fault: rtmr.Malformed, effects: began, asked: 1, waited: 31 * time.Second,
		},
		"not done, answer lost": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentDrops, 1) },
			outcome: rtmr.Unclear, fault: rtmr.Lost, effects: began, asked: 1, waited: 31 * time.Second,
		},
		"not done, answer never comes": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentHangs, 1) },
			outcome: rtmr.Unclear, fault: rtmr.Lost, effects: began, asked: 1, waited: 31 * time.Second,
		},
		"done late": {
			prepare: func(t *testing.T, b *bench) {
				b.fail(launchtest.EmitLate, 1)
				b.onNap(4, b.double.Release)
			},
			ok: true, effects: measured, asked: 1, images: 1, waited: 8 * time.Second,
		},
		"done too late": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.EmitLate, 1) },
			outcome: rtmr.Unclear, fault: rtmr.Lost, effects: []string{"intent", emitted}, asked: 1, images: 1, waited: 31 * time.Second,
		},
		"refused, then lost": {
			prepare: func(t *testing.T, b *bench) { b.fail(launchtest.AgentRefuses, 1); b.fail(launchtest.AgentDrops, 1) },
			outcome: rtmr.Unclear, fault: rtmr.Lost, effects: began, asked: 2, waited: 32 * time.Second,
		},

		// The agent goes away.
		"gone for the emit, then back": {
			prepare: func(t *testing.T, b *bench) {
				b.journal.onIntent = func() { require.NoError(t, b.double.Stop()) }
				b.onNap(3, func() { require.NoError(t, b.double.Start()) })
			},
			ok: true, effects: measured, asked: 1, images: 1, waited: 4 * time.Second,
		},
		"gone for good": {
			prepare: func(t *testing.T, b *bench) { b.journal.onIntent = func() { require.NoError(t, b.double.Stop()) } },
			outcome: rtmr.NotEmitted, fault: rtmr.Unreachable, effects: began, waited: 31 * time.Second,
		},
		"no quote for a while after the emit": {
			prepare: func(t *testing.T, b *bench) {
				b.double.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails, Skip: 1, Times: 3})
			},
			ok: true, effects: measured, asked: 1, images: 1, waited: 7 * time.Second,
		},
		"no quote after the emit": {
			prepare: func(t *testing.T, b *bench) {
				b.double.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails, Skip: 1, Times: -1})
			},
			outcome: rtmr.Unclear, fault: rtmr.Refused, effects: []string{"intent", emitted}, asked: 1, images: 1, waited: 30 * time.Second,
		},
		"nonsense for a while after the emit": {
			prepare: func(t *testing.T, b *bench) {
				b.double.Fail(launchtest.AgentFault{Kind: launchtest.AgentGarbles, Match: "Info", Skip: 1, Times: 2})
			},
			ok: true, effects: measured, asked: 1, images: 1, waited: 3 * time.Second,
		},
		"gone after the emit, then back": {
			prepare: func(t *testing.T, b *bench) {
				b.fail(launchtest.AgentLoses, 1)
				b.onNap(1, func() { require.NoError(t, b.double.Stop()) })
				b.onNap(3, func() { require.NoError(t, b.double.Start()) })
			},
			ok: true, effects: measured, asked: 1, images: 1, waited: 4 * time.Second,
		},

		// Somebody else emits at the same time.
		"the same image, too": {
			prepare: func(t *testing.T, b *bench) {
				b.journal.onIntent = func() { b.double.Emit(rtmr.EventName, unhex(t, measuredHex)) }
			},
			outcome: rtmr.Conflict, reason: rtmr.DuplicateEvent, effects: []string{"intent", emitted}, asked: 1, images: 2,
		},
		"another image, too": {
			prepare: func(t *testing.T, b *bench) {
				b.journal.onIntent = func() { b.double.Emit(rtmr.EventName, unhex(t, otherHex)) }
			},
			outcome: rtmr.Conflict, reason: rtmr.DuplicateEvent, effects: []string{"intent", emitted}, asked: 1, images: 2,
		},
		"another image instead": {
			prepare: func(t *testing.T, b *bench) {
				b.fail(launchtest.AgentRefuses, 1)
				b.journal.onIntent = func() { b.double.Emit(rtmr.EventName, unhex(t, otherHex)) }
			},
			outcome: rtmr.Conflict, reason: rtmr.OtherDigest, effects: began, asked: 1, images: 1, waited: time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, c.release)
			if c.prepare != nil {
				c.prepare(t, b)
			}
			asked, wished := b.asked(), image(t, measuredHex)
			m, err := rtmr.Measure(t.Context(), b.agent, wished, b.journal)
			assert.Equal(t, c.waited, b.clock.elapsed, "time slept")
			b.double.Release()

			if c.ok {
				require.NoError(t, err)
				assert.Equal(t, wished, m.Digest())
				assert.Equal(t, b.double.RTMR3(), m.RTMR3().String())
				assert.Equal(t, c.already, m.AlreadyPresent())
				b.accepted(t)
			} else {
				require.Error(t, err)
				assert.Zero(t, m, "no proof")
				assert.Equal(t, exit.Measurement, exit.Of(err), "%v", err)
				assert.NotEmpty(t, exit.Hints(err), "%v", err)
				var outcome rtmr.Outcome
				if e := (*rtmr.MeasureError)(nil); errors.As(err, &e) {
					outcome = e.Outcome
					assert.Equal(t, max(c.asked, 1), e.Emits, "emits in the error")
					assert.NotContains(t, err.Error(), "\n", "one line")
				}
				assert.Equal(t, c.outcome, outcome, "%v", err)
				var fault rtmr.Fault
				if e := (*rtmr.AgentError)(nil); errors.As(err, &e) {
					fault = e.Fault
				}
				assert.Equal(t, c.fault, fault, "%v", err)
				var reason rtmr.Reason
				if e := (*rtmr.Rejection)(nil); errors.As(err, &e) {
					reason = e.Reason
				}
				assert.Equal(t, c.reason, reason, "%v", err)
			}
			assert.Equal(t, c.effects, b.journal.Effects())
			assert.Equal(t, c.asked, b.asked()-asked, "emits asked for")
			if name != "a log that doesn't replay" {
				assert.Equal(t, c.images, b.images(), "image events")
			}
			assert.Empty(t, b.double.Unexpected())
			infos := len(b.double.Requests()) - b.asked()
			assert.LessOrEqual(t, infos, 9, "each Info makes a quote")
		})
	}
}

// onNap calls f during the n-th sleep.
func (b *bench) onNap(n int, f func()) {
	before := b.clock.onNap
	b.clock.onNap = func(nap int) {
		if before != nil {
			before(nap)
		}
		if nap == n {
			f()
		}
	}
}

// poison is somebody else's emit that fails after it was logged.
func (b *bench) poison(t *testing.T) {
	t.Helper()
	b.double.Fail(launchtest.AgentFault{Kind: launchtest.EmitPoisons})
	body := strings.NewReader(`{"event":"launcher-probe","payload":"00"}`)
	resp, err := unixhttp.Client(b.double.Socket(), false).Post("http://localhost/EmitEvent", "application/json", body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	*b.journal.Recorder = launchtest.Recorder{}
}

// accepted holds what stands in the agent now against the verifier's rules.
func (b *bench) accepted(t *testing.T) {
	t.Helper()
	log, err := rtmr.Parse([]byte(b.double.TCBInfo()))
	require.NoError(t, err)
	accepted(t, log, "the log")
}

// Whatever goes wrong with the first emit, or with one after it, then a second run in the same boot, then one in the next:
// never two events, never a proof of what isn't so.
func TestFaultsAndOtherRuns(t *testing.T) {
	t.Parallel()
	kinds := []launchtest.AgentFaultKind{
		launchtest.AgentRefuses, launchtest.AgentBreaks, launchtest.AgentDrops, launchtest.AgentHangs, launchtest.AgentLoses,
		launchtest.AgentHangsDone, launchtest.AgentGarbles, launchtest.EmitPoisons, launchtest.EmitSwallows, launchtest.EmitSettles,
		launchtest.EmitLate,
	}
	// Only a refusal is followed by another emit.
	for _, before := range [][]launchtest.AgentFaultKind{
		{}, {launchtest.AgentRefuses}, {launchtest.AgentRefuses, launchtest.AgentRefuses},
	} {
		for _, last := range kinds {
			t.Run(fmt.Sprintf("%v %s", before, last), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, "")
				for _, kind := range before {
					b.fail(kind, 1)
				}
				b.fail(last, 1)
				run := func() {
					m, err := rtmr.Measure(t.Context(), b.agent, image(t, measuredHex), b.journal)
					if err == nil {
						assert.Equal(t, image(t, measuredHex), m.Digest())
						b.accepted(t)
					} else {
						assert.Zero(t, m)
						assert.Equal(t, exit.Measurement, exit.Of(err), "%v", err)
					}
				}
				run()
				hits := 0
				for _, kind := range kinds {
					hits += b.double.Hits(kind)
				}
				assert.Equal(t, len(before)+1, hits, "all of it went wrong")
				b.double.Heal()
				b.double.Release()
				assert.LessOrEqual(t, b.images(), 1, "after the first run")
				run()
				assert.LessOrEqual(t, b.images(), 1, "after the second run")
				b.double.Reboot()
				assert.Zero(t, b.images(), "a new boot")
				run()
				assert.Equal(t, 1, b.images(), "after a run in the new boot")
				b.accepted(t)
			})
		}
	}
}

func TestIntentThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	b.journal.intent = errors.New("disk full")
	m, err := rtmr.Measure(t.Context(), b.agent, image(t, measuredHex), b.journal)
	assert.ErrorIs(t, err, b.journal.intent)
	assert.Equal(t, exit.Config, exit.Of(err))
	assert.Zero(t, m)
	assert.Zero(t, b.images(), "nothing emitted")
	assert.Equal(t, []string{"Info"}, b.double.Requests())
}

func TestDoneThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	b.journal.done = errors.New("disk full")
	m, err := rtmr.Measure(t.Context(), b.agent, image(t, measuredHex), b.journal)
	assert.ErrorIs(t, err, b.journal.done)
	assert.Equal(t, exit.Config, exit.Of(err))
	assert.Zero(t, m)
	assert.Equal(t, 1, b.images())

	b.journal.done = nil
	m, err = rtmr.Measure(t.Context(), b.agent, image(t, measuredHex), b.journal)
	assert.NoError(t, err)
	assert.True(t, m.AlreadyPresent(), "the next run finds it")
	assert.Equal(t, 1, b.images())
}

// From the intent on nobody interrupts, because he couldn't tell what he did.
func TestCancellation(t *testing.T) {
	t.Parallel()
	why := errors.New("told to stop")

	b := newBench(t, "")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, err := rtmr.Measure(ctx, b.agent, image(t, measuredHex), b.journal)
	assert.ErrorIs(t, err, why, "before")
	assert.Empty(t, b.double.Requests())

	for _, kind := range []launchtest.AgentFaultKind{"", launchtest.AgentLoses, launchtest.AgentRefuses} {
		b := newBench(t, "")
		if kind != "" {
			b.fail(kind, 1)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		b.journal.onIntent = func() { cancel(why) }
		m, err := rtmr.Measure(ctx, b.agent, image(t, measuredHex), b.journal)
		assert.NoError(t, err, "after the intent, %q", kind)
		assert.Equal(t, image(t, measuredHex), m.Digest())
		assert.Equal(t, []string{"intent", "emit mpc-image-digest", "done sha256:564a"}, b.journal.Effects())
	}
}

func TestMeasureWantsADigest(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	_, err := rtmr.Measure(t.Context(), b.agent, digest.Digest{}, b.journal)
	assert.ErrorIs(t, err, digest.ErrNone)
	assert.Empty(t, b.double.Requests())
	assert.Empty(t, b.journal.Effects())
}

func TestPayloadIsTheDigest(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	log, err := b.agent.Log(t.Context())
	require.NoError(t, err)
	predicted, err := log.Predict(image(t, measuredHex))
	require.NoError(t, err)
	m, err := rtmr.Measure(t.Context(), b.agent, image(t, measuredHex), b.journal)
	require.NoError(t, err)
	assert.Equal(t, predicted, m.RTMR3(), "what was predicted")
	events := b.double.Events()
	last := events[len(events)-1]
	assert.Equal(t, "mpc-image-digest", last.Name)
	assert.True(t, bytes.Equal(unhex(t, measuredHex), last.Payload), "the 32 raw bytes, got %x", last.Payload)
}
