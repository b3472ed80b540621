package admission_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/preflight"
)

var (
	worlds    = flag.Int("worlds", manyWorlds, "how many worlds are generated")
	firstSeed = flag.Uint64("seed", 1, "the seed of the first world")
)

// TestMain puts temporary files into memory, where there is such a place: on a disk, the files are
// what takes time.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("/dev/shm", "worlds")
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	code := m.Run()
	if err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// TestVerifyAndRunAgree generates machines in all states that somebody came up with, asks verify
// what run would come to, has run do it, and finds the same exit code: in the boot as it is, in the
// next one, and once more in that. Where verify can't know, the case stands in unknowable.
func TestVerifyAndRunAgree(t *testing.T) {
	t.Parallel()
	debug.SetGCPercent(800) // there is little to keep
	begin := time.Now()
	var next, failures atomic.Uint64
	var wait sync.WaitGroup
	var ends [256]atomic.Uint64 // how many runs ended with each code
	for range 2 * runtime.GOMAXPROCS(0) {
		l := newLab(t)
		wait.Go(func() {
			for {
				n := next.Add(1) - 1
				if n >= uint64(*worlds) || failures.Load() >= 5 {
					return
				}
				seed := *firstSeed + n
				w := generate(seed)
				difference, codes := l.play(w)
				for _, c := range codes {
					ends[c].Add(1)
				}
				if difference == "" {
					continue
				}
				failures.Add(1)
				w, difference = l.shrink(w, difference)
				assert.Fail(t, "verify and run disagree",
					"seed %d: %s\nin the world %s", seed, difference, w)
			}
		})
	}
	wait.Wait()
	var seen []string
	for code := range ends {
		if n := ends[code].Load(); n > 0 {
			seen = append(seen, fmt.Sprintf("%d: %d", code, n))
		}
	}
	t.Logf("%d worlds in %s; runs by exit code %v", *worlds, time.Since(begin).Round(time.Second), seen)
	if *worlds < 500 || t.Failed() {
		return
	}
	for _, code := range []exit.Code{
		exit.OK, exit.Config, exit.Unavailable, exit.Refused, exit.Mismatch, exit.Engine, exit.Measurement,
		exit.Workload, exit.Busy,
	} {
		assert.Positive(t, ends[code].Load(), "no world ends with %d: they are too much alike", code)
	}
}

// TestVerifyAndRunAgreeOnTheNextAttempt has what was wrong with registry and engine pass while a launcher waits, asks verify then,
// and finds that the next attempt ends as it says.
func TestVerifyAndRunAgreeOnTheNextAttempt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	passing := func(quirk string) bool {
		for _, prefix := range []string{"the registry ", "the registry's ", "layer is damaged", "engine refuses to "} {
			if strings.HasPrefix(quirk, prefix) {
				return true
			}
		}
		return false
	}
	var faults []string
	for _, q := range quirks() {
		if passing(q.name) {
			faults = append(faults, q.name)
		}
	}
	waited, ends := 0, map[exit.Code]int{}
	for seed := range uint64(min(*worlds, 150)) {
		w := generate(*firstSeed + seed)
		w.Platform, w.Supervise = config.TEE, admission.SuperviseAuto
		w.Quirks = append(w.Quirks, faults[int(seed)%len(faults)])
		m := l.machine(w)
		m.prepare(w)
		var said *preflight.Report
		err := m.runOn(func() {
			m.registry.Heal()
			m.engine.Heal()
			said = m.verify(preflight.ForNow)
		})
		m.close()
		if said == nil {
			continue // it ended at once
		}
		waited++
		ends[exit.Of(err)]++
		w.Quirks = slices.DeleteFunc(w.Quirks, passing)
		assert.Empty(t, differs(w, said, err), "seed %d: in the world %s", *firstSeed+seed, w)
	}
	t.Logf("%d waited; next attempts by exit code: %v", waited, ends)
	if *worlds >= 150 {
		assert.Greater(t, waited, 20)
		assert.Greater(t, ends[exit.OK], 15)
		assert.Greater(t, len(ends), 1, "no next attempt fails: they are too much alike")
	}
}

