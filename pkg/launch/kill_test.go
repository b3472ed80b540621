package launch_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

// judge looks at each start of a workload, at the moment when it happens, as a verifier would: is exactly its image measured?
type judge struct {
	mu    sync.Mutex
	agent *launchtest.Agent
	blind bool
	wrong []string
}

func (j *judge) look(yes bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.blind = !yes
}

func (j *judge) start(c launchtest.ContainerInfo) (int, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.blind {
		return 0, true
	}
	if c.Name != "mpc-node" {
		j.wrong = append(j.wrong, "somebody started "+c.Name)
		return 0, true
	}
	image, err := digest.Parse(c.Labels["tee-launcher.manifest-digest"])
	if err == nil {
		var log rtmr.Log
		if log, err = rtmr.Parse([]byte(j.agent.TCBInfo())); err == nil {
			_, err = log.Measured(image)
		}
	}
	if err != nil {
		j.wrong = append(j.wrong, fmt.Sprintf("started %d times and unmeasured: %v", c.Starts, err))
	}
	return 0, true
}

func (j *judge) verdict() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.wrong...)
}

// judgedWorld is a world in which every start is judged.
func judgedWorld(t *testing.T) (*world, *judge) {
	t.Helper()
	j := &judge{}
	w := newWorld(t, options{machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{OnStart: j.start}}})
	j.mu.Lock()
	j.agent = w.Agent
	j.mu.Unlock()
	return w, j
}

// sound checks what has to hold whatever happened: no start was unmeasured, no event is there twice.
func (w *world) sound(j *judge) {
	w.t.Helper()
	assert.Empty(w.t, j.verdict())
	images := 0
	for _, e := range w.Agent.Events() {
		if e.Name == rtmr.EventName {
			images++
		}
	}
	assert.LessOrEqual(w.t, images, 1, "a duplicate event")
	volumes := w.Engine.Volumes()
	if len(volumes) > 0 {
		w.does("POST", "/volumes/prune")
		assert.Equal(w.t, volumes, w.Engine.Volumes(), "the data volume could be pruned")
	}
}

// runsOrRefuses boots once more and requires that it runs, or, where that is allowed, that it is a clear refusal.
func (w *world) runsOrRefuses(j *judge, refusal bool) {
	w.t.Helper()
	code := w.boot()
	w.sound(j)
	if refusal && code == exit.Measurement {
		assert.Contains(w.t, w.stderr, "hint: reboot the CVM")
		for _, c := range w.Engine.Containers() {
			assert.NotEqual(w.t, "running", c.Status, "refused, and runs")
		}
		return
	}
	require.Equal(w.t, exit.OK, code, "%s", w.stderr)
	assert.Equal(w.t, "running", w.status())
	w.accepted(w.Digests[1])
	assert.Equal(w.t, w.report().Image.ConfigDigest, w.workload().Image, "another image than the measured one")
}

// aftermath is what a killed launcher leaves, and what its successors make of it: in the same boot and then in the next, or in the
// next at once.
func (w *world) aftermath(j *judge, sameBoot, refusal bool) {
	w.t.Helper()
	w.sound(j)
	if sameBoot {
		w.runsOrRefuses(j, refusal)
	}
	w.rebootJudged(j)
	w.sound(j)
	w.runsOrRefuses(j, false)
}

// older brings a world into the worst state in which a boot can find it: the workload of the boot before is another image, the
// engine has started it again by itself, and the image to run now isn't there.
func (w *world) older(j *judge) {
	w.t.Helper()
	w.settings.Supervise = admission.SuperviseOff
	require.NoError(w.t, w.watch().end())
	w.settings.Supervise = admission.SuperviseAuto
	w.approve(w.Digests[1], w.Digests[0])
	w.rebootJudged(j)
	require.Equal(w.t, "running", w.status())
}

// rebootJudged is reboot without a judgement on what the engine starts by itself: that is what the gate is for.
func (w *world) rebootJudged(j *judge) {
	w.t.Helper()
	j.look(false)
	w.reboot()
	j.look(true)
}

// each runs the case in both kinds of aftermath.
func each(t *testing.T, name string, f func(t *testing.T, sameBoot bool)) {
	for _, sameBoot := range []bool{true, false} {
		t.Run(fmt.Sprintf("%s, same boot %v", name, sameBoot), func(t *testing.T) {
			t.Parallel()
			f(t, sameBoot)
		})
	}
}

