package preflight

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/registry"
)

// headerTimeout is how long a registry may take to answer at first; the puller doubles it twice.
const headerTimeout = 5 * time.Second

// sourceOf is that of a boot, but without its patience: what doesn't answer now is what is to be said.
func (f *facts) sourceOf(h digest.Digest) *registry.Source {
	tuning := f.options.Tuning
	if tuning.HeaderTimeout == 0 {
		tuning.HeaderTimeout = headerTimeout
	}
	client := &registry.Client{
		Insecure: f.options.Insecure, ForbiddenHelperDirs: []string{"/tapp", f.options.SharedDir}, Log: f.log, Tuning: tuning,
	}
	return client.Source(f.config.Image.At(h))
}

// checkManifest proves the manifest, the config and the platform of the selected image.
func checkManifest(ctx context.Context, f *facts) outcome {
	f.source = f.sourceOf(f.decision.Digest)
	v, err := f.source.Resolve(ctx)
	if err != nil {
		var e *image.Error
		f.down = errors.As(err, &e) && e.Kind == image.Unavailable
		return fail(codeOf(err), err)
	}
	f.image = v
	detail := fmt.Sprintf("%d layers, %s, credentials: %s", len(v.Layers()), Size(v.Size()), f.source.Stats().Credential)
	if v.Index() != nil {
		detail += ", from an index"
	}
	return ok(detail)
}

// codeOf returns the code for the end of a pull.
func codeOf(err error) Code {
	var e *image.Error
	if !errors.As(err, &e) {
		return RegistryDown
	}
	switch {
	case e.Kind == image.Mismatch:
		return ManifestWrong
	case e.Kind != image.Refused:
		return RegistryDown
	case e.NoPlatform():
		return PlatformMissing
	case e.Status == http.StatusNotFound:
		return ManifestMissing
	}
	return RegistryRefuses
}
