package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// checkKept proves the manifest and config that an earlier boot kept. Where the engine still has the image, no registry is needed.
func checkKept(_ context.Context, f *facts) outcome {
	v, err := f.own.Restore(f.config.Image.At(f.decision.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return ok("there is none")
	}
	if err != nil {
		return ok("", warning(KeptUseless, fmt.Sprintf("the kept manifest is of no use: %v", err), "nothing: it will be replaced when the image is loaded"))
	}
	f.kept = v
	return ok("proves itself")
}
