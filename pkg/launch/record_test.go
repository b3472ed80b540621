package launch_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

// forge writes the record of a measurement as a workload could have done.
func (w *world) forge(text string) {
	w.t.Helper()
	require.NoError(w.t, os.MkdirAll(w.Shared("launcher"), 0o755))
	require.NoError(w.t, os.WriteFile(w.Shared("launcher/measurement.json"), []byte(text), 0o600))
}

// emitAsSomebody is what another container with the agent's socket can do.
func (w *world) emitAsSomebody(image int) {
	w.t.Helper()
	w.Agent.Emit(rtmr.EventName, w.Digests[image][:])
}

// TestTheRecordOnlyRefuses: whatever it says, the log decides what is emitted, and only an intent of this boot with nothing in
// the log, or an event that the record's runs can't have made, is a refusal.
func TestTheRecordOnlyRefuses(t *testing.T) {
	t.Parallel()
	const record = `{"boot_id":%q,"digest":%q,"intent":%q,"done":%v}`
	stamp := time.Now().UTC().Format(time.RFC3339)
	for name, c := range map[string]struct {
		forge func(w *world)
		log   func(w *world) // what is in it
		code  exit.Code
		emits int
	}{
		"none": {emits: 1},
		"an intent of this boot": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, w.Digests[0], stamp, false)) }, code: exit.Measurement,
		},
		"an intent of this boot for another image": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, w.Digests[1], stamp, false)) }, code: exit.Measurement,
		},
		"an intent of this boot, and the event": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, w.Digests[0], stamp, false)) },
			log:   func(w *world) { w.emitAsSomebody(0) },
		},
		"an intent of this boot, and its event is late": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, w.Digests[0], stamp, false)) },
			log: func(w *world) {
				w.onNap = sync.OnceFunc(func() { w.emitAsSomebody(0) })
			},
		},
		"an intent of another boot": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, "boot-0", w.Digests[0], stamp, false)) }, emits: 1,
		},
		"done, and nothing in the log": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, w.Digests[0], stamp, true)) }, emits: 1,
		},
		"done, and the event": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, w.Digests[0], stamp, true)) },
			log:   func(w *world) { w.emitAsSomebody(0) },
		},
		"done for this image, and the event is another's": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, w.Digests[0], stamp, true)) },
			log:   func(w *world) { w.emitAsSomebody(1) }, code: exit.Measurement,
		},
		"done for another image, and the event is this one's": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, w.Digests[1], stamp, true)) },
			log:   func(w *world) { w.emitAsSomebody(0) }, code: exit.Measurement,
		},
		"no intent yet, and the event": {
			forge: func(w *world) { w.forge(fmt.Sprintf(`{"boot_id":%q}`, w.bootID)) },
			log:   func(w *world) { w.emitAsSomebody(0) }, code: exit.Measurement,
		},
		"no intent yet, of another boot, and the event": {
			forge: func(w *world) { w.forge(`{"boot_id":"boot-0"}`) },
			log:   func(w *world) { w.emitAsSomebody(0) },
		},
		"none, and the event": {log: func(w *world) { w.emitAsSomebody(0) }},
		"damaged":             {forge: func(w *world) { w.forge(`{"boot_id":"boot-1","intent":`) }, emits: 1},
		"empty":               {forge: func(w *world) { w.forge("") }, emits: 1},
		"not ours":            {forge: func(w *world) { w.forge(`["boot-1"]`) }, emits: 1},
		"large": {forge: func(w *world) {
			w.forge(strings.Repeat(" ", 1<<20) + `{"boot_id":"boot-1","done":false,"intent":"2026-01-01T00:00:00Z"}`)
		}, emits: 1},
		"a digest that is none": {
			forge: func(w *world) { w.forge(fmt.Sprintf(record, w.bootID, "sha256:../../x", stamp, false)) }, emits: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			if c.forge != nil {
				c.forge(w)
			}
			if c.log != nil {
				c.log(w)
			}
			assert.Equal(t, c.code, w.boot(), "%s", w.stderr)
			assert.Equal(t, c.emits, w.Agent.Emits())
			if c.code == exit.OK {
				w.accepted(w.Digests[0])
				assert.Equal(t, "running", w.status())
				return
			}
			assert.Empty(t, w.seen(), "something was done before the refusal")
			assert.Contains(t, w.stderr, "reboot the CVM")
			assert.Equal(t, launch.Status("failed"), w.stepStatus("probe"))
			w.reboot()
			w.mustBoot()
			w.accepted(w.Digests[0])
		})
	}
}

