package preflight

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/docker/inspect"
)

// lookedAt bounds how many images of the engine are looked at for layers that needn't be downloaded.
const lookedAt = 100

// checkImage looks whether the engine has the image already, whole, and what would be left to download.
func checkImage(ctx context.Context, f *facts) outcome {
	v := f.verified()
	if v == nil {
		return outcome{unknown: "which image is meant isn't known"}
	}
	id, err := f.engine.Prove(ctx, f.info, v)
	if err == nil {
		f.id, f.left = id, new(int64)
		return ok("in the engine already")
	}
	var found []Finding
	var unproved *inspect.UnprovedError
	switch {
	case errors.Is(err, inspect.ErrNoImage):
	case errors.As(err, &unproved):
		found = append(found, warning(ImageBroken, err.Error(), "nothing: it would be loaded anew"))
	default:
		return fail(EngineContradicts, err)
	}
	left := v.Size()
	if f.info.Store == inspect.Classic {
		layers := v.Layers()
		ids := make([]string, 0, len(layers))
		for _, l := range layers {
			ids = append(ids, l.DiffID.String())
		}
		n, err := f.engine.CommonLayers(ctx, ids, lookedAt)
		if err != nil {
			return fail(EngineContradicts, err)
		}
		for _, l := range layers[:n] {
			left -= l.Size
		}
	}
	f.left = &left
	return ok(fmt.Sprintf("not in the engine, %s to download at most", Size(left)), found...)
}
