// Package stage fetches the image that the next boot is expected to run while the present one runs.
//
// It guarantees that it starts, measures and stops nothing; that it has at most one image beside those
// that it found; that it removes no image but one that it had the engine load and that no container
// has; and that a reboot finds either an image that a container holds or what the prune at boot
// takes. What it staged is trusted by nobody: the boot proves it like any other. What would be chosen
// is decided by approval, what is proved by image and docker.
//
// All that it must know after a crash stands in the labels of its two containers, which the workload
// can't reach. decide.go says what is done when, and this file does it.
package stage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/sanitize"
)

// roomInterval is how often it is looked during a load how much room there is.
const roomInterval = 2 * time.Second

// Candidate is an image that may be staged.
type Candidate struct {
	Digest digest.Digest // as approved
	Ref    name.Digest
	Config *config.Config // says where it can be had
}

// Fetched is an image that was fetched and proved.
type Fetched struct {
	ID    docker.ImageID
	Image *image.Verified
}

// Fetch pulls, proves and loads an image as a boot does, and keeps its manifest for that. Before
// anything is loaded it asks.
type Fetch func(ctx context.Context, c Candidate, may May) (Fetched, error)

// May returns why an image can't be loaded that will have this ID in the engine, which lacks so many
// bytes of it.
type May func(ctx context.Context, info inspect.Info, id string, missing int64) error

// Running is the image that the workload's container has.
type Running struct {
	Approved digest.Digest // by which it was chosen
	ID       docker.ImageID
	Volumes  map[string]struct{} // that it asks for
}

// Stager stages beside one workload.
type Stager struct {
	Settings
	Engine  *docker.Engine
	Running Running
	// Choose returns what the next boot would run as things are, or why it would end.
	Choose func() (Candidate, error)
	// Ready returns the image's ID where the next boot would find it without a registry.
	Ready func(context.Context, Candidate) (docker.ImageID, bool)
	Fetch Fetch
	// Disk looks at the engine's disk; nil: it can't be seen. An error is an engine that doesn't answer.
	Disk func(context.Context) (*Disk, error)

	Log    *slog.Logger
	Report func(State, digest.Digest, error) // gets what is new
	Now    func() time.Time
	Sleep  func(context.Context, time.Duration) error
	Random func(most time.Duration) time.Duration // nil: evenly spread

	memory  Memory
	broken  time.Time // when a load was last broken off; before us one may have been until we began
	short   short
	told    told
	trouble string // at the last look
}

// short is the room in which an image turned out not to fit, once it was there.
type short struct {
	of   digest.Digest
	room int64 // in which it may
}

// told is what was reported last.
type told struct {
	state State
	of    digest.Digest
	why   string
}

// Run stages until ctx ends.
func (s *Stager) Run(ctx context.Context) {
	if s.Random == nil {
		s.Random = func(most time.Duration) time.Duration { return rand.N(most + 1) }
	}
	s.broken = s.Now()
	for {
		err := s.look(ctx)
		if ctx.Err() != nil {
			return
		}
		s.complain(err)
		if s.Sleep(ctx, interval) != nil || ctx.Err() != nil {
			return
		}
	}
}

// complain logs, once, what keeps staging from looking.
func (s *Stager) complain(err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	if why != "" && why != s.trouble {
		s.Log.Warn("staging can't go on", "error", err)
	}
	s.trouble = why
}

// look finds out how things stand, and does what has to be done.
func (s *Stager) look(ctx context.Context) error {
	h := s.holders()
	found, err := h.find(ctx)
	if err != nil {
		return err
	}
	if p := found.pending; p != nil {
		since := p.Created
		if s.broken.After(since) { // which a slow load began long before
			since = s.broken
		}
		if err := h.sweep(ctx, p, s.Now().Sub(since) < lateLoad); err != nil {
			return err
		}
	}
	f := Facts{Now: s.Now(), Running: s.Running.Approved, Held: found.approved()}
	if f.Disk, err = s.Disk(ctx); err != nil {
		return err
	}
	var wanted Candidate
	if wanted, f.Broken = s.Choose(); f.Broken == nil {
		f.Wanted = wanted.Digest
	}
	if !f.Held.IsZero() && f.Held == f.Wanted {
		ready, ok := s.Ready(ctx, wanted)
		f.Ready = ok && found.holder.Image == ready.String()
	}
	todo, state, why := Decide(f, &s.memory, s.Settings, func() time.Duration { return s.Random(s.Delay) })
	of := f.Wanted
	if todo == Clear && why != nil {
		of = f.Held
	}
	s.tell(state, of, why)
	switch todo {
	case Clear:
		return h.clear(ctx, found)
	case Begin:
		s.begin(ctx, wanted, found)
	}
	return nil
}

