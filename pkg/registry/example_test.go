package registry_test

import (
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// What a digest names is resolved to a proved image, whose layers can be read: they are proved when
// their last byte has been read. The registry is one in this process.
func ExampleClient_Source() {
	server, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	content, err := launchtest.FileLayer(launchtest.File{Path: "hello", Data: []byte("world")})
	if err != nil {
		fmt.Println(err)
		return
	}
	img, err := launchtest.Image(launchtest.ImageOptions{
		Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, Layers: [][]byte{content},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	approved, err := server.Push("nearone/mpc-node", img, "main")
	if err != nil {
		fmt.Println(err)
		return
	}

	ctx := context.Background()
	client := registry.Client{
		Keychain: authn.NewMultiKeychain(), // nobody's credentials
		Platform: v1.Platform{OS: "linux", Architecture: "amd64"},
	}
	source := client.Source(approved)
	proved, err := source.Resolve(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("as approved:", proved.Digest().String() == approved.DigestStr())

	stream := proved.Open(ctx, source, []int{0})
	defer stream.Close()
	layer, err := stream.Next()
	if err != nil {
		fmt.Println(err)
		return
	}
	n, err := io.Copy(io.Discard, layer)
	fmt.Println("the whole layer:", n == proved.Layers()[0].Size, err)
	// Output:
	// as approved: true
	// the whole layer: true <nil>
}
