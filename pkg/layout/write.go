package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
)

// Write writes an image into the layout in a directory, which is made where there is none. What is in
// it stays. Layers are proved as they are written, and index.json, by which others find the image,
// comes last. The directory is trusted: it is the operator's own.
func Write(ctx context.Context, dir string, v *image.Verified, from image.Source) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	index, err := readIndex(dir)
	if err != nil {
		return err
	}
	var layers []int
	seen := map[digest.Digest]bool{}
	for i, l := range v.Layers() {
		if !seen[l.Digest] && !stands(blobs, l.Digest, l.Size) {
			layers = append(layers, i)
		}
		seen[l.Digest] = true
	}
	for {
		n, err := writeLayers(ctx, blobs, v, from, layers)
		var e *image.Error
		if errors.As(err, &e) && e.Restart {
			layers = layers[n:]
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	documents := append(v.Indexes(), v.Manifest(), v.Config())
	for _, data := range documents {
		if err := write(filepath.Join(blobs, digest.Of(data).Hex()), data); err != nil {
			return err
		}
	}
	top := v1.Descriptor{MediaType: v.MediaType(), Digest: image.Hash(v.Digest()), Size: int64(len(v.Manifest()))}
	if raw := v.Index(); raw != nil {
		top.MediaType, top.Size = v.IndexMediaType(), int64(len(raw))
	}
	for _, d := range index.Manifests {
		if d.Digest == top.Digest {
			return nil
		}
	}
	index.Manifests = append(index.Manifests, top)
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return write(filepath.Join(dir, "index.json"), data)
}

// readIndex returns what the layout has already.
func readIndex(dir string) (*v1.IndexManifest, error) {
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return index, nil
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(data, index); err != nil || len(data) > image.MaxManifest {
		return nil, fmt.Errorf("%s is no index of a layout", filepath.Join(dir, "index.json"))
	}
	return index, nil
}

// stands reports whether a blob is there already, and right.
func stands(blobs string, h digest.Digest, size int64) bool {
	f, err := os.Open(filepath.Join(blobs, h.Hex()))
	if err != nil {
		return false
	}
	defer f.Close()
	got, _, err := v1.SHA256(io.LimitReader(f, size+1))
	return err == nil && got == image.Hash(h)
}

// writeLayers returns how many layers were written.
func writeLayers(ctx context.Context, blobs string, v *image.Verified, from image.Source, layers []int) (n int, err error) {
	stream := v.Open(ctx, from, layers)
	defer func() { err = errors.Join(err, stream.Close()) }()
	for ; n < len(layers); n++ {
		layer, err := stream.Next()
		if err != nil {
			return n, err
		}
		if err := writeFrom(filepath.Join(blobs, v.Layers()[layers[n]].Digest.Hex()), layer); err != nil {
			return n, err
		}
	}
	return n, nil
}

// write writes a whole file or none.
func write(path string, data []byte) error {
	return replace(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func writeFrom(path string, layer io.ReadCloser) error {
	return replace(path, func(w io.Writer) error {
		_, err := io.Copy(w, layer)
		return errors.Join(err, layer.Close())
	})
}

func replace(path string, fill func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".layout-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
