package registry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
)

// document makes one attempt to fetch a document.
func (s *remote) document(ctx context.Context, t *tries, d image.Document, path, accept string) ([]byte, *failure) {
	a, f := s.ask(ctx, t, http.MethodGet, path, http.Header{"Accept": {accept}})
	if f != nil {
		return nil, f
	}
	defer a.Close()
	if a.StatusCode != http.StatusOK {
		return nil, s.rejected(a)
	}
	body, err := documentBody(a)
	if err != nil {
		return nil, &failure{host: a.host, err: err}
	}
	data, err := io.ReadAll(io.LimitReader(body, image.MaxManifest+1))
	if err != nil {
		return nil, &failure{host: a.host, err: err}
	}
	if len(data) > image.MaxManifest {
		return nil, tooLarge(a, d, io.MultiReader(bytes.NewReader(data), body))
	}
	// Another size than expected is for the proof to tell: the right bytes came.
	if err := d.Check(data); err != nil && !d.Digest.IsZero() && digest.Of(data) != d.Digest {
		return nil, &failure{class: lie, whole: true, host: a.host, err: err, hints: webPage(a)}
	}
	return data, nil
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
		return &failure{class: lie, whole: true, host: a.host,
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
		return &failure{class: lie, whole: true, host: a.host, err: fmt.Errorf("got more than %d bytes, want %s", maxHashed, d.Digest)}
	}
	return &failure{class: lie, whole: true, host: a.host, err: fmt.Errorf("got %d other bytes, want %s", n, d.Digest)}
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
func (s *remote) isBlob(ctx context.Context, h digest.Digest) bool {
	a, f := s.inRepository(ctx, &tries{}, http.MethodHead, "blobs/"+h.String(), http.Header{})
	if f != nil {
		return false
	}
	defer a.Close()
	return a.StatusCode < 400
}
