package registry

import (
	"bytes"
	"context"
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
	data, err := s.fetchDocument(ctx, d.Part, path, accept, d.Check)
	var e *image.Error
	missing := errors.As(err, &e) && e.Status == http.StatusNotFound && d.Part == image.PartManifest
	if missing && s.isBlob(ctx, d.Digest) {
		e.Help = []string{
			"this digest is that of a config (an image ID), as approved lists held before; " +
				"what has to be approved is the digest of the manifest",
			fmt.Sprintf("launcher digest %s:<tag> prints it", s.ref.Context().Name()),
		}
	}
	return data, err
}

// fetchDocument fetches a document, again where proved says that it isn't the right one.
func (s *Source) fetchDocument(ctx context.Context, part, path, accept string,
	proved func([]byte) error) ([]byte, error) {
	var document []byte
	err := s.retry(ctx, part, func(t *tries) *failure {
		a, f := s.ask(ctx, t, http.MethodGet, path, http.Header{"Accept": {accept}})
		if f != nil {
			return f
		}
		defer a.Close()
		if a.StatusCode != http.StatusOK {
			return s.rejected(a)
		}
		data, err := readDocument(a)
		if err != nil {
			return &failure{host: a.host, err: err}
		}
		if len(data) > image.MaxManifest {
			return &failure{class: lie, host: a.host, err: fmt.Errorf("more than %d bytes", image.MaxManifest)}
		}
		if err := proved(data); err != nil {
			return &failure{class: lie, host: a.host, err: err}
		}
		document = data
		return nil
	})
	if err != nil {
		return nil, err
	}
	return document, nil
}

// readDocument reads a manifest or config, compressed or not: neither begins as gzip does.
func readDocument(a *answer) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(a, image.MaxManifest+1))
	if err != nil || !encoded(a) || !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return data, err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, image.MaxManifest+1))
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
