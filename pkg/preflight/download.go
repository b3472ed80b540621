package preflight

import (
	"context"
	"errors"
	"fmt"
	"io"

	"tee-launcher/pkg/image"
)

// checkDownload fetches and hashes every layer, and keeps nothing.
func checkDownload(ctx context.Context, f *facts) outcome {
	if !f.options.Deep {
		return outcome{skipped: "only with --deep"}
	}
	indices := make([]int, len(f.image.Layers()))
	for i := range indices {
		indices[i] = i
	}
	if err := drain(ctx, f.image, f.source, indices); err != nil {
		code := LayerMissing
		var e *image.Error
		switch {
		case errors.As(err, &e) && e.Kind == image.Unavailable:
			code = RegistryDown
		case errors.As(err, &e) && e.Kind == image.Mismatch:
			code = LayerWrong
		}
		return fail(code, err)
	}
	return ok(fmt.Sprintf("%d layers, %s, all as their digests say", len(indices), Size(f.image.Size())))
}

// drain reads the layers to their ends, which proves them, again where a registry's damage may be gone.
func drain(ctx context.Context, v *image.Verified, from image.Source, layers []int) error {
	for {
		n, err := drainOnce(ctx, v, from, layers)
		var e *image.Error
		if !errors.As(err, &e) || !e.Restart {
			return err
		}
		layers = layers[n:]
	}
}

// drainOnce returns how many layers were proved.
func drainOnce(ctx context.Context, v *image.Verified, from image.Source, layers []int) (n int, err error) {
	stream := v.Open(ctx, from, layers)
	defer func() { err = errors.Join(err, stream.Close()) }()
	for {
		layer, err := stream.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if _, err := io.Copy(io.Discard, layer); err != nil {
			return n, err
		}
		if err := layer.Close(); err != nil {
			return n, err
		}
		n++
	}
}
