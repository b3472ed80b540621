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
)

// Verified is an image whose manifest, config and platform are proved, and a way to its layers. Only Resolve and Restore
// make one; the zero value proves nothing and opens nothing. It may be used by several goroutines.
type Verified struct {
	ref            name.Digest
	digest         v1.Hash
	index          []byte
	indexType      types.MediaType
	manifest       []byte
	manifestDigest v1.Hash
	mediaType      types.MediaType
	configDigest   v1.Hash
	config         []byte
	layers         []Layer
	source         *source
}

// Layer is one layer of a proved manifest and config.
type Layer struct {
	Digest    v1.Hash // of the bytes in the registry
	DiffID    v1.Hash // of the uncompressed tar
	Size      int64   // in the registry
	MediaType types.MediaType
}

// Kept is what has to be kept of a Verified to prove it again without a network. The bytes may come from anywhere: they
// are believed only as far as the approved digest proves them.
type Kept struct {
	Index    []byte // nil where the approved digest is the manifest's
	Manifest []byte
	Config   []byte
}

// Stats says what was done for a Verified so far.
type Stats struct {
	Fetched    int64  // bytes of layers that came over the network
	Requests   int    // HTTP requests, token servers included
	Resumes    int    // requests that went on where another one ended early
	Credential string // the source of the credentials that were used, or "anonymous"
}

// Valid says whether Resolve or Restore made v.
func (v *Verified) Valid() bool { return v != nil && v.source != nil }

// Reference returns what was asked for.
func (v *Verified) Reference() name.Digest { return v.ref }

// Digest returns the approved digest: the one that is measured.
func (v *Verified) Digest() v1.Hash { return v.digest }

// Index returns the bytes of the index if the approved digest is that of one, else nil.
func (v *Verified) Index() []byte { return bytes.Clone(v.index) }

// IndexMediaType returns the type of the index, empty if there is none.
func (v *Verified) IndexMediaType() types.MediaType { return v.indexType }

// Manifest returns the bytes of the image's manifest.
func (v *Verified) Manifest() []byte { return bytes.Clone(v.manifest) }

// ManifestDigest returns the digest of Manifest: Digest, or that of the index's entry for the platform.
func (v *Verified) ManifestDigest() v1.Hash { return v.manifestDigest }

// MediaType returns the type of Manifest.
func (v *Verified) MediaType() types.MediaType { return v.mediaType }

// Config returns the bytes of the image's config.
func (v *Verified) Config() []byte { return bytes.Clone(v.config) }

// ConfigDigest returns the digest of Config, which classic image stores use as the image's ID.
func (v *Verified) ConfigDigest() v1.Hash { return v.configDigest }

// ConfigFile returns a copy of the parsed config, nil for the zero Verified.
func (v *Verified) ConfigFile() *v1.ConfigFile {
	if !v.Valid() {
		return nil
	}
	// What was parsed once with success is parsed again with success.
	config, err := parseConfig(v.config)
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

// Stats returns what was done so far.
func (v *Verified) Stats() Stats {
	if !v.Valid() {
		return Stats{}
	}
	return v.source.statistics()
}

// Restore proves kept bytes as Resolve proves those of the registry, without any network.
func (p *Puller) Restore(ref name.Digest, kept Kept) (*Verified, error) {
	s := newSource(p.settings(), ref.Context(), ref.String())
	return s.prove(ref, s.Platform, func(part string, h v1.Hash, _ int64) ([]byte, error) {
		for _, data := range [][]byte{kept.Index, kept.Manifest, kept.Config} {
			// Told apart by digest, so that nobody has to believe which is which.
			if len(data) > 0 && len(data) <= MaxManifest && digest.Of(data) == h {
				return bytes.Clone(data), nil
			}
		}
		return nil, s.mismatch(part, fmt.Errorf("no kept bytes have the digest %s", h))
	})
}

// Parts of an image as errors name them.
const (
	partIndex    = "manifest"
	partManifest = "manifest for the platform"
	partConfig   = "config"
)

// prove turns bytes that anybody may have given into a Verified, or an *Error. get returns the bytes for a digest; what
// it returns is hashed here once more. A size below zero is unknown. Only where nothing is to be run is platform zero: any.
func (s *source) prove(ref name.Digest, platform v1.Platform, get func(part string, h v1.Hash, size int64) ([]byte, error)) (*Verified, error) {
	approved, err := digest.Parse(ref.DigestStr())
	if err != nil {
		return nil, &Error{Kind: Refused, Ref: s.ref, Err: err}
	}
	v := &Verified{ref: ref, digest: approved, manifestDigest: approved, source: s}
	fetch := func(part string, h v1.Hash, size int64) ([]byte, error) {
		data, err := get(part, h, size)
		if err != nil {
			return nil, err
		}
		if size < 0 {
			size = int64(len(data))
		}
		if len(data) > MaxManifest {
			return nil, s.mismatch(part, fmt.Errorf("%d bytes are over the limit of %d", len(data), MaxManifest))
		}
		if err := checkBytes(data, h, size); err != nil {
			return nil, s.mismatch(part, err)
		}
		return data, nil
	}

	part := partIndex
	if v.manifest, err = fetch(part, approved, -1); err != nil {
		return nil, err
	}
	doc, err := parseDocument(v.manifest)
	if err != nil {
		return nil, s.mismatch(part, err)
	}
	if doc.isIndex() {
		entry, err := choose(doc.manifests, platform)
		if err != nil {
			return nil, s.unusable(part, err)
		}
		v.index, v.indexType, v.manifestDigest = v.manifest, doc.mediaType, entry.digest
		part = partManifest
		if v.manifest, err = fetch(part, entry.digest, entry.size); err != nil {
			return nil, err
		}
		if doc, err = parseDocument(v.manifest); err != nil {
			return nil, s.mismatch(part, err)
		}
		if doc.isIndex() {
			return nil, s.mismatch(part, errors.New("it is an index within an index"))
		}
		if doc.mediaType != entry.mediaType {
			return nil, s.mismatch(part, fmt.Errorf("it is %.100q, the index says %.100q", doc.mediaType, entry.mediaType))
		}
	}
	v.mediaType, v.configDigest = doc.mediaType, doc.config.digest

	part = partConfig
	if v.config, err = fetch(part, doc.config.digest, doc.config.size); err != nil {
		return nil, err
	}
	config, err := parseConfig(v.config)
	if err != nil {
		return nil, s.mismatch(part, err)
	}
	if (config.OS != platform.OS || config.Architecture != platform.Architecture) && !platform.Equals(v1.Platform{}) {
		have := clean(config.OS+"/"+config.Architecture, 40)
		if v.index != nil {
			return nil, s.mismatch(part, fmt.Errorf("it is for %s, the index says %s", have, platform))
		}
		return nil, s.unusable(part, &noPlatformError{want: platform, offered: []string{have}})
	}
	if got, want := len(config.RootFS.DiffIDs), len(doc.layers); got != want {
		return nil, s.mismatch(part, fmt.Errorf("it has %d diff_ids, the manifest %d layers", got, want))
	}
	for i, l := range doc.layers {
		v.layers = append(v.layers, Layer{Digest: l.digest, DiffID: config.RootFS.DiffIDs[i], Size: l.size, MediaType: l.mediaType})
	}
	return v, nil
}
