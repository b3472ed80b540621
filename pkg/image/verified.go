package image

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/sanitize"
)

// Verified is an image whose manifest, config and platform are proved. Only Prove, Restore and
// Describe make one; the zero value proves nothing and opens nothing. It may be used by several
// goroutines.
type Verified struct {
	ref            name.Digest
	digest         digest.Digest
	index          []byte
	indexType      types.MediaType
	manifest       []byte
	manifestDigest digest.Digest
	mediaType      types.MediaType
	configDigest   digest.Digest
	config         []byte
	layers         []Layer
}

// Layer is one layer of a proved manifest and config.
type Layer struct {
	Digest    digest.Digest // of the bytes in the registry
	DiffID    digest.Digest // of the uncompressed tar
	Size      int64         // in the registry
	MediaType types.MediaType
}

// Hash returns the digest as go-containerregistry writes it, for its manifests and configs.
func Hash(d digest.Digest) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: d.Hex()} }

// Kept is what has to be kept of a Verified to prove it again without a network. The bytes may come
// from anywhere: they are believed only as far as the approved digest proves them.
type Kept struct {
	Index    []byte // nil where the approved digest is the manifest's
	Manifest []byte
	Config   []byte
}

// Valid reports whether v was proved.
func (v *Verified) Valid() bool { return v != nil && v.config != nil }

// Reference returns what was asked for.
func (v *Verified) Reference() name.Digest { return v.ref }

// Digest returns the approved digest: the one that is measured.
func (v *Verified) Digest() digest.Digest { return v.digest }

// Index returns the bytes of the index if the approved digest is that of one, else nil.
func (v *Verified) Index() []byte { return bytes.Clone(v.index) }

// IndexMediaType returns the type of the index, empty if there is none.
func (v *Verified) IndexMediaType() types.MediaType { return v.indexType }

// Manifest returns the bytes of the image's manifest.
func (v *Verified) Manifest() []byte { return bytes.Clone(v.manifest) }

// ManifestDigest returns the digest of Manifest: Digest, or that of the index's entry for the
// platform.
func (v *Verified) ManifestDigest() digest.Digest { return v.manifestDigest }

// MediaType returns the type of Manifest.
func (v *Verified) MediaType() types.MediaType { return v.mediaType }

// Config returns the bytes of the image's config.
func (v *Verified) Config() []byte { return bytes.Clone(v.config) }

// ConfigDigest returns the digest of Config, which classic image stores use as the image's ID.
func (v *Verified) ConfigDigest() digest.Digest { return v.configDigest }

// ConfigFile returns a copy of the parsed config, nil for the zero Verified.
func (v *Verified) ConfigFile() *v1.ConfigFile {
	if !v.Valid() {
		return nil
	}
	// What was parsed once with success is parsed again with success.
	config, _, err := parseConfig(v.config)
	if err != nil {
		return nil
	}
	return config
}

// Layers returns the layers, the lowest first.
func (v *Verified) Layers() []Layer { return slices.Clone(v.layers) }

// Size returns the sum of the layers' sizes in the registry.
func (v *Verified) Size() int64 {
	var sum int64
	for _, l := range v.layers {
		sum += l.Size
	}
	return sum
}

// Kept returns what Restore needs.
func (v *Verified) Kept() Kept {
	return Kept{Index: v.Index(), Manifest: v.Manifest(), Config: v.Config()}
}

// LayerPart names a layer in errors and messages: "layer 2 of 3".
func (v *Verified) LayerPart(layer int) string {
	return fmt.Sprintf("layer %d of %d", layer+1, len(v.layers))
}

// Document is a manifest or config that a proof needs.
type Document struct {
	Part   string // what it is, for messages
	Digest digest.Digest
	Size   int64 // below zero: unknown
	Config bool  // a registry keeps it as a blob
}

// Check reports why data isn't the document.
func (d Document) Check(data []byte) error {
	size := d.Size
	if size < 0 {
		size = int64(len(data))
	}
	return checkBytes(data, d.Digest, size)
}

