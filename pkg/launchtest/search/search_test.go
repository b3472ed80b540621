package search_test

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/rtmr"
)

// wrong notes what may not be. The name of what is violated comes first.
func (r *run) violates(invariant, format string, args ...any) {
	r.wrong = append(r.wrong, invariant+": "+fmt.Sprintf(format, args...))
}

// sound judges what has to hold between any two effects.
func (r *run) sound(_ string) {
	if events := r.w.measured(); len(events) > 1 {
		r.violates("one event", "%v", events)
	}
	used := map[string]bool{compose.SharedVolume: true}
	for _, c := range r.w.Engine.Containers() {
		for _, m := range c.Mounts {
			used[m.Name] = true
		}
	}
	for _, volume := range r.w.Engine.Volumes() {
		if !used[volume] {
			r.violates("volumes referenced", "nothing has %s", volume)
		}
	}
}

// starts judges a container that the launcher has the engine start now.
func (r *run) starts(id string) {
	w := r.w
	for _, c := range w.Engine.Containers() {
		if c.ID != id && c.Name != id {
			if ofWorkload(c) && live(c) {
				r.violates("nothing unmeasured runs", "%s runs beside what is started", c.Name)
			}
			continue
		}
		of, err := digest.Parse(c.Labels["tee-launcher.manifest-digest"])
		if err != nil {
			r.violates("nothing unmeasured runs", "%s is of no digest", c.Name)
			continue
		}
		if err := w.isMeasured(of); err != nil {
			r.violates("nothing unmeasured runs", "%s is started: %v", c.Name, err)
		}
		if c.Image != w.images[of] {
			r.violates("what is measured runs", "%s is %s and not %s", c.Name, c.Image, w.images[of])
		}
		if c.Starts > 0 && c.Labels[compose.BootLabel] != w.bootID() {
			r.violates("what is measured runs", "%s ran before this boot", c.Name)
		}
	}
}

// isMeasured returns why a verifier wouldn't take the log for that digest's.
func (w *world) isMeasured(of digest.Digest) error {
	log, err := rtmr.Parse([]byte(w.Agent.TCBInfo()))
	if err != nil {
		return err
	}
	image, err := log.Accepted()
	if err == nil && image != of {
		err = fmt.Errorf("%s is measured, not %s", image, of)
	}
	return err
}

// ends judges the world after a run that nothing disturbed.
func (r *run) ends(o outcome, before facts) {
	w := r.w
	workloads := 0
	for _, c := range w.Engine.Containers() {
		if !ofWorkload(c) || !live(c) {
			if w.settings.Supervised() && ofWorkload(c) && c.RestartPolicy != "no" && c.RestartPolicy != "" {
				r.violates("no impostor left", "%s has the policy %s", c.Name, c.RestartPolicy)
			}
			continue
		}
		workloads++
		if w.settings.Supervised() && c.Labels[compose.BootLabel] != w.bootID() {
			r.violates("no impostor left", "%s is %s after %v", c.Name, c.Status, o)
		}
		if o.code == exit.OK {
			if err := w.isMeasured(digestOf(c.Labels["tee-launcher.manifest-digest"])); err != nil {
				r.violates("nothing unmeasured runs", "%s: %v", c.Name, err)
			}
			if c.Image != w.images[digestOf(c.Labels["tee-launcher.manifest-digest"])] {
				r.violates("what is measured runs", "%s is %s", c.Name, c.Image)
			}
		}
	}
	switch {
	case o.code == exit.OK && workloads != 1:
		r.violates("the same good state", "success, and %d workloads run", workloads)
	case o.code == exit.OK || before.damaged:
	case before.explained && o.code == exit.Measurement && !o.waits:
	default:
		r.violates("the same good state", "nothing is damaged, and the run ends with %v: %s", o, o.text)
	}
}

// running is the digest of the workload that runs.
func (w *world) running() (of digest.Digest) {
	for _, c := range w.Engine.Containers() {
		if ofWorkload(c) && live(c) {
			of = digestOf(c.Labels["tee-launcher.manifest-digest"])
		}
	}
	return of
}

func digestOf(text string) digest.Digest {
	d, _ := digest.Parse(text)
	return d
}

// facts is what a state says of the run that comes.
type facts struct {
	damaged   bool // something is broken that somebody has to mend
	explained bool // an image event or an intent is there, so that the boot may be refused for good
}

func (w *world) facts() facts {
	f := facts{damaged: w.down}
	cfg, err := os.ReadFile(w.ConfigFile)
	must(err)
	f.damaged = f.damaged || !strings.Contains(string(cfg), "home_dir")
	files := w.files()
	if !w.settings.Supervised() && strings.Contains(files["image-digest.bin"], nowhere.Hex()) {
		f.damaged = true // without supervision nothing is tried twice, so nothing older is
	}
	record := files["launcher/measurement.json"]
	f.explained = len(w.measured()) > 0 || w.Agent.State().Late() > 0 ||
		strings.Contains(record, w.bootID()) && !strings.Contains(record, `"digest": null`)
	return f
}

