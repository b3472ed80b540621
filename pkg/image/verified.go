package image

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/digest"
)

// Verified is an image whose manifest, config and platform are proved. Only Prove, Restore and
// Describe make one; the zero value proves nothing and opens nothing. It may be used by several
// goroutines.
type Verified struct {
	ref            name.Digest
	digest         digest.Digest
	indexes        [][]byte // the approved one, and those within it that lead to the manifest
	indexType      types.MediaType
	chosen         string // of which entries; empty where there was one
	manifest       []byte
	manifestDigest digest.Digest
	mediaType      types.MediaType
	configDigest   digest.Digest
	config         []byte
	layers         []Layer
	loose          []looseForm
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
	Index    []byte   // nil where the approved digest is the manifest's
	Nested   [][]byte // indexes within it
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
func (v *Verified) Index() []byte {
	if len(v.indexes) == 0 {
		return nil
	}
	return bytes.Clone(v.indexes[0])
}

// Chosen says which entry of the index the image is, where more than one is for the platform. Else
// it is empty.
func (v *Verified) Chosen() string { return v.chosen }

// Laxity is what an engine's image store takes although it isn't quite what the specification says.
type Laxity struct {
	Types      bool // a config or layer whose type says nothing: the store looks at the bytes
	Strings    bool // an Entrypoint or Cmd that is a string
	DockerZstd bool // a zstd layer in a Docker manifest, under the type that BuildKit gives it
}

// looseForm is what only a lax store takes.
type looseForm struct {
	what  string
	taken func(Laxity) bool
	help  string
}

// UsableIn returns why a store can't take the image, an *Error, as far as its documents tell.
func (v *Verified) UsableIn(store Laxity) error {
	for _, form := range v.loose {
		if !form.taken(store) {
			e := unusable(v.ref, "", fmt.Errorf("this engine's image store doesn't take %s", form.what))
			e.Help = append(e.Help, form.help)
			return e
		}
	}
	return nil
}

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
	config, err := parseConfig(v.config)
	if err != nil {
		return nil
	}
	return config.file
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
	kept := Kept{Index: v.Index(), Manifest: v.Manifest(), Config: v.Config()}
	for i, index := range v.indexes {
		if i > 0 {
			kept.Nested = append(kept.Nested, bytes.Clone(index))
		}
	}
	return kept
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

// Indexes returns the approved index and those within it that lead to the manifest; none where the
// approved digest is the manifest's.
func (v *Verified) Indexes() [][]byte {
	var all [][]byte
	for _, raw := range v.indexes {
		all = append(all, bytes.Clone(raw))
	}
	return all
}

// Documents returns what a source has to have of the image beside its layers.
func (v *Verified) Documents() []Document {
	var all []Document
	for _, raw := range append(slices.Clone(v.indexes), v.manifest) {
		all = append(all, Document{Part: PartManifest, Digest: digest.Of(raw), Size: int64(len(raw))})
	}
	return append(all, Document{Part: partConfig, Digest: v.configDigest, Size: int64(len(v.config)), Config: true})
}

// Check reports why data isn't the document.
func (d Document) Check(data []byte) error {
	size := d.Size
	if size < 0 {
		size = int64(len(data))
	}
	if int64(len(data)) != size && digest.Of(data) == d.Digest {
		return contradiction("it has %d bytes, what names it says %d", len(data), size)
	}
	return checkBytes(data, d.Digest, size)
}

// Restore proves kept bytes as Prove proves those of a source.
func Restore(ref name.Digest, platform v1.Platform, kept Kept) (*Verified, error) {
	return Prove(ref, platform, func(d Document) ([]byte, error) {
		for _, data := range append([][]byte{kept.Index, kept.Manifest, kept.Config}, kept.Nested...) {
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
	return prove(ref, orThisMachine(platform), nil, get)
}

// prove is Prove for exactly this platform. Only where nothing is to be run is it zero: any. Where an
// entry of an index named ref, the proof is against what that says, too.
func prove(ref name.Digest, platform v1.Platform, entry *descriptor,
	get func(Document) ([]byte, error)) (*Verified, error) {
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
		if err := d.Check(data); err != nil {
			if digest.Of(data) == d.Digest {
				return nil, unusable(ref, d.Part, err)
			}
			return nil, mismatch(ref, d.Part, err)
		}
		if len(data) > MaxManifest {
			return nil, unusable(ref, d.Part, ErrTooLarge)
		}
		return data, nil
	}

	part, want := PartManifest, Document{Part: PartManifest, Digest: approved, Size: -1}
	if entry != nil {
		want.Size = entry.size
	}
	var doc *document
	for {
		if v.manifest, err = fetch(want); err != nil {
			return nil, err
		}
		if doc, err = parseDocument(v.manifest); err != nil {
			return nil, unusable(ref, part, err)
		}
		if err := agrees(doc, entry); err != nil {
			return nil, unusable(ref, part, err)
		}
		if !doc.isIndex() {
			break
		}
		if len(v.indexes) == maxNested {
			return nil, unusable(ref, part, fmt.Errorf("indexes are nested more than %d deep", maxNested))
		}
		chosen, others, err := choose(doc.manifests, platform)
		if err != nil {
			return nil, unusable(ref, part, err)
		}
		if others > 0 && v.chosen == "" {
			v.chosen = fmt.Sprintf("entry %d of the index's %d, of which %d are for this platform",
				chosen.index+1, len(doc.manifests), others+1)
		}
		if v.indexes == nil {
			v.indexType = doc.mediaType
		}
		v.indexes = append(v.indexes, v.manifest)
		entry, v.manifestDigest, part = &chosen, chosen.digest, partChild
		want = Document{Part: part, Digest: chosen.digest, Size: chosen.size}
	}
	v.mediaType, v.configDigest = doc.mediaType, doc.config.digest
	if doc.untyped && entry != nil {
		v.mediaType = entry.mediaType
	}

	part = partConfig
	raw, err := fetch(Document{Part: part, Digest: doc.config.digest, Size: doc.config.size, Config: true})
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(raw)
	if err != nil {
		return nil, unusable(ref, part, err)
	}
	if !platform.Equals(v1.Platform{}) {
		var named *v1.Platform
		if entry != nil {
			named = entry.platform
		}
		if err := forPlatform(config.file, platform, named); err != nil {
			return nil, unusable(ref, part, err)
		}
	}
	if got, want := len(config.diffIDs), len(doc.layers); got != want {
		return nil, unusable(ref, part, contradiction("it has %d diff_ids, the manifest %d layers", got, want))
	}
	for i, l := range doc.layers {
		v.layers = append(v.layers, Layer{
			Digest: l.digest, DiffID: config.diffIDs[i], Size: l.size, MediaType: l.mediaType,
		})
	}
	v.loose = looseForms(doc, config)
	v.config = raw // last: it is what makes v valid
	return v, nil
}

// agrees returns why a document isn't what the entry of an index calls it.
func agrees(doc *document, entry *descriptor) error {
	if entry == nil || doc.mediaType == entry.mediaType || doc.untyped && doc.isIndex() == entry.mediaType.IsIndex() {
		return nil
	}
	return contradiction("it is %.100q, the index says %.100q", doc.mediaType, entry.mediaType)
}

// looseForms returns what only a lax store takes.
func looseForms(doc *document, config *imageConfig) (forms []looseForm) {
	untyped := func(format string, args ...any) {
		forms = append(forms, looseForm{fmt.Sprintf(format, args...),
			func(l Laxity) bool { return l.Types }, "an engine with the classic store takes it"})
	}
	if isLoose(doc.config.mediaType) {
		untyped("a config of type %.100q", doc.config.mediaType)
	}
	for i, l := range doc.layers {
		switch {
		case isLoose(l.mediaType):
			untyped("layers[%d] of type %.100q", i, l.mediaType)
		case l.mediaType == dockerLayerZstd:
			forms = append(forms, looseForm{fmt.Sprintf("layers[%d] of type %q", i, l.mediaType),
				func(l Laxity) bool { return l.DockerZstd }, "an engine from 28 on takes it"})
		}
	}
	for _, field := range config.strings {
		forms = append(forms, looseForm{fmt.Sprintf("%s that is a string and not a list", field),
			func(l Laxity) bool { return l.Strings }, "an engine before 29 with the classic store takes it"})
	}
	return forms
}
