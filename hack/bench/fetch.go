package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// The tools, as the tables call them.
const (
	launcherFetch = "launcher's fetcher"
	launcherPull  = "launcher pull"
	cranePull     = "crane pull"
	craneLoad     = "crane pull, docker load"
	skopeoCopy    = "skopeo copy"
	dockerPull    = "docker pull"
)

// drainCommand makes this program one that pulls all layers to nowhere.
const drainCommand = "drain"

func drain(ctx context.Context, reference string) error {
	ref, err := name.NewDigest(reference)
	if err != nil {
		return err
	}
	source := new(registry.Client).Source(ref)
	v, err := source.Resolve(ctx)
	if err != nil {
		return err
	}
	var all []int
	for i := range v.Layers() {
		all = append(all, i)
	}
	stream := v.Open(ctx, source, all)
	defer stream.Close()
	for range all {
		layer, err := stream.Next()
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, layer); err != nil {
			return err
		}
		if err := layer.Close(); err != nil {
			return err
		}
	}
	return stream.Close()
}

func (b *bench) fetch(ctx context.Context) error {
	size := 500_000_000 / int(b.scale)
	layers, err := launchtest.RandomLayers(1, size)
	if err != nil {
		return err
	}
	img, err := launchtest.Image(launchtest.ImageOptions{Config: v1.Config{Labels: map[string]string{label: "fetch"}}, Layers: layers})
	if err != nil {
		return err
	}
	rows, err := b.onLinks(ctx, []link{
		{"20 MB/s per connection, 30 ms", launchtest.RegistryOptions{Rate: 20_000_000, RoundTrip: 30 * time.Millisecond}},
		{"open", launchtest.RegistryOptions{}},
	}, b.fetchers(), []string{"one layer"}, img)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.stdout, "\nFetch: one layer of %d MB. Only docker pull unpacks it; only skopeo copy and docker pull write it to the disk.\n\n", size/1e6)
	b.table(rows, cranePull, dockerPull)
	return nil
}

func (b *bench) fetchers() []tool {
	tools := []tool{
		{name: launcherFetch, argv: func(ref name.Digest) []string { return []string{b.self, drainCommand, ref.String()} }},
		b.dockerPull(),
	}
	if b.crane != "" {
		tools = append(tools, tool{name: cranePull, argv: func(ref name.Digest) []string {
			return []string{b.crane, "pull", ref.String(), "/dev/null"}
		}})
	}
	if b.skopeo != "" {
		tools = append(tools, tool{name: skopeoCopy, argv: func(ref name.Digest) []string {
			return b.skopeoCopy(ref, "dir:"+b.out())
		}})
	}
	return tools
}

func (b *bench) dockerPull() tool {
	return tool{name: dockerPull, upgrades: true, engine: true, client: true, argv: func(ref name.Digest) []string {
		return []string{"docker", "pull", "-q", ref.String()}
	}}
}

func (b *bench) skopeoCopy(ref name.Digest, to ...string) []string {
	return append([]string{b.skopeo, "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "docker://" + ref.String()}, to...)
}

// link is a way to the registry.
type link struct {
	name string
	o    launchtest.RegistryOptions
}

// onLinks compares the tools on each link, one registry at a time. All images are pulled in their order.
func (b *bench) onLinks(ctx context.Context, links []link, tools []tool, whats []string, images ...v1.Image) ([]row, error) {
	var rows []row
	for _, l := range links {
		r, err := launchtest.NewRegistry(l.o)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		var refs []name.Digest
		for _, img := range images {
			ref, err := r.Push("bench/image", img)
			if err != nil {
				return nil, err
			}
			refs = append(refs, ref)
		}
		compared, err := b.compare(ctx, l.name, tools, whats, refs...)
		if err != nil {
			return nil, err
		}
		rows = append(rows, compared...)
		if err := r.Close(); err != nil {
			return nil, err
		}
	}
	return rows, nil
}