// search is one search, depth first.
type search struct {
	name   string
	w      *world
	root   state
	tries  int                  // further attempts that a run has
	seen   map[[16]byte][]bound // how far it was looked below a world
	events []event
	path   []string
	runs   int
	ends   map[exit.Code]int // of the runs that nothing disturbed
	wrong  []string
	until  time.Time
	found  *atomic.Bool // one of the searches found something: that is enough
	points map[[16]byte]bool
	noops  map[string]bool // events that change nothing in a state
}

func (s *search) stop() bool { return s.found.Load() || time.Now().After(s.until) }

func (s *search) fail(wrong ...string) {
	for _, text := range wrong {
		s.found.Store(true)
		s.wrong = append(s.wrong, text+"\n    after: "+strings.Join(s.path, "\n           "))
	}
}

// child is a state to go on from.
type child struct {
	state
	name string
	key  [16]byte
}

// bound is how many steps may still follow one another, each a run, an event or a kill, and how many events may happen
// in the middle of a run.
type bound struct{ depth, disturbances int }

// known reports whether it was looked as far below a world already.
func (s *search) known(key [16]byte, b bound) bool {
	return slices.ContainsFunc(s.seen[key], func(had bound) bool { return had.depth >= b.depth && had.disturbances >= b.disturbances })
}

// explore looks at the state in which the world is, and at all that comes of it in so many steps.
func (s *search) explore(depth, disturbances int, again *outcome) {
	if s.stop() {
		return
	}
	w := s.w
	key := w.key()
	if s.known(key, bound{depth, disturbances}) && again == nil {
		return
	}
	s.seen[key] = append(s.seen[key], bound{depth, disturbances})
	here, f := w.state(), w.facts()

	// What would verify say?
	said := w.verify()

	// A run that nothing disturbs.
	var children []child
	collect := func(r *run, under string) {
		fresh := map[[16]byte]bool{}
		r.keep = func(m moment) {
			if fresh[m.key] || s.known(m.key, bound{depth - 1, disturbances}) {
				return
			}
			fresh[m.key] = true
			children = append(children, child{w.state(), under + "killed before " + m.name, m.key})
		}
	}
	r := &run{tries: s.tries}
	collect(r, "a run, ")
	passed := map[[16]byte]state{}
	fresh := r.keep
	r.keep = func(m moment) {
		passed[m.key] = w.state()
		fresh(m)
	}
	o := w.play(r)
	s.runs++
	s.ends[o.code]++
	s.count(r)
	r.sound("")
	r.ends(o, f)
	first := o
	if r.failed.text != "" {
		first = r.failed
	}
	if said.ExitCode != first.code {
		r.violates("verify says what run does", "verify %d (%s), run %v: %s", said.ExitCode, said.Summary, first, first.text)
	}
	if runs := w.running(); o.code == exit.OK && said.WouldRun != nil && runs != said.WouldRun.Digest && (said.WouldRun.Fallback == nil || runs != *said.WouldRun.Fallback) {
		r.violates("verify says what run does", "%s runs, not %+v", runs, *said.WouldRun)
	}
	last := w.key()
	if again != nil && (!again.same(o) || last != key) {
		r.violates("the same good state", "a further run ends with %v, the one before with %v, in the same state: %v: %s", o, *again, last == key, o.text)
	}
	s.path = append(s.path, "a run")
	s.fail(r.wrong...)
	s.path = s.path[:len(s.path)-1]
	if s.stop() {
		return
	}
	// And once more, where that ended: nothing changes.
	if last != key {
		if s.seen[last] == nil {
			s.path = append(s.path, fmt.Sprintf("a run: %v", o))
			s.explore(max(depth-1, 0), disturbances, &o)
			s.path = s.path[:len(s.path)-1]
		}
	}
	if depth == 0 {
		return
	}
	for _, c := range children {
		s.down(c, depth-1, disturbances)
	}

	for _, e := range s.events {
		if e.do == nil || e.onlyWithin || s.stop() {
			continue
		}
		w.restore(here)
		e.do(w)
		s.down(child{w.state(), e.name, w.key()}, depth-1, disturbances)
	}

	if disturbances == 0 {
		return
	}
	for _, e := range s.events {
		if e.within == nil {
			continue
		}
		for i, m := range r.moments {
			if s.stop() {
				return
			}
			if !e.within(m) || e.do != nil && s.noop(e, m, passed[m.key]) {
				continue
			}
			w.restore(here)
			children = nil
			name := fmt.Sprintf("%s at %s, ", e.name, m.name)
			disturbed := &run{d: disturbance{i + 1, e}, tries: s.tries + 1}
			collect(disturbed, name)
			o := w.play(disturbed)
			s.runs++
			s.count(disturbed)
			disturbed.sound("")
			s.path = append(s.path, name+"in a run")
			s.fail(disturbed.wrong...)
			s.path = s.path[:len(s.path)-1]
			children = append(children, child{w.state(), fmt.Sprintf("%sin a run: %v", name, o), w.key()})
			for _, c := range children {
				s.down(c, depth-1, disturbances-1)
			}
		}
	}
}

