package image

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/sanitize"
)

// Described is what a reference names, for people who decide what to approve.
type Described struct {
	Digest    digest.Digest // what can be approved
	MediaType types.MediaType
	// Images are the runnable images: one for each entry of an index that names a platform, in its
	// order and whatever the platform, or the one that the digest names itself.
	Images []DescribedImage
	// Here is the one that is pulled on this machine, nil where there is none for it.
	Here *DescribedImage
}

// DescribedImage is one image that was proved. Its documents aren't kept: an index may name many.
type DescribedImage struct {
	Platform       v1.Platform // operating system, architecture and variant, fit to be shown
	ManifestDigest digest.Digest
	MediaType      types.MediaType // of the manifest
	ConfigDigest   digest.Digest
	Size           int64 // of the layers in the registry
	Layers         int
	Err            error // why it can't be used; then there is neither config, size nor layers
}

// maxDescribed is how many images of an index are proved to describe it, two documents each.
const maxDescribed = 100

// IsIndex reports whether the digest is that of an index.
func (d *Described) IsIndex() bool { return d.MediaType.IsIndex() }

// Describe says what the manifest or index data names, and proves all below it for any platform.
// That ref names data is the word of whoever gave it, unless ref has the digest. What is wrong with
// an image that isn't for this machine is told of that image alone.
func Describe(ref name.Reference, data []byte, get func(Document) ([]byte, error)) (*Described, error) {
	described := &Described{Digest: digest.Of(data)}
	root := ref.Context().Digest(described.Digest.String())
	doc, err := parseDocument(data)
	if err != nil {
		return nil, unusable(root, PartManifest, err)
	}
	described.MediaType = doc.mediaType
	images := slices.DeleteFunc(doc.manifests, func(d descriptor) bool {
		return !d.runnable() || d.platform == nil // without a platform it may be anything
	})
	if len(images) > maxDescribed {
		return nil, unusable(root, PartManifest,
			fmt.Errorf("it names %d images, at most %d are looked at", len(images), maxDescribed))
	}
	known := func(d Document) ([]byte, error) {
		if d.Digest == described.Digest {
			return data, nil
		}
		return get(d)
	}
	var e *Error
	switch here, err := Prove(root, v1.Platform{}, known); {
	case err == nil:
		described.Here = describe(here)
	case !errors.As(err, &e) || !e.NoPlatform():
		return nil, err
	}
	switch {
	case doc.isIndex():
	case described.Here != nil:
		described.Images = []DescribedImage{*described.Here}
		return described, nil
	default: // for another machine
		v, err := prove(root, v1.Platform{}, nil, known)
		if err != nil {
			return nil, err
		}
		described.Images = []DescribedImage{*describe(v)}
		return described, nil
	}
	for _, entry := range images {
		if here := described.Here; here != nil && entry.digest == here.ManifestDigest {
			described.Images = append(described.Images, *here)
			continue
		}
		v, err := prove(ref.Context().Digest(entry.digest.String()), *entry.platform, &entry, get)
		switch {
		case err == nil:
			described.Images = append(described.Images, *describe(v))
		case !errors.As(err, &e) || e.Kind == Unavailable:
			return nil, err
		default:
			described.Images = append(described.Images, DescribedImage{
				Platform: shown(*entry.platform), ManifestDigest: entry.digest, Err: err,
			})
		}
	}
	return described, nil
}

func describe(v *Verified) *DescribedImage {
	c := v.ConfigFile()
	return &DescribedImage{
		Platform:       shown(v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}),
		ManifestDigest: v.manifestDigest, MediaType: v.MediaType(), ConfigDigest: v.configDigest,
		Size: v.Size(), Layers: len(v.layers),
	}
}

// shown is a platform fit to be shown.
func shown(p v1.Platform) v1.Platform {
	const longest = 40
	return v1.Platform{
		OS:           sanitize.Line(p.OS, longest),
		Architecture: sanitize.Line(p.Architecture, longest),
		Variant:      sanitize.Line(p.Variant, longest),
	}
}
