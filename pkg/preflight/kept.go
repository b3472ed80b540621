package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"tee-launcher/pkg/image"
)

// maxKept bounds one kept document: three documents of at most 4 MiB in base64, and change.
const maxKept = 18 << 20

// checkKept proves the manifest and config that an earlier boot kept. Where the engine still has the image, no registry is needed.
func checkKept(_ context.Context, f *facts) outcome {
	v, err := f.restore()
	if errors.Is(err, fs.ErrNotExist) {
		return ok("there is none")
	}
	if err != nil {
		return ok("", warning(KeptUseless, fmt.Sprintf("the kept manifest is of no use: %v", err), "nothing: it will be replaced when the image is loaded"))
	}
	f.kept = v
	return ok("proves itself")
}

func (f *facts) restore() (*image.Verified, error) {
	ref := f.config.Image.At(f.decision.Digest)
	data, err := f.readOwn("image-"+f.decision.Digest.Hex+".json", maxKept)
	if err != nil {
		return nil, err
	}
	var kept image.Kept
	if err := json.Unmarshal(data, &kept); err != nil {
		return nil, err
	}
	return (&image.Puller{}).Restore(ref, kept)
}
