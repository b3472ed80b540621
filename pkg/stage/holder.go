package stage

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
)

const (
	// pending is the container that says which image may come of a fetch. It is made before, of the
	// image that runs, and stays until a holder of the new one stands, or what came of it is gone.
	pending = compose.Staged + "-pending"
	// approvedLabel is the approved digest that either container is for.
	approvedLabel = "tee-launcher.staged"
	// imageLabel is the engine's ID of the image; empty where staging didn't load it.
	imageLabel = "tee-launcher.staged-image"
	// lateLoad is how long an engine may go on with a load that was broken off.
	lateLoad = 10 * time.Minute
)

// holders are the containers by which the engine knows, whatever becomes of us, what is staged and
// which image is there only because of it. None of them is ever started.
type holders struct {
	engine  *docker.Engine
	log     *slog.Logger
	running Running
}

// found is what there is of them.
type found struct {
	holder, pending *docker.Container // nil: there is none
	taken           bool              // the holder's name, by a container that isn't ours
}

// find looks for them. One that runs or ran, or that lacks our labels, is somebody else's.
func (h holders) find(ctx context.Context) (found, error) {
	all, err := h.engine.Containers(ctx)
	if err != nil {
		return found{}, err
	}
	return among(all), nil
}

func among(all []docker.Container) (f found) {
	for _, c := range all {
		switch {
		case !c.NeverStarted() || approvedIn(&c).IsZero():
			f.taken = f.taken || c.Name == compose.Staged
		case c.Name == compose.Staged:
			f.holder = &c
		case c.Name == pending:
			f.pending = &c
		}
	}
	return f
}

func (f found) approved() digest.Digest { return approvedIn(f.holder) }

func approvedIn(c *docker.Container) digest.Digest {
	if c == nil {
		return digest.Digest{}
	}
	d, err := digest.Parse(c.Labels[approvedLabel])
	if err != nil {
		return digest.Digest{}
	}
	return d
}

func labels(approved digest.Digest, id string) map[string]string {
	return map[string]string{approvedLabel: approved.String(), imageLabel: id}
}

// hold makes the holder, unless it is there: then something else was missing. The ID is that of the
// image, or nothing where it was there before.
func (h holders) hold(
	ctx context.Context, approved digest.Digest, img Fetched, loaded string, f found,
) error {
	if f.holder != nil && f.holder.Image != img.ID.String() {
		if err := h.engine.Discard(ctx, f.holder.ID); err != nil {
			return err
		}
		f.holder = nil
	}
	if f.holder == nil {
		volumes := img.Image.ConfigFile().Config.Volumes
		err := h.engine.HoldImage(ctx, compose.Staged, img.ID, volumes, labels(approved, loaded))
		if err != nil {
			return err
		}
	}
	return h.forget(ctx)
}

// forget removes what says that an image may come of a fetch.
func (h holders) forget(ctx context.Context) error {
	f, err := h.find(ctx)
	if err != nil || f.pending == nil {
		return err
	}
	return h.engine.Discard(ctx, f.pending.ID)
}

// announce says that an image of that ID is, or will be, there only because of staging.
func (h holders) announce(ctx context.Context, approved digest.Digest, id string) error {
	if err := h.forget(ctx); err != nil {
		return err
	}
	return h.engine.HoldImage(ctx, pending, h.running.ID, h.running.Volumes, labels(approved, id))
}

// clear removes the holder, and its image if that is there only because of it.
func (h holders) clear(ctx context.Context, f found) error {
	if f.holder == nil {
		return nil
	}
	h.log.Info("removing what was staged", "digest", f.approved())
	id := f.holder.Labels[imageLabel]
	if id == "" {
		return h.engine.Discard(ctx, f.holder.ID)
	}
	// From the holder's end until that of the image something has to say whose it is.
	if err := h.announce(ctx, f.approved(), id); err != nil {
		return err
	}
	if err := h.engine.Discard(ctx, f.holder.ID); err != nil {
		return err
	}
	left, err := h.find(ctx)
	if err != nil || left.pending == nil {
		return err
	}
	return h.sweep(ctx, left.pending, false)
}

// sweep removes what is left of a fetch that didn't come to its end: the image, unless a container has
// it, and what its load made on the way. What says that these are ours goes last, or stays where more
// may come.
func (h holders) sweep(ctx context.Context, c *docker.Container, more bool) error {
	h.engine.ForgetPrefixes(ctx, approvedIn(c))
	if id := c.Labels[imageLabel]; id != "" {
		all, err := h.engine.Containers(ctx)
		if err != nil {
			return err
		}
		used := false
		for _, other := range all {
			used = used || other.Image == id
		}
		if !used {
			if err := h.engine.RemoveImage(ctx, id); err != nil {
				return fmt.Errorf("an image that was staged can't be removed: %w", err)
			}
		}
	}
	if more {
		return nil
	}
	return h.engine.Discard(ctx, c.ID)
}

// Release is for a boot that has just made the workload's container, of the image used: what held that
// for it has done its duty. Where nothing is staged any more, the rest goes too. Containers are those
// of the engine before that.
func Release(
	ctx context.Context, e *docker.Engine, log *slog.Logger, containers []docker.Container,
	used Running, stages bool,
) error {
	h, f := holders{e, log, used}, among(containers)
	id := used.ID.String()
	if f.pending != nil {
		switch {
		case f.pending.Labels[imageLabel] == id:
			if err := e.Discard(ctx, f.pending.ID); err != nil {
				return err
			}
		case !stages:
			if err := h.sweep(ctx, f.pending, false); err != nil {
				return err
			}
		}
	}
	switch {
	case f.holder == nil:
		return nil
	case f.holder.Image == id:
		return e.Discard(ctx, f.holder.ID)
	case !stages:
		return h.clear(ctx, f)
	}
	return nil
}