// unknowable is where verify can't know what run will find: what shows only once it is done. The
// names are those of the quirks that bring it about; a run that differs must end at that step with
// that code, and verify must not have found anything that comes before it.
func unknowable() []row {
	return []row{
		{
			quirk: "engine refuses to ",
			why:   "an engine says only when it is asked for a change whether it does it",
			steps: []admission.Step{
				admission.AtSettings, admission.AtGate, admission.AtLoad, admission.AtCreate,
				admission.AtMeasure, admission.AtStart, admission.AtSupervise,
			},
			codes: []exit.Code{exit.Engine, exit.Measurement, exit.Workload},
		},
		{
			quirk: "layer is damaged", why: "layers are downloaded only with --deep",
			steps: []admission.Step{admission.AtLoad}, codes: []exit.Code{exit.Mismatch},
		},
		{
			quirk: "compose goes wrong", why: "Compose is asked for nothing but its version",
			steps: []admission.Step{admission.AtCreate}, codes: []exit.Code{exit.Workload},
		},
		{
			quirk: "emit goes wrong", why: "an event can't be emitted to try",
			steps: []admission.Step{admission.AtMeasure}, codes: []exit.Code{exit.Measurement},
		},
		{
			quirk: "workload ends", why: "a workload says only once it runs whether it stays",
			steps: []admission.Step{admission.AtStart}, codes: []exit.Code{exit.Workload},
		},
	}
}

type row struct {
	quirk, why string // the beginning of their names
	steps      []admission.Step
	codes      []exit.Code
}

// world is a machine in some state, told by what makes it differ from a healthy one.
type world struct {
	Platform   config.Platform
	Supervise  admission.Supervise
	Containerd bool
	History    []string    // what happened before
	Containers []container // beside the workload's
	Quirks     []string
}

