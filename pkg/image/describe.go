package image

import (
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/digest"
)

// Described is what a reference names, for people who decide what to approve.
type Described struct {
	Digest    digest.Digest // what can be approved
	MediaType types.MediaType
	// Images are the runnable images: one for each entry of an index, in its order and whatever the
	// platform, or the one that the digest names itself. Their Digest is that of their own
	// manifest.
	Images []*Verified
}

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
		described.Images = []*Verified{v}
		return described, nil
	}
	for _, entry := range doc.manifests {
		if !entry.runnable() {
			continue
		}
		platform := v1.Platform{OS: entry.platform.OS, Architecture: entry.platform.Architecture}
		v, err := prove(ref.Context().Digest(entry.digest.String()), platform, get)
		if err != nil {
			return nil, err
		}
		described.Images = append(described.Images, v)
	}
	return described, nil
}
