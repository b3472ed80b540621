package image

import (
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
	// Images are the runnable images: one for each entry of an index, in its order and whatever the
	// platform, or the one that the digest names itself.
	Images []DescribedImage
}

// DescribedImage is one image that was proved. Its documents aren't kept: an index may name many.
type DescribedImage struct {
	Platform       v1.Platform // operating system, architecture and variant, fit to be shown
	ManifestDigest digest.Digest
	ConfigDigest   digest.Digest
	Size           int64 // of the layers in the registry
	Layers         int
}

// maxDescribed is how many images of an index are proved to describe it, two documents each.
const maxDescribed = 100

// IsIndex reports whether the digest is that of an index.
func (d *Described) IsIndex() bool { return d.MediaType.IsIndex() }

// Describe says what the manifest or index data names, and proves all below it for any platform.
// That ref names data is the word of whoever gave it, unless ref has the digest.
func Describe(ref name.Reference, data []byte, get func(Document) ([]byte, error)) (*Described, error) {
	described := &Described{Digest: digest.Of(data)}
	root := ref.Context().Digest(described.Digest.String())
	doc, err := parseDocument(data)
	if err != nil {
		return nil, mismatch(root, PartManifest, err)
	}
	described.MediaType = doc.mediaType
	if !doc.isIndex() {
		v, err := prove(root, v1.Platform{}, get)
		if err != nil {
			return nil, err
		}
		described.Images = []DescribedImage{describe(v)}
		return described, nil
	}
	images := slices.DeleteFunc(doc.manifests, func(d descriptor) bool { return !d.runnable() })
	if len(images) > maxDescribed {
		return nil, &Error{Kind: Refused, Ref: root.String(), Part: PartManifest,
			Err: fmt.Errorf("it names %d images, at most %d are looked at", len(images), maxDescribed)}
	}
	for _, entry := range images {
		platform := v1.Platform{OS: entry.platform.OS, Architecture: entry.platform.Architecture}
		v, err := prove(ref.Context().Digest(entry.digest.String()), platform, get)
		if err != nil {
			return nil, err
		}
		described.Images = append(described.Images, describe(v))
	}
	return described, nil
}

func describe(v *Verified) DescribedImage {
	const longest = 40
	c := v.ConfigFile()
	return DescribedImage{
		Platform: v1.Platform{
			OS:           sanitize.Line(c.OS, longest),
			Architecture: sanitize.Line(c.Architecture, longest),
			Variant:      sanitize.Line(c.Variant, longest),
		},
		ManifestDigest: v.manifestDigest, ConfigDigest: v.configDigest,
		Size: v.Size(), Layers: len(v.layers),
	}
}
