//go:build e2e

package main_test

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// TestE2EOddImages pulls what engines have been seen to stumble over, twice each: a second run must
// not take for the image what the first one left.
func TestE2EOddImages(t *testing.T) {
	binary, shared := built(t), t.TempDir()
	registry, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { registry.Close() })
	made := func(o launchtest.ImageOptions, seed uint64, sizes ...int) v1.Image {
		o.OCI = true
		o.Layers, err = launchtest.RandomLayers(seed, sizes...)
		require.NoError(t, err)
		o.Config.Cmd = []string{"/x"}
		img, err := launchtest.Image(o)
		require.NoError(t, err)
		return img
	}
	push := func(img v1.Image) name.Digest {
		ref, err := registry.Push("odd/node", img)
		require.NoError(t, err)
		return ref
	}
	pull := func(ref name.Digest) (exit.Code, string) {
		cmd := exec.Command(binary, "pull", ref.String())
		cmd.Env = []string{
			"DOCKER_HOST=" + os.Getenv("LAUNCHER_E2E_DOCKER_HOST"), "LAUNCHER_SHARED_DIR=" + shared,
			"HOME=/nonexistent",
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run() // the exit code says it
		return exit.Code(cmd.ProcessState.ExitCode()), stderr.String()
	}
	engine := &machine{t: t, host: os.Getenv("LAUNCHER_E2E_DOCKER_HOST")}
	left := func() (names []string) {
		var images []struct{ RepoTags, RepoDigests []string }
		engine.call("GET", "/images/json", nil, &images)
		for _, image := range images {
			names = append(append(names, image.RepoTags...), image.RepoDigests...)
		}
		return names
	}

	index, err := launchtest.Index(launchtest.IndexOptions{
		OCI: true, Images: []v1.Image{made(launchtest.ImageOptions{}, 1, 1000)}, Attestations: true,
	})
	require.NoError(t, err)
	attested, err := registry.PushIndex("odd/node", index)
	require.NoError(t, err)
	variant := push(made(launchtest.ImageOptions{
		Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH, Variant: "v2"},
		Config:   v1.Config{Volumes: map[string]struct{}{"/data": {}}},
	}, 2, 1000))
	large := made(launchtest.ImageOptions{Compression: launchtest.Uncompressed}, 3, 6<<20)
	flipped := push(large)
	layers, err := large.Layers()
	require.NoError(t, err)
	digest, err := layers[0].Digest()
	require.NoError(t, err)
	registry.Fail(launchtest.RegistryFault{
		Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: digest, After: 1000,
	})
	for what, ref := range map[string]name.Digest{
		"an index with attestations": attested, "a variant": variant, "a flipped byte": flipped,
	} {
		for range 2 {
			code, stderr := pull(ref)
			assert.Equal(t, exit.OK, code, "%s: %s", what, stderr)
		}
	}

	liar := made(launchtest.ImageOptions{}, 4, 1000)
	config, err := liar.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0].Hex = strings.Repeat("ab", 32)
	liar, err = mutate.ConfigFile(liar, config)
	require.NoError(t, err)
	ref := push(liar)
	before := left()
	for range 2 {
		code, stderr := pull(ref)
		assert.Equal(t, exit.Mismatch, code, stderr)
		assert.ElementsMatch(t, before, left(), "it left a name")
	}
	var containers []struct{ Names []string }
	engine.call("GET", "/containers/json?all=1", nil, &containers)
	assert.Empty(t, containers, "a trial is left")
}
