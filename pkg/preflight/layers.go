package preflight

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/image"
)

// checkLayers asks whether the registry has every layer, and fetches none.
func checkLayers(ctx context.Context, f *facts) outcome {
	if !f.id.IsZero() {
		return outcome{skipped: "the engine has the image"}
	}
	v := f.verified()
	if v == nil {
		return outcome{unknown: "which image is meant isn't known"}
	}
	if err := f.sourceOf(f.decision.Digest).CheckLayers(ctx, v, f.missing); err != nil {
		code := LayerMissing
		var e *image.Error
		if errors.As(err, &e) && e.Kind == image.Unavailable {
			code = RegistryDown
		}
		return fail(code, err)
	}
	return ok(fmt.Sprintf("the registry has all %d, %s", len(v.Layers()), Size(v.Size())))
}