// Restore proves kept bytes as Prove proves those of a source.
func Restore(ref name.Digest, platform v1.Platform, kept Kept) (*Verified, error) {
	return Prove(ref, platform, func(d Document) ([]byte, error) {
		for _, data := range [][]byte{kept.Index, kept.Manifest, kept.Config} {
			// Told apart by digest, so that nobody has to believe which is which.
			if len(data) > 0 && len(data) <= MaxManifest && digest.Of(data) == d.Digest {
				return bytes.Clone(data), nil
			}
		}
		return nil, mismatch(ref, d.Part, fmt.Errorf("no kept bytes have the digest %s", d.Digest))
	})
}

// Parts of an image as errors name them.
const (
	PartManifest = "manifest" // or index: what the approved digest names
	partChild    = "manifest for the platform"
	partConfig   = "config"
)

// Prove turns bytes that anybody may give into a Verified, or an *Error. An error of get comes
// through as it is. The image is the one for platform; zero means Linux on this architecture.
func Prove(ref name.Digest, platform v1.Platform, get func(Document) ([]byte, error)) (*Verified, error) {
	return prove(ref, orThisMachine(platform), get)
}

// prove is Prove for exactly this platform. Only where nothing is to be run is it zero: any.
func prove(ref name.Digest, platform v1.Platform, get func(Document) ([]byte, error)) (*Verified, error) {
	approved, err := digest.Parse(ref.DigestStr())
	if err != nil {
		return nil, &Error{Kind: Refused, Ref: ref.String(), Err: err}
	}
	v := &Verified{ref: ref, digest: approved, manifestDigest: approved}
	fetch := func(d Document) ([]byte, error) {
		data, err := get(d)
		if err != nil {
			return nil, err
		}
		if len(data) > MaxManifest {
			return nil, mismatch(ref, d.Part, fmt.Errorf("%d bytes are over the limit of %d", len(data), MaxManifest))
		}
		if err := d.Check(data); err != nil {
			return nil, mismatch(ref, d.Part, err)
		}
		return data, nil
	}

	part := PartManifest
	manifest, err := fetch(Document{Part: part, Digest: approved, Size: -1})
	if err != nil {
		return nil, err
	}
	v.manifest = manifest
	doc, err := parseDocument(v.manifest)
	if err != nil {
		return nil, mismatch(ref, part, err)
	}
	if doc.isIndex() {
		entry, err := choose(doc.manifests, platform)
		if err != nil {
			return nil, unusable(ref, part, err)
		}
		v.index, v.indexType, v.manifestDigest = v.manifest, doc.mediaType, entry.digest
		part = partChild
		if v.manifest, err = fetch(Document{Part: part, Digest: entry.digest, Size: entry.size}); err != nil {
			return nil, err
		}
		if doc, err = parseDocument(v.manifest); err != nil {
			return nil, mismatch(ref, part, err)
		}
		if doc.isIndex() {
			return nil, mismatch(ref, part, errors.New("it is an index within an index"))
		}
		if doc.mediaType != entry.mediaType {
			return nil, mismatch(ref, part, fmt.Errorf("it is %.100q, the index says %.100q", doc.mediaType, entry.mediaType))
		}
	}
	v.mediaType, v.configDigest = doc.mediaType, doc.config.digest

	part = partConfig
	raw, err := fetch(Document{Part: part, Digest: doc.config.digest, Size: doc.config.size, Config: true})
	if err != nil {
		return nil, err
	}
	config, diffIDs, err := parseConfig(raw)
	if err != nil {
		return nil, mismatch(ref, part, err)
	}
	if (config.OS != platform.OS || config.Architecture != platform.Architecture) && !platform.Equals(v1.Platform{}) {
		have := sanitize.Line(config.OS+"/"+config.Architecture, 40)
		if v.index != nil {
			return nil, mismatch(ref, part, fmt.Errorf("it is for %s, the index says %s", have, platform))
		}
		return nil, unusable(ref, part, &noPlatformError{want: platform, offered: []string{have}})
	}
	if got, want := len(diffIDs), len(doc.layers); got != want {
		return nil, mismatch(ref, part, fmt.Errorf("it has %d diff_ids, the manifest %d layers", got, want))
	}
	for i, l := range doc.layers {
		v.layers = append(v.layers, Layer{
			Digest: l.digest, DiffID: diffIDs[i], Size: l.size, MediaType: l.mediaType,
		})
	}
	v.config = raw // last: it is what makes v valid
	return v, nil
}