// TestAnIntentThatIsPlantedLate appears between the probe and the emit.
func TestAnIntentThatIsPlantedLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/create", Edit: func(body []byte) []byte {
		w.forge(fmt.Sprintf(`{"boot_id":%q,"digest":%q,"intent":"2026-01-01T00:00:00Z","done":false}`, w.bootID, w.Digests[0]))
		return body
	}})
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Equal(t, launch.Status("failed"), w.stepStatus("measure"))
	assert.Zero(t, w.Agent.Emits())
	assert.Equal(t, "created", w.status())
}

// TestAnEmitThatCertainlyFailedMayBeTriedAgain: the agent said no, so nothing is under way.
func TestAnEmitThatCertainlyFailedMayBeTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Agent.Fail(launchtest.AgentFault{Kind: launchtest.AgentRefuses, Match: "EmitEvent mpc", Times: 3})
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Equal(t, "created", w.status())
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Equal(t, 1, w.Agent.Emits())
}

// TestAnEmitThatMayHaveHappenedIsNotTriedAgain, in this run or the next of the boot, unless the log shows it.
func TestAnEmitThatMayHaveHappenedIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Agent.Fail(launchtest.AgentFault{Kind: launchtest.AgentDrops, Match: "EmitEvent mpc"})
	for range 2 {
		assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
		assert.Contains(t, w.stderr, "reboot the CVM")
	}
	assert.Zero(t, w.Agent.Emits())
	assert.Equal(t, "created", w.status())

	// And if it was late after all, that counts.
	w.emitAsSomebody(0)
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Zero(t, w.Agent.Emits())
	assert.Equal(t, "running", w.status())
}

// TestAnEventOfSomebodyElsesDuringTheRun: an old workload that runs until the gate emits what is about to be measured, so that
// it passes for that.
func TestAnEventOfSomebodyElsesDuringTheRun(t *testing.T) {
	t.Parallel()
	w := loaded(t)
	w.make(stranger{name: "left", project: "mpc-node", policy: "always"})
	w.reboot()
	assert.Equal(t, "running", w.statusOf("left"), "as the engine starts it at a boot")
	w.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/stop", Edit: func(body []byte) []byte {
		w.emitAsSomebody(0)
		assert.NoError(t, os.RemoveAll(w.Shared("launcher"))) // and removes what was written until then
		return body
	}})
	emits := w.Agent.Emits()
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Contains(t, w.stderr, "not by a launcher")
	// Nor does a further run take it for its own, though no container restarts by itself any more.
	assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
	assert.Contains(t, w.stderr, "not by a launcher")
	assert.Equal(t, emits, w.Agent.Emits())
	for _, c := range w.Engine.Containers() {
		assert.NotEqual(t, "running", c.Status, "%s", c.Name)
	}
}

// TestTheReportIsUpToDateWhileLayersMove: whoever looks sees how far a load is.
func TestTheReportIsUpToDateWhileLayersMove(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.Registry.Fail(launchtest.RegistryFault{
		Kind: launchtest.FaultStall, On: launchtest.RequestBlob, After: 1000, Times: -1,
	})
	l := w.begin("")
	var seen launch.Report
	w.eventually("the report has bytes", func() bool {
		data, err := os.ReadFile(w.Shared("launcher/report.json"))
		return err == nil && json.Unmarshal(data, &seen) == nil && seen.Pull != nil && seen.Pull.BytesFetched > 0
	})
	assert.Nil(t, seen.FinishedAt)
	assert.Nil(t, seen.ExitCode)
	assert.Equal(t, "registry", seen.Pull.Source)
	assert.Positive(t, seen.Pull.Requests)
	for _, s := range seen.Steps {
		if s.Name == "load" {
			assert.EqualValues(t, "running", s.Status)
		}
	}
	l.cancel(nil)
	<-l.ended
}
