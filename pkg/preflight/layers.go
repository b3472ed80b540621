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
	if err := f.source.CheckLayers(ctx, f.image); err != nil {
		code := LayerMissing
		var e *image.Error
		if errors.As(err, &e) && e.Kind == image.Unavailable {
			code = RegistryDown
		}
		return fail(code, err)
	}
	return ok(fmt.Sprintf("the registry has all %d, %s", len(f.image.Layers()), Size(f.image.Size())))
}