func (w world) String() string {
	data, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// container is one that somebody else made.
type container struct {
	Name, Project, Boot, Policy, State, Mount string
	Port, Service                             bool
}

func generate(seed uint64) world {
	r := rand.New(rand.NewPCG(seed, 12))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	w := world{Platform: config.TEE, Containerd: r.IntN(3) == 0}
	if r.IntN(4) == 0 {
		w.Platform = config.NONTEE
	}
	w.Supervise = admission.Supervise(pick("auto", "auto", "auto", "on", "off"))
	switch r.IntN(6) {
	case 0, 1:
		w.History = []string{"run"}
	case 2:
		w.History = []string{"run", "reboot"}
	}
	for range r.IntN(3) * r.IntN(2) {
		w.Containers = append(w.Containers, container{
			Name: pick("mpc-node", "left", "stranger", "mpc-node-impostor-boot-0-0123456789ab"), Project: pick("", "mpc-node", "other"),
			Boot: pick("", "this", "other"), Policy: pick("no", "no", "always", "unless-stopped", "on-failure"),
			State: pick("created", "running", "paused", "stopped", "failed"),
			Mount: pick("", "", "socket", "parent", "/", "volume"), Port: r.IntN(6) == 0, Service: r.IntN(2) == 0,
		})
	}
	names := make([]string, 0, len(quirks()))
	for _, q := range quirks() {
		names = append(names, q.name)
	}
	for range min(r.IntN(4), r.IntN(4)+1) {
		w.Quirks = append(w.Quirks, names[r.IntN(len(names))])
	}
	return w
}

// shrink takes away from a world whatever it differs without.
func (l *lab) shrink(w world, difference string) (world, string) {
	for again := true; again; {
		again = false
		for _, smaller := range w.smaller() {
			if d, _ := l.play(smaller); d != "" {
				w, difference, again = smaller, d, true
				break
			}
		}
	}
	return w, difference
}

// smaller returns the worlds that have one thing less.
func (w world) smaller() (all []world) {
	for i := range w.Quirks {
		less := w
		less.Quirks = slices.Delete(slices.Clone(w.Quirks), i, i+1)
		all = append(all, less)
	}
	for i, c := range w.Containers {
		less := w
		less.Containers = slices.Delete(slices.Clone(w.Containers), i, i+1)
		all = append(all, less)
		for _, simplify := range []func(*container){
			func(c *container) { c.Project = "" }, func(c *container) { c.Boot = "" },
			func(c *container) { c.Policy = "no" }, func(c *container) { c.State = "created" },
			func(c *container) { c.Mount = "" }, func(c *container) { c.Port = false },
			func(c *container) { c.Service = false },
		} {
			simple := c
			if simplify(&simple); simple != c {
				less.Containers = slices.Clone(w.Containers)
				less.Containers[i] = simple
				all = append(all, less)
			}
		}
	}
	if n := len(w.History); n > 0 {
		less := w
		less.History = w.History[:n-1]
		all = append(all, less)
	}
	if w.Containerd {
		less := w
		less.Containerd = false
		all = append(all, less)
	}
	if w.Supervise != admission.SuperviseAuto {
		less := w
		less.Supervise = admission.SuperviseAuto
		all = append(all, less)
	}
	return all
}

func (l *lab) play(w world) (difference string, codes []exit.Code) {
	defer func() {
		if r := recover(); r != nil {
			buffer := make([]byte, 4<<10)
			buffer = buffer[:runtime.Stack(buffer, false)]
			difference = fmt.Sprintf("the world can't be made: %v\n%s", r, buffer)
		}
	}()
	m := l.machine(w)
	defer m.close()
	m.prepare(w)
	phases := []string{"now", "boot"}
	if m.settings.Platform == config.TEE && len(w.Quirks) < 2 {
		phases = append(phases, "again") // in the same boot, where most stands already
	}
	for _, phase := range phases {
		var said *preflight.Report
		if phase == "boot" {
			said = m.verify(preflight.ForBoot)
			m.reboot()
		} else {
			said = m.verify(preflight.ForNow)
		}
		err := m.run()
		codes = append(codes, exit.Of(err))
		if d := differs(w, said, err); d != "" {
			return phase + ": " + d, codes
		}
	}
	return "", codes
}

// prepare makes a machine what its world says.
func (m *machine) prepare(w world) {
	for _, event := range w.History {
		switch event {
		case "run":
			m.run()
		case "reboot":
			m.reboot()
		}
	}
	if len(w.Containers) > 0 {
		_, err := m.engine.AddImage(m.old, "old:1")
		check(err)
	}
	for _, c := range w.Containers {
		m.make(c)
	}
	for _, q := range quirks() {
		if slices.Contains(w.Quirks, q.name) {
			q.do(m)
		}
	}
}

// differs compares what verify said with how run ended.
func differs(w world, said *preflight.Report, err error) string {
	if said.ExitCode == exit.Of(err) {
		return ""
	}
	steps := admission.Steps()
	name, _, _ := strings.Cut(fmt.Sprint(err), ":")
	ended := slices.Index(steps, admission.Step(name))
	found := len(steps)
	var findings []string
	for _, c := range said.Checks {
		for _, f := range c.Findings {
			if f.Severity == preflight.Error {
				findings = append(findings, fmt.Sprintf("%s at %s: %s", f.Code, c.Step, f.Found))
				if at := slices.Index(steps, admission.Step(c.Step)); at >= 0 {
					found = min(found, at)
				}
			}
		}
	}
	for _, row := range unknowable() {
		so := func(quirk string) bool { return strings.HasPrefix(quirk, row.quirk) }
		if ended >= 0 && ended <= found && slices.ContainsFunc(w.Quirks, so) &&
			slices.Contains(row.steps, steps[ended]) && slices.Contains(row.codes, exit.Of(err)) {
			return ""
		}
	}
	return fmt.Sprintf("verify says %d, run ends with %d\nverify: %q\nrun: %v",
		said.ExitCode, exit.Of(err), findings, err)
}
