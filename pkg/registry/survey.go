package registry

import (
	"context"
	"net/http"

	"tee-launcher/pkg/image"
)

// Found is what one source has of an image, as far as it says.
type Found struct {
	Name       string // as the user config has it, or the registry of the reference
	Primary    bool   // it is that registry
	Err        error  // why it can't give manifest or config; nil if it can
	Missing    int    // layers that it can't give
	Why        error  // why it can't give the first of those
	Credential string // which ones were used
	WantsLogin bool   // it refuses those, or that there are none
	Lied       bool
}

// Whole reports whether the source can give all of the image.
func (f Found) Whole() bool { return f.Err == nil && f.Missing == 0 }

// Survey asks every source, each once, what it has of the image: the manifest, the config, and these
// layers, without fetching one. The sources come in the order in which they are tried.
func (s *Source) Survey(ctx context.Context, v *image.Verified, layers []int) ([]Found, error) {
	var all []Found
	for _, u := range s.all {
		found := s.surveyed(ctx, u, v, layers)
		if ctx.Err() != nil {
			return nil, interrupted(ctx)
		}
		all = append(all, found)
	}
	return all, nil
}

func (s *Source) surveyed(ctx context.Context, u upstream, v *image.Verified, layers []int) Found {
	found := Found{Name: s.nameOf(u), Primary: u == upstream(s.primary)}
	var t tries
	why := func(f *failure) error {
		found.WantsLogin = found.WantsLogin || f.status == http.StatusUnauthorized || f.status == http.StatusForbidden
		found.Lied = found.Lied || f.whole
		return s.redact(f.error())
	}
	for _, d := range v.Documents() {
		path, accept := "manifests/"+d.Digest.String(), manifestTypes
		if d.Config {
			path, accept = "blobs/"+d.Digest.String(), anyType
		}
		if _, f := u.document(ctx, &t, d, path, accept); f != nil && found.Err == nil {
			found.Err = why(f)
		}
	}
	if found.Err == nil {
		for _, i := range layers {
			if f := u.hasLayer(ctx, &t, v.Layers()[i]); f != nil {
				if found.Missing++; found.Why == nil {
					found.Why = why(f)
				}
			}
		}
	}
	found.Credential = u.credential()
	return found
}