// begin fetches an image.
func (s *Stager) begin(ctx context.Context, c Candidate, found found) {
	s.Log.Info("staging the image that the next boot will run", "digest", c.Digest, "rate", s.Rate)
	err := s.fetch(ctx, c, found)
	debug.FreeOSMemory() // what waits for months should be small
	if ctx.Err() != nil {
		return
	}
	s.memory.Failed = err
	if err != nil {
		s.broken = s.Now()
		s.tell(Failed, c.Digest, err)
		return
	}
	s.tell(Staged, c.Digest, nil)
}

// fetch has the engine hold an image and the next boot find it, once another one that was staged is
// gone. Where that fails, what came of it goes.
func (s *Stager) fetch(ctx context.Context, c Candidate, found found) (err error) {
	h, loaded := s.holders(), ""
	if found.taken { // nothing could hold the image then, and it would be fetched in vain every hour
		return fmt.Errorf("there is a container %s that staging didn't make: remove it, or give it another name", compose.Staged)
	}
	if found.approved() != c.Digest {
		if err := h.clear(ctx, found); err != nil {
			return err
		}
		found.holder = nil
	}
	defer func() {
		if err == nil || ctx.Err() != nil {
			return
		}
		if left, unseen := h.find(ctx); unseen == nil && left.pending != nil {
			if left := h.sweep(ctx, left.pending, true); left != nil {
				s.Log.Debug("staging: what a fetch left can't be removed yet", "error", left)
			}
		}
	}()
	var room int64
	may := func(ctx context.Context, info inspect.Info, id string, missing int64) error {
		disk, err := s.Disk(ctx)
		if err == nil && disk != nil {
			err = disk.Fits(info.Store, missing)
			if err == nil && s.short.of == c.Digest && disk.Free < s.short.room {
				err = disk.Room(0) // fetched again, it wouldn't fit again
			}
			room = disk.Free + missing/10
		}
		if err != nil {
			return err
		}
		loaded = id
		return h.announce(ctx, c.Digest, id)
	}
	img, err := s.watched(ctx, func(ctx context.Context) (Fetched, error) { return s.Fetch(ctx, c, may) })
	if err == nil && loaded != "" {
		err = s.roomy(ctx) // what was unpacked last may have come between two looks
	}
	if loaded != "" && errors.Is(err, ErrRoom) {
		s.short = short{c.Digest, room}
	}
	if err != nil {
		return err
	}
	return h.hold(ctx, c.Digest, img, loaded, found)
}

func (s *Stager) holders() holders { return holders{s.Engine, s.Log, s.Running} }

// roomy returns why what was loaded can't stay.
func (s *Stager) roomy(ctx context.Context) error {
	disk, err := s.Disk(ctx)
	if err != nil || disk == nil {
		return err
	}
	return disk.Room(disk.Free)
}

// watched does something that a disk which fills up ends.
func (s *Stager) watched(ctx context.Context, do func(context.Context) (Fetched, error)) (Fetched, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for s.Sleep(ctx, roomInterval) == nil && ctx.Err() == nil {
			disk, err := s.Disk(ctx)
			if err != nil || disk == nil {
				continue
			}
			if err := disk.Room(disk.Free); err != nil {
				cancel(err)
			}
		}
	}()
	img, err := do(ctx)
	if err != nil && errors.Is(context.Cause(ctx), ErrRoom) {
		err = context.Cause(ctx)
	}
	cancel(nil)
	<-ended
	return img, err
}

// tell reports and logs what is new.
func (s *Stager) tell(state State, of digest.Digest, why error) {
	if state == "" || state == Disabled {
		of = digest.Digest{}
	}
	now := told{state: state, of: of}
	if why != nil {
		now.why = sanitize.Line(why.Error(), sanitize.MaxLine)
	}
	if now == s.told {
		return
	}
	s.told = now
	s.Report(state, of, why)
	switch {
	case why != nil && state == Disabled:
		s.Log.Warn("staging is off", "because", why)
	case why != nil:
		s.Log.Warn("the image for the next boot can't be staged", "digest", of, "error", why,
			"hints", exit.Hints(why))
	case state == Waiting:
		s.Log.Info("another image is the choice for the next boot", "digest", of)
	case state == Staged:
		s.Log.Info("the image for the next boot is staged", "digest", of)
	}
}