// count notes where in a run the launcher was in which world.
func (s *search) count(r *run) {
	for _, m := range r.moments {
		sum := sha256.Sum256(append(m.key[:], varies.ReplaceAllString(m.name, "")...))
		s.points[[16]byte(sum[:16])] = true
	}
}

// noop reports whether an event changes nothing at a moment of a run, so that there is no need to try. What a second launcher does
// depends on more than the world, on the lock, but is the same until the world changes.
func (s *search) noop(e event, m moment, there state) bool {
	if e.onlyWithin {
		return !m.moved
	}
	id := e.name + string(m.key[:])
	if _, known := s.noops[id]; !known {
		s.w.restore(there)
		e.do(s.w)
		s.noops[id] = s.w.key() == m.key
	}
	return s.noops[id]
}

// down goes on from a state.
func (s *search) down(c child, depth, disturbances int) {
	if s.stop() || s.known(c.key, bound{depth, disturbances}) {
		return
	}
	s.w.restore(c.state)
	s.path = append(s.path, c.name)
	s.explore(depth, disturbances, nil)
	s.path = s.path[:len(s.path)-1]
}

var (
	bounds = flag.String("bounds", "1.0 1.1:^classic/auto/(old|no)", "how far it is searched, one after the other: so many steps, of them so many events in the middle of a run, "+
		"from beginnings of such names")
	only  = flag.String("events", "", "a regular expression; events of other names don't happen")
	limit = flag.Duration("limit", 15*time.Minute, "when the search gives up")
)

// nowhere is a digest that no registry has.
var nowhere = digest.Of([]byte("nowhere"))

// roots are the states from which a search begins.
func roots() map[string]func(*search) {
	return map[string]func(*search){
		"empty machine": func(*search) {},
		"no registry":   func(s *search) { s.w.registry(true) },
		"newest can't be had": func(s *search) {
			s.tries, s.w.settings.FallbackAfter = 6, time.Minute
			must(s.w.Approve(nowhere, s.w.Digests[0]))
		},
		"old workload that runs by itself": func(s *search) {
			s.w.play(&run{})
			_, _ = s.w.Engine.Call("DELETE", "/containers/"+compose.Name+"?force=1", nil) // where a mutant has made it
			s.w.oldWorkload()
			must(s.w.Approve(s.w.Digests[1], s.w.Digests[0]))
			s.w.reboot()
		},
	}
}

// TestSearch begins with what is near, so that what it finds is found by the shortest way.
func TestSearch(t *testing.T) {
	var found atomic.Bool
	var all []*search
	wanted := regexp.MustCompile(*only)
	happen := slices.DeleteFunc(events(), func(e event) bool { return !wanted.MatchString(e.name) })
	for _, containerd := range []bool{false, true} {
		for _, supervise := range []admission.Supervise{admission.SuperviseAuto, admission.SuperviseOff} {
			for name, arrange := range roots() {
				s := &search{
					name: fmt.Sprintf("%s/%s/%s", map[bool]string{false: "classic", true: "containerd"}[containerd], supervise, name),
					w:    newWorld(t, containerd, supervise), seen: map[[16]byte][]bound{}, events: happen, found: &found,
					ends: map[exit.Code]int{}, points: map[[16]byte]bool{}, noops: map[string]bool{}, until: time.Now().Add(*limit),
				}
				arrange(s)
				s.root = s.w.state()
				all = append(all, s)
			}
		}
	}
	for text := range strings.FieldsSeq(*bounds) {
		var b bound
		text, from, _ := strings.Cut(text, ":")
		_, err := fmt.Sscanf(text, "%d.%d", &b.depth, &b.disturbances)
		require.NoError(t, err)
		began := time.Now()
		work, searching := make(chan *search), sync.WaitGroup{}
		for range runtime.GOMAXPROCS(0) {
			searching.Go(func() {
				for s := range work {
					s.w.restore(s.root)
					s.explore(b.depth, b.disturbances, nil)
				}
			})
		}
		for _, s := range all {
			if regexp.MustCompile(from).MatchString(s.name) {
				work <- s
			}
		}
		close(work)
		searching.Wait()
		worlds, states, runs, ends := 0, 0, 0, map[exit.Code]int{}
		for _, s := range all {
			for code, n := range s.ends {
				ends[code] += n
			}
			worlds, states, runs = worlds+len(s.seen), states+len(s.points), runs+s.runs
			assert.Empty(t, s.wrong, s.name)
		}
		fmt.Printf("search to %s: %d worlds run from and verified, %d states of a run in a world, %d runs, undisturbed ones by exit code %v, %.0f s\n", text, worlds, states, runs, ends, time.Since(began).Seconds())
		if t.Failed() {
			return
		}
		require.False(t, time.Now().After(all[0].until), "it wasn't done in time")
	}
}

// invariants are what has to hold, by the names that violations begin with.
func invariants() []string {
	return []string{
		"one event", "nothing unmeasured runs", "what is measured runs", "no impostor left", "volumes referenced",
		"the same good state", "verify says what run does",
	}
}
