package registry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
)

// document fetches the whole of a manifest or config and proves it.
func (s *Source) document(ctx context.Context, d image.Document) ([]byte, error) {
	path, accept := "manifests/"+d.Digest.String(), manifestTypes
	if d.Config {
		path, accept = "blobs/"+d.Digest.String(), anyType
	}
	data, err := s.fetchDocument(ctx, d, path, accept)
	var e *image.Error
	missing := errors.As(err, &e) && e.Status == http.StatusNotFound && d.Part == image.PartManifest
	if missing && s.isBlob(ctx, d.Digest) { // a blob of any kind: it isn't fetched for that
		e.Help = []string{
			"this digest is that of a blob (a config, which is an image ID, or a layer), not of a manifest, " +
				"which is what has to be approved",
			fmt.Sprintf("launcher digest %s:<tag> prints it", s.ref.Context().Name()),
		}
	}
	return data, err
}

// fetchDocument fetches a document, again where it isn't the right one. A zero digest is that of
// any.
func (s *Source) fetchDocument(ctx context.Context, d image.Document, path, accept string) ([]byte, error) {
	var document []byte
	err := s.retry(ctx, d.Part, func(t *tries) *failure {
		a, f := s.ask(ctx, t, http.MethodGet, path, http.Header{"Accept": {accept}})
		if f != nil {
			return f
		}
		defer a.Close()
		if a.StatusCode != http.StatusOK {
			return s.rejected(a)
		}
		body, err := documentBody(a)
		if err != nil {
			return &failure{host: a.host, err: err}
		}
		data, err := io.ReadAll(io.LimitReader(body, image.MaxManifest+1))
		if err != nil {
			return &failure{host: a.host, err: err}
		}
		if len(data) > image.MaxManifest {
			return tooLarge(a, d, io.MultiReader(bytes.NewReader(data), body))
		}
		// Another size than expected is for the proof to tell: the right bytes came.
		if err := d.Check(data); err != nil && !d.Digest.IsZero() && digest.Of(data) != d.Digest {
			return &failure{class: lie, host: a.host, err: err, hints: webPage(a)}
		}
		document = data
		return nil
	})
	if err != nil {
		return nil, err
	}
	return document, nil
}

// webPage says so where the answer is one.
func webPage(a *answer) []string {
	if strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
		return []string{a.host + " answers with a web page, such as a login page, instead of the image"}
	}
	return nil
}

// maxHashed is up to where a document that is too large is read, to see whose fault that is.
const maxHashed = 16 * image.MaxManifest

// tooLarge tells a document that is what was asked for, and larger than any may be, from a source
// that sends something else.
func tooLarge(a *answer, d image.Document, whole io.Reader) *failure {
	if d.Size >= 0 {
		return &failure{class: lie, host: a.host,
			err: fmt.Errorf("got more than %d bytes, want %d", image.MaxManifest, d.Size)}
	}
	hash := sha256.New()
	n, err := io.Copy(hash, io.LimitReader(whole, maxHashed+1))
	switch {
	case err != nil:
		return &failure{host: a.host, err: err}
	case d.Digest.IsZero() || digest.Digest(hash.Sum(nil)) == d.Digest:
		return &failure{class: final, host: a.host, err: image.ErrTooLarge}
	case n > maxHashed:
		return &failure{class: lie, host: a.host, err: fmt.Errorf("got more than %d bytes, want %s", maxHashed, d.Digest)}
	}
	return &failure{class: lie, host: a.host, err: fmt.Errorf("got %d other bytes, want %s", n, d.Digest)}
}

// documentBody is the body of a manifest or config, compressed or not: neither begins as gzip does.
func documentBody(a *answer) (io.Reader, error) {
	if !encoded(a) {
		return a, nil
	}
	body := bufio.NewReader(a)
	if magic, _ := body.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return body, nil // what went wrong shows at the next Read
	}
	return gzip.NewReader(body)
}

// encoded reports whether an answer says that it is compressed, although that wasn't asked for.
func encoded(a *answer) bool {
	coding := a.Header.Get("Content-Encoding")
	return strings.EqualFold(coding, "gzip") || strings.EqualFold(coding, "x-gzip")
}

const (
	manifestTypes = string(types.OCIManifestSchema1 + ", " + types.DockerManifestSchema2 + ", " +
		types.OCIImageIndex + ", " + types.DockerManifestList)
	anyType = "*/*"
)

// isBlob asks once whether h is a blob of the repository.
func (s *Source) isBlob(ctx context.Context, h digest.Digest) bool {
	a, f := s.inRepository(ctx, &tries{}, http.MethodHead, "blobs/"+h.String(), http.Header{})
	if f != nil {
		return false
	}
	defer a.Close()
	return a.StatusCode < 400
}