// TestKilledAtEveryStep kills the launcher after each line that it logs, which it does before and after each step and right before
// the emit.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	reference, j := judgedWorld(t)
	reference.older(j)
	p := reference.start(0)
	require.True(t, p.supervises(), "%s", &p.stderr)
	lines := p.messages()
	p.kill()
	reference.sound(j)
	require.Greater(t, len(lines), 18, "%q", lines)

	for i := 0; i < len(lines); i += stride {
		line := lines[i]
		each(t, fmt.Sprintf("%d %s", i+1, line), func(t *testing.T, sameBoot bool) {
			w, j := judgedWorld(t)
			w.older(j)
			p := w.start(i + 1)
			require.True(t, p.until(func() bool { return len(p.messages()) > i }), "%s", &p.stderr)
			p.kill()
			// Between the intent and the emit nobody can tell whether it was sent.
			w.aftermath(j, sameBoot, line == "emitting")
		})
	}
}

// TestKilledAtEveryRequestToTheEngine kills the launcher, and the Compose that it runs, when a request was sent and nothing of it was
// done, and when all of it was done and the answer is still to come.
func TestKilledAtEveryRequestToTheEngine(t *testing.T) {
	t.Parallel()
	reference, j := judgedWorld(t)
	reference.older(j)
	before := len(reference.Engine.Requests())
	p := reference.start(0)
	require.True(t, p.until(func() bool {
		return slices.ContainsFunc(reference.Engine.Requests()[before:], func(r string) bool { return strings.HasPrefix(r, "GET /events") })
	}))
	p.kill()
	reference.sound(j)
	requests := reference.Engine.Requests()[before:]
	for _, effect := range []string{"POST /containers/", "DELETE /containers/", "POST /images/load", "POST /containers/create", "GET /events"} {
		assert.True(t, slices.ContainsFunc(requests, func(r string) bool { return strings.HasPrefix(r, effect) }), "%s", effect)
	}

	for i := 0; i < len(requests); i += stride {
		request := requests[i]
		killed := func(t *testing.T, done, sameBoot bool) {
			w, j := judgedWorld(t)
			w.older(j)
			w.killAtRequest(i, done)
			w.aftermath(j, sameBoot, false)
		}
		name := fmt.Sprintf("%d %.60s", i+1, request)
		if strings.HasPrefix(request, "GET ") {
			// What only reads leaves what the request before it left.
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				killed(t, false, true)
			})
			continue
		}
		t.Run(name+", not done", func(t *testing.T) {
			t.Parallel()
			killed(t, false, true)
		})
		each(t, name+", done", func(t *testing.T, sameBoot bool) { killed(t, true, sameBoot) })
	}
}

// TestKilledInTheNextAttempt kills a launcher whose first attempt failed, at every request by which its second one changes something.
func TestKilledInTheNextAttempt(t *testing.T) {
	t.Parallel()
	failing := func(t *testing.T) (*world, *judge) {
		w, j := judgedWorld(t)
		w.older(j)
		w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestManifest, Times: 3})
		return w, j
	}
	reference, j := failing(t)
	before := len(reference.Engine.Requests())
	p := reference.start(0)
	require.True(t, p.until(func() bool { return slices.Contains(p.messages(), launchtest.TriesAgain+" pull") }), "%s", &p.stderr)
	first := len(reference.Engine.Requests()) - before
	p.kill()
	reference.sound(j)

	reference, j = failing(t)
	reference.waits = 1
	before = len(reference.Engine.Requests())
	p = reference.start(0)
	require.True(t, p.supervises(), "%s", &p.stderr)
	p.kill()
	assert.Equal(t, 2, reference.report().Attempt)
	reference.sound(j)
	requests := reference.Engine.Requests()[before:]
	changes := 0
	for i, request := range requests {
		if i < first || strings.HasPrefix(request, "GET ") || strings.HasPrefix(request, "HEAD ") {
			continue
		}
		if changes++; changes%stride != 0 {
			continue
		}
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d %.60s, done %v", i+1, request, done), func(t *testing.T) {
				t.Parallel()
				w, j := failing(t)
				w.waits = 1
				w.killAtRequest(i, done)
				w.aftermath(j, true, false)
			})
		}
	}
	assert.Greater(t, changes, 5, "%q", requests[first:])
}

