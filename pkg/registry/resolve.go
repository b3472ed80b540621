package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
)

// Resolve fetches and proves manifest (through an index, if the reference names one), config and
// platform.
func (s *Source) Resolve(ctx context.Context) (*image.Verified, error) {
	return image.Prove(s.ref.Context().Digest(s.ref.Identifier()), s.Platform, s.getter(ctx))
}

// getter gets documents from the registry.
func (s *Source) getter(ctx context.Context) func(image.Document) ([]byte, error) {
	return func(d image.Document) ([]byte, error) { return s.document(ctx, d) }
}

// Describe resolves a tag or digest. What a tag names is the registry's word; all below its digest
// is proved as for Resolve, but for any platform.
func (c *Client) Describe(ctx context.Context, ref name.Reference) (*image.Described, error) {
	s := newSource(c.settings(), ref)
	var data []byte
	var err error
	if d, ok := ref.(name.Digest); ok {
		h, bad := digest.Parse(d.DigestStr())
		if bad != nil {
			return nil, &image.Error{Kind: image.Refused, Ref: ref.String(), Err: bad}
		}
		data, err = s.document(ctx, image.Document{Part: image.PartManifest, Digest: h, Size: -1})
	} else {
		path := "manifests/" + ref.Identifier()
		data, err = s.fetchDocument(ctx, image.Document{Part: image.PartManifest, Size: -1}, path, manifestTypes)
	}
	if err != nil {
		return nil, err
	}
	if err := s.repeats(image.PartManifest, data); err != nil {
		return nil, err
	}
	described, err := image.Describe(ref, data, func(d image.Document) ([]byte, error) {
		data, err := s.document(ctx, d)
		if err == nil {
			err = s.repeats(d.Part, data)
		}
		return data, err
	})
	var e *image.Error
	if errors.As(err, &e) {
		e.Err = s.redact(e.Err)
	}
	return described, err
}

// repeats refuses a document with a secret that was sent. Nobody approved these documents, so
// whoever was sent it may have made them, and parts of them are shown.
func (s *Source) repeats(part string, document []byte) error {
	if !s.secrets.in(document) {
		return nil
	}
	return &image.Error{Kind: image.Refused, Ref: s.ref.String(), Part: part, Host: s.primary.host(),
		Err: errors.New("it holds what was sent there as a secret")}
}

// CheckLayers asks whether somebody has each of these layers of v, without fetching one.
func (s *Source) CheckLayers(ctx context.Context, v *image.Verified, layers []int) error {
	asked := map[digest.Digest]bool{}
	all := v.Layers()
	for _, i := range layers {
		l := all[i]
		if asked[l.Digest] {
			continue
		}
		asked[l.Digest] = true
		err := s.retry(ctx, v.LayerPart(i), func(t *tries) *failure {
			return s.pass(ctx, v.LayerPart(i), s.order(t, nil), func(u upstream) *failure { return u.hasLayer(ctx, t, l) })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hasLayer asks for a layer in the two ways that there are.
func (s *remote) hasLayer(ctx context.Context, t *tries, l image.Layer) *failure {
	f := s.has(ctx, t, http.MethodHead, l)
	if f == nil || f.class == transient && f.status != http.StatusNotImplemented {
		return f
	}
	// HEAD is a courtesy that many a registry or proxy gets wrong: what GET says counts.
	return s.has(ctx, t, http.MethodGet, l)
}

// has asks for a layer, or for its first byte, and returns why the registry doesn't have it.
func (s *remote) has(ctx context.Context, t *tries, method string, l image.Layer) *failure {
	header := http.Header{}
	if method == http.MethodGet {
		header.Set("Range", "bytes=0-0")
	}
	// Where a redirect leads isn't asked: signed URLs often are for GET alone, and there is one
	// only for what is there.
	a, f := s.inRepository(ctx, t, method, "blobs/"+l.Digest.String(), header)
	if f != nil {
		return f
	}
	if a.StatusCode >= 400 {
		return s.rejected(a)
	}
	defer a.Close()
	size := a.ContentLength
	switch a.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		if _, _, total, err := parseContentRange(a.Header.Get("Content-Range")); err == nil {
			size = total
		}
	default:
		return nil
	}
	if size >= 0 && size != l.Size && !encoded(a) {
		return &failure{class: lie, host: a.host, err: fmt.Errorf("got %d bytes, want %d", size, l.Size)}
	}
	return nil
}
