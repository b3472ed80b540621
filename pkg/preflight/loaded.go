package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/docker/inspect"
)

// checkImage looks whether the engine has the image already, whole, and what would be left to
// download. At the next boot only what a container holds is sure to be there still: dstack prunes
// images.
func checkImage(ctx context.Context, f *facts) outcome {
	v := f.verified()
	if v == nil {
		return outcome{unknown: "which image is meant isn't known"}
	}
	id, err := f.engine.Prove(ctx, f.info, v)
	held := func() bool {
		return slices.ContainsFunc(f.containers, func(c admission.Container) bool { return c.Image == id.String() })
	}
	var found []Finding
	var unproved *inspect.UnprovedError
	switch {
	case err == nil && (!f.next || held()):
		f.id, f.left = id, new(int64)
		return ok("in the engine already")
	case err == nil:
		found = append(found, note(ImageUnheld, "the engine has the image, but no container is made of it, so that it may be pruned before it is needed"))
	case errors.Is(err, inspect.ErrNoImage):
	case errors.As(err, &unproved):
		found = append(found, warning(ImageBroken, err.Error(), "nothing: it would be loaded anew"))
	default:
		return fail(EngineContradicts, err)
	}
	has := func(int) bool { return false }
	if !f.next {
		if has, err = f.engine.Present(ctx, f.info, v, f.own.Known(v.Reference().Context())); err != nil {
			return fail(EngineContradicts, err)
		}
	}
	f.left = new(int64)
	for i, layer := range v.Layers() {
		if !has(i) {
			f.missing = append(f.missing, i)
			*f.left += layer.Size
		}
	}
	return ok(fmt.Sprintf("not in the engine, %s to download at most", Size(*f.left)), found...)
}