// TestKilledUnsupervisedBeforeReadingBack: the log shows what the record says was meant, so the next run goes on.
func TestKilledUnsupervisedBeforeReadingBack(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]launchtest.AgentFault{
		"before the answer":        {Kind: launchtest.AgentHangsDone, Match: "EmitEvent mpc-image-digest"},
		"before it was read back":  {Kind: launchtest.AgentHangs, Match: "Info", Skip: 2},
		"before it could be there": {Kind: launchtest.EmitSettles, Match: "EmitEvent mpc-image-digest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			w.settings.Supervise = admission.SuperviseOff
			w.Agent.Fail(f)
			p := w.start(0)
			require.True(t, p.until(func() bool { return w.Agent.Hits(f.Kind) == 1 }), "%s", &p.stderr)
			p.kill()
			w.Agent.Heal()
			w.onNap = w.Agent.Release
			l := w.begin("")
			require.NoError(t, l.end())
			assert.Equal(t, 1, l.said("only the record of this boot says that the measurement is the launcher's"), "%q", l.messages())
			w.accepted(w.Digests[0])
			assert.Equal(t, "running", w.status())
			w.mustBoot()
			assert.Equal(t, 1, w.workload().Starts)
		})
	}
}

// killAtRequest starts a launcher and kills it after so many requests to the engine: when nothing of
// the next one was done, or when all of it was and the answer is still to come.
func (w *world) killAtRequest(n int, done bool) {
	w.t.Helper()
	before := len(w.Engine.Requests())
	fault := launchtest.EngineFault{Match: "*", Skip: n, Times: -1, After: done, Hang: true}
	var did atomic.Bool
	if done {
		fault.Edit = func(body []byte) []byte { did.Store(true); return body }
	}
	w.Engine.Fail(fault)
	p := w.start(0)
	asked := func() bool { return len(w.Engine.Requests()) > before+n && did.Load() == done }
	require.True(w.t, p.until(asked), "%s", &p.stderr)
	p.kill()
	w.Engine.Heal()
}

// TestKilledAtEveryRequestToTheAgent does the same there.
func TestKilledAtEveryRequestToTheAgent(t *testing.T) {
	t.Parallel()
	requests := []string{"Info", "EmitEvent launcher-probe", "Info", "EmitEvent mpc-image-digest", "Info"}
	reference, j := judgedWorld(t)
	reference.older(j)
	before := len(reference.Agent.Requests())
	reference.mustBoot()
	reference.sound(j)
	require.Equal(t, requests, reference.Agent.Requests()[before:])

	cases := 0
	for i, request := range requests {
		for _, kind := range []launchtest.AgentFaultKind{launchtest.AgentHangs, launchtest.AgentHangsDone, launchtest.EmitLate, launchtest.EmitSettles, launchtest.EmitPoisons} {
			emits := request == "EmitEvent mpc-image-digest"
			if !emits && kind != launchtest.AgentHangs || request == "EmitEvent launcher-probe" {
				continue // a request that only reads, or is refused as it is read
			}
			if cases++; cases%stride != 0 {
				continue
			}
			each(t, fmt.Sprintf("%d %s %s", i+1, request, kind), func(t *testing.T, sameBoot bool) {
				w, j := judgedWorld(t)
				w.older(j)
				before := len(w.Agent.Requests())
				skip := 0
				for _, r := range requests[:i] {
					if r == request {
						skip++
					}
				}
				w.Agent.Fail(launchtest.AgentFault{Kind: kind, Match: request, Skip: skip})
				p := w.start(0)
				require.True(t, p.until(func() bool { return len(w.Agent.Requests()) > before+i && w.Agent.Hits(kind) == 1 }), "%s", &p.stderr)
				p.kill()
				w.Agent.Heal()
				switch kind {
				case launchtest.EmitLate, launchtest.EmitSettles:
					if sameBoot {
						w.onNap = w.Agent.Release // the next run is there before the agent is done
					}
				case launchtest.EmitPoisons:
					// No quote of this boot can be verified.
					if sameBoot {
						assert.Equal(t, exit.Measurement, w.boot(), "%s", w.stderr)
						w.sound(j)
					}
					w.rebootJudged(j)
					w.runsOrRefuses(j, false)
					return
				}
				w.aftermath(j, sameBoot, emits && kind == launchtest.AgentHangs)
			})
		}
	}
}
