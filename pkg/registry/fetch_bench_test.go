package registry_test

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// BenchmarkFetch pulls one layer of 500 MB: over a link that carries 20 MB/s for each connection
// with a round trip of 30 ms, and over an open one. One connection would need 25 s for the first.
//
//	go test -run '^$' -bench Fetch -benchtime 3x ./pkg/registry
func BenchmarkFetch(b *testing.B) {
	img := bigImage(b, 500_000_000)
	for _, link := range []launchtest.RegistryOptions{
		{},
		{Rate: 20_000_000, RoundTrip: 30 * time.Millisecond},
	} {
		b.Run(linkName(link), func(b *testing.B) {
			r, err := launchtest.NewRegistry(link)
			require.NoError(b, err)
			defer r.Close()
			ref, err := r.Push("bench/image", img)
			require.NoError(b, err)
			b.SetBytes(500_000_000)
			for b.Loop() {
				drain(b, new(registry.Client), ref)
			}
		})
	}
}

func linkName(o launchtest.RegistryOptions) string {
	if o.Rate == 0 {
		return "open"
	}
	return fmt.Sprintf("%dMBs-%dms", o.Rate/1e6, o.RoundTrip.Milliseconds())
}

// bigImage is an image with one uncompressed layer.
func bigImage(tb testing.TB, size int) v1.Image {
	tb.Helper()
	layers, err := launchtest.RandomLayers(1, size)
	require.NoError(tb, err)
	img, err := launchtest.Image(launchtest.ImageOptions{Compression: launchtest.Uncompressed, Layers: layers})
	require.NoError(tb, err)
	return img
}

// drain pulls the first layer and throws it away.
func drain(tb testing.TB, p *registry.Client, ref name.Digest) *pulled {
	tb.Helper()
	v, err := resolve(tb.Context(), p, ref)
	require.NoError(tb, err)
	stream := v.Open(tb.Context(), []int{0})
	defer stream.Close()
	layer, err := stream.Next()
	require.NoError(tb, err)
	_, err = io.Copy(io.Discard, layer)
	require.NoError(tb, err)
	require.NoError(tb, layer.Close())
	return v
}
