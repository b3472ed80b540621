package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/digest"
)

// Resolve fetches and proves the manifest (through an index, if ref names one), the config and the platform of ref.
func (p *Puller) Resolve(ctx context.Context, ref name.Digest) (*Verified, error) {
	s := newSource(p.settings(), ref.Context(), ref.String())
	return s.prove(ref, s.Platform, s.fetcher(ctx))
}

// fetcher gets documents from the registry.
func (s *source) fetcher(ctx context.Context) func(part string, h v1.Hash, size int64) ([]byte, error) {
	return func(part string, h v1.Hash, size int64) ([]byte, error) {
		return s.document(ctx, part, h, size)
	}
}

// Described is what a reference names, for people who decide what to approve.
type Described struct {
	Digest    v1.Hash // what can be approved
	MediaType types.MediaType
	// Images are the runnable images: one for each entry of an index, in its order and whatever the platform, or the one
	// that the digest names itself. Their Digest is that of their own manifest.
	Images []*Verified
}

// IsIndex says whether the digest is that of an index.
func (d *Described) IsIndex() bool { return d.MediaType.IsIndex() }

// Describe resolves a tag or digest. What a tag names is the registry's word; all below its digest is proved as for
// Resolve, but for any platform.
func (p *Puller) Describe(ctx context.Context, ref name.Reference) (*Described, error) {
	s := newSource(p.settings(), ref.Context(), ref.String())
	var data []byte
	var err error
	if d, ok := ref.(name.Digest); ok {
		h, bad := digest.Parse(d.DigestStr())
		if bad != nil {
			return nil, &Error{Kind: Refused, Ref: s.ref, Err: bad}
		}
		data, err = s.document(ctx, partIndex, h, -1)
	} else {
		data, err = s.fetchDocument(ctx, partIndex, "manifests/"+ref.Identifier(), func([]byte) error { return nil })
	}
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(data)
	if err != nil {
		return nil, s.mismatch(partIndex, err)
	}
	described := &Described{Digest: digest.Of(data), MediaType: doc.mediaType}
	if !doc.isIndex() {
		v, err := s.prove(ref.Context().Digest(described.Digest.String()), v1.Platform{}, s.fetcher(ctx))
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
		v, err := s.prove(ref.Context().Digest(entry.digest.String()), platform, s.fetcher(ctx))
		if err != nil {
			return nil, err
		}
		described.Images = append(described.Images, v)
	}
	return described, nil
}

// CheckLayers asks the registry whether it has every layer, without fetching one.
func (v *Verified) CheckLayers(ctx context.Context) error {
	if !v.Valid() {
		return errNotVerified
	}
	asked := map[v1.Hash]bool{}
	for i, l := range v.layers {
		if asked[l.Digest] {
			continue
		}
		asked[l.Digest] = true
		err := v.source.retry(ctx, layerPart(i, len(v.layers)), func(t *tries) *failure {
			// Where a redirect leads isn't asked: signed URLs often are for GET alone, and there is one only for what is there.
			a, f := v.source.logIn(ctx, t, http.MethodHead, "blobs/"+l.Digest.String(), http.Header{})
			if f != nil {
				return f
			}
			if a.StatusCode >= 400 {
				return v.source.rejected(a)
			}
			defer a.Close()
			if a.StatusCode == http.StatusOK && a.ContentLength >= 0 && a.ContentLength != l.Size {
				return &failure{class: lie, host: a.host, err: fmt.Errorf("got %d bytes, want %d", a.ContentLength, l.Size)}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func layerPart(i, n int) string { return fmt.Sprintf("layer %d of %d", i+1, n) }

// mismatch is the end of a pull whose documents are not what they have to be.
func (s *source) mismatch(part string, err error) *Error {
	return &Error{Kind: Mismatch, Ref: s.ref, Part: part, Err: err, hints: []string{
		"these bytes are not what was approved or can be read in more than one way: don't use this source again before it is explained",
	}}
}

// unusable tells an image for other machines, which is a plain refusal, from one whose documents lie.
func (s *source) unusable(part string, err error) *Error {
	var platform *noPlatformError
	if !errors.As(err, &platform) {
		return s.mismatch(part, err)
	}
	return &Error{Kind: Refused, Ref: s.ref, Part: part, Err: err, hints: []string{
		fmt.Sprintf("approve the digest of an image that was built for %s", platform.want),
	}}
}
