package stage

import (
	"errors"
	"fmt"
	"time"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
)

const (
	// interval is how often it is asked which image the next boot would run.
	interval = time.Minute
	// pause is the least time between the beginnings of two fetches.
	pause = time.Hour
)

// Settings is what flags and environment say about staging. The zero value is none.
type Settings struct {
	Mode  Mode
	After time.Duration // how long a digest must have been the choice
	Delay time.Duration // the longest random wait after that
	Rate  int64         // bytes per second; 0: no limit
}

// Mode says whether to stage.
type Mode string

// The values of Mode; the empty one is Off.
const (
	Off  Mode = "off"
	On   Mode = "on"
	Auto Mode = "auto" // where the workload is supervised
)

// Wanted reports whether to stage beside a workload that the launcher looks after, or doesn't.
// Nothing is there to stage beside one that is left to the engine.
func (s Settings) Wanted(supervised bool) bool {
	return supervised && (s.Mode == On || s.Mode == Auto)
}

// State is how far staging came.
type State string

// The states.
const (
	Disabled State = "off"      // by the settings, or because nobody knows how much room there is
	Waiting  State = "waiting"  // another image than the running one is the choice, and isn't fetched yet
	Fetching State = "fetching" // it is being fetched
	Staged   State = "staged"   // the engine holds it, and the next boot needs no registry
	Failed   State = "failed"   // error says why; it is tried again
)

// Disk is the engine's.
type Disk struct {
	Free, All int64 // bytes
}

// Short reports whether less than a twentieth is free, so that what is staged has to go.
func (d Disk) Short() bool { return d.Free < d.All/20 }

// Room returns why an image must not be staged after which so many bytes were free: a tenth of the
// disk stays free for the workload.
func (d Disk) Room(free int64) error {
	if free >= d.All/10 {
		return nil
	}
	return fmt.Errorf("%w: less than a tenth of the engine's disk would be left, which has %d MB, "+
		"%d MB of them free", ErrRoom, d.All/1e6, d.Free/1e6)
}

// ErrRoom is an engine's disk with too little room for another image.
var ErrRoom = errors.New("too little room")

// Fits returns why an image can't be staged of which the engine lacks so many bytes, as the registry
// has them. Nothing says beforehand what they unpack to: no less. A containerd store keeps both.
func (d Disk) Fits(store inspect.Store, missing int64) error {
	need := missing
	if store == inspect.Containerd {
		need *= 2
	}
	return d.Room(d.Free - need)
}

// Facts is what is known at one look.
type Facts struct {
	Now     time.Time
	Running digest.Digest
	Wanted  digest.Digest // that the rules would choose now; nothing where Broken says why not
	Broken  error         // the next boot would end with it
	Disk    *Disk         // nil: it can't be seen
	Held    digest.Digest // that the holder is for; zero: there is none
	Ready   bool          // and the next boot would find that image, and its manifest, by itself
}

// Memory is what is remembered from one look to the next.
type Memory struct {
	Wanted digest.Digest
	Since  time.Time     // when it became the choice
	Delay  time.Duration // that was drawn for it
	Begun  time.Time     // when the last fetch began, of whichever image; zero: there was none
	Failed error         // of the last fetch of Wanted
}

// Step is what is to be done after a look.
type Step int

// The steps.
const (
	Rest  Step = iota
	Clear      // what is staged goes
	Begin      // what is wanted is fetched
)

// Decide says what to do, and how it stands until that is done. It draws a delay for a digest that is
// new.
func Decide(f Facts, m *Memory, s Settings, draw func() time.Duration) (Step, State, error) {
	if f.Broken == nil && f.Wanted != m.Wanted {
		m.Wanted, m.Since, m.Delay, m.Failed = f.Wanted, f.Now, draw(), nil
	}
	settled := f.Now.Sub(m.Since) >= s.After
	other := !f.Held.IsZero() && f.Held != m.Wanted
	due := m.Since.Add(s.After + m.Delay)
	if again := m.Begun.Add(pause); !m.Begun.IsZero() && again.After(due) {
		due = again
	}
	switch {
	case f.Disk == nil:
		return Rest, Disabled, errors.New("the engine's disk can't be seen, " +
			"so nobody knows whether there is room for another image")
	case f.Disk.Short() && !f.Held.IsZero():
		m.Failed = fmt.Errorf("%w: less than a twentieth of the engine's disk is free, "+
			"so what was staged is removed", ErrRoom)
		return Clear, Failed, m.Failed
	case f.Broken != nil:
		return Rest, Failed, f.Broken
	case f.Wanted == f.Running:
		if settled && other || f.Held == f.Running && !f.Held.IsZero() {
			return Clear, "", nil
		}
		return Rest, "", nil
	case f.Held == f.Wanted && f.Ready:
		m.Failed = nil
		return Rest, Staged, nil
	case settled && other:
		return Clear, Waiting, nil
	case f.Now.Before(due) && m.Failed != nil:
		return Rest, Failed, m.Failed
	case f.Now.Before(due):
		return Rest, Waiting, nil
	}
	m.Begun = f.Now
	return Begin, Fetching, nil
}
