package image_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
)

// shelf is a source of one layer, which may not be what it should be.
type shelf string

func (s shelf) Open(context.Context, *image.Verified, []int) image.Blobs { return s }
func (s shelf) Next() (io.Reader, error)                                 { return strings.NewReader(string(s)), nil }
func (s shelf) Arrived() int64                                           { return int64(len(s)) }
func (s shelf) Damaged() (host string, again bool)                       { return "the shelf", false }
func (s shelf) Close() error                                             { return nil }

// Whoever has a digest can prove an image from anywhere: here from memory, with a source that
// swaps a layer.
func ExampleProve() {
	layer := []byte("a layer")
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux",`+
		`"rootfs":{"type":"layers","diff_ids":["%s"]}}`, digest.Of(layer))
	const oci = "application/vnd.oci.image."
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"%smanifest.v1+json",`+
		`"config":{"mediaType":"%sconfig.v1+json","digest":"%s","size":%d},`+
		`"layers":[{"mediaType":"%slayer.v1.tar","digest":"%s","size":%d}]}`,
		oci, oci, digest.Of([]byte(config)), len(config), oci, digest.Of(layer), len(layer))
	blobs := map[digest.Digest][]byte{
		digest.Of([]byte(manifest)): []byte(manifest),
		digest.Of([]byte(config)):   []byte(config),
	}

	approved, err := name.NewDigest("registry.example/node@" + digest.Of([]byte(manifest)).String())
	if err != nil {
		fmt.Println(err)
		return
	}
	proved, err := image.Prove(approved, v1.Platform{OS: "linux", Architecture: "amd64"},
		func(d image.Document) ([]byte, error) { return blobs[d.Digest], nil })
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("proved", len(proved.Layers()), "layer,", proved.Size(), "bytes")

	for _, content := range []string{"a layer", "A LAYER"} {
		stream := proved.Open(context.Background(), shelf(content), []int{0})
		layer, err := stream.Next()
		if err == nil {
			_, err = io.Copy(io.Discard, layer)
		}
		var wrong *image.Error
		fmt.Printf("%q is a mismatch: %t\n", content,
			errors.As(err, &wrong) && wrong.Kind == image.Mismatch)
		_ = stream.Close()
	}
	// Output:
	// proved 1 layer, 7 bytes
	// "a layer" is a mismatch: false
	// "A LAYER" is a mismatch: true
}
