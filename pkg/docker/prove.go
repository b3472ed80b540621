package docker

import (
	"context"
	"errors"
	"strings"

	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/docker/internal/api"
	"tee-launcher/pkg/image"
)

// Prove is inspect's Prove, which changes nothing. Where the engine doesn't say whether it has
// unpacked the image, or says that it hasn't, a container of it is made, for which it has to, and
// removed: a load unpacks only what the engine takes for its own platform, and that is not the image
// where this one is for a variant of it.
func (e *Engine) Prove(ctx context.Context, info inspect.Info, v *image.Verified) (ImageID, error) {
	id, err := e.Engine.Prove(ctx, info, v)
	unknown := err == nil && !info.TellsUnpacked()
	if !unknown && !errors.Is(err, inspect.ErrNotUnpacked) {
		return id, err
	}
	image := inspect.ID(info.Store, v).String()
	if err := e.try(ctx, image, v.ConfigFile().Config.Volumes); err != nil {
		return ImageID{}, err
	}
	return e.Engine.Prove(ctx, info, v)
}

// trialPrefix begins the name of a container that only shows whether one can be made of an image. One
// that was left behind counts as a holder, and goes with them.
const trialPrefix = "mpc-node-holder-trial-"

// try makes a container of an image, which is never started, and removes it.
func (e *Engine) try(ctx context.Context, image string, volumes map[string]struct{}) error {
	name := trialPrefix + strings.TrimPrefix(image, "sha256:")[:12]
	if err := e.Discard(ctx, name); err != nil { // of a launcher that was killed just here
		return err
	}
	_, err := e.create(ctx, name, neverStarted(image, volumes))
	if api.Answered(err) {
		return &inspect.UnprovedError{
			ID: image, What: "a container of it", Got: err.Error(), Want: "one", Err: err,
		}
	}
	// A request that was given up may have made it all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if removed := e.Discard(ctx, name); err == nil {
		err = removed
	}
	return err
}
