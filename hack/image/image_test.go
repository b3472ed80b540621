package main_test

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/hack/image"
)

// TestImageIsTheSameEverywhere: of the same four files it makes the same image, on whatever machine this runs. Another digest here is
// another digest of every image that people rebuild.
func TestImageIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	commit := strings.Repeat("ab", 20)
	img, files, err := main.Assemble("v1.2.3", commit, strings.Repeat("launcher ", 1e5), strings.Repeat("compose ", 1e5), "roots", "notices")
	require.NoError(t, err)
	digest, err := img.Digest()
	require.NoError(t, err)
	assert.Equal(t, "sha256:9668a3b2de0e7c3df40a93533d2af837466080822b95de53f9d93c0760934568", digest.String())

	config, err := img.ConfigFile()
	require.NoError(t, err)
	assert.Equal(t, []string{"/usr/local/bin/launcher"}, config.Config.Entrypoint)
	assert.Equal(t, []string{"run"}, config.Config.Cmd)
	assert.Equal(t, "v1.2.3", config.Config.Labels["org.opencontainers.image.version"])
	assert.Equal(t, commit, config.Config.Labels["org.opencontainers.image.revision"])
	assert.Equal(t, int64(0), config.Created.Unix())
	assert.Equal(t, []string{"CMD", "/usr/local/bin/launcher", "status", "--self"}, config.Config.Healthcheck.Test, "there is no shell")
	assert.Empty(t, config.Config.User, "root, or it can't speak to the engine")

	modes := map[string]int64{}
	layers, err := img.Layers()
	require.NoError(t, err)
	for _, l := range layers {
		content, err := l.Uncompressed()
		require.NoError(t, err)
		for r := tar.NewReader(content); ; {
			header, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			assert.Zero(t, header.Uid+header.Gid+int(header.ModTime.Unix()), header.Name)
			if parent := path.Dir(path.Clean(header.Name)); parent != "." {
				assert.Contains(t, modes, parent+"/", "%s before its directory", header.Name)
			}
			modes[header.Name] = header.Mode
		}
	}
	assert.Equal(t, map[string]int64{
		"etc/": 0o755, "etc/ssl/": 0o755, "etc/ssl/certs/": 0o755, "etc/ssl/certs/ca-certificates.crt": 0o644,
		"mnt/": 0o755, "mnt/shared/": 0o755, "tapp/": 0o755, "tmp/": 0o1777, "var/": 0o755, "var/run/": 0o755,
		"usr/": 0o755, "usr/local/": 0o755, "usr/local/bin/": 0o755, "usr/local/bin/docker-compose": 0o755, "usr/local/bin/launcher": 0o755,
		"usr/share/": 0o755, "usr/share/doc/": 0o755, "usr/share/doc/launcher/": 0o755, "usr/share/doc/launcher/NOTICES": 0o644,
	}, modes, "all that is in it")

	t.Run("its files", func(t *testing.T) {
		blobs := 0
		for name, data := range files {
			if hash, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
				blobs++
				assert.Equal(t, hash, fmt.Sprintf("%x", sha256.Sum256(data)))
			}
		}
		assert.Equal(t, len(layers)+2, blobs)
		var index v1.IndexManifest
		require.NoError(t, json.Unmarshal(files["index.json"], &index))
		require.Len(t, index.Manifests, 1)
		assert.Equal(t, digest, index.Manifests[0].Digest)
		var archive []struct {
			Config           string
			RepoTags, Layers []string
		}
		require.NoError(t, json.Unmarshal(files["manifest.json"], &archive))
		require.Len(t, archive, 1)
		assert.Equal(t, []string{"tee-launcher:v1.2.3"}, archive[0].RepoTags)
		for _, name := range append(archive[0].Layers, archive[0].Config) {
			assert.Contains(t, files, name)
		}
	})
}

func TestNothingStrangeGetsIntoALinkersFlag(t *testing.T) {
	t.Parallel()
	for _, o := range [][2]string{{"", ""}, {"v1 -X main.commit=x", ""}, {"-v1", ""}, {"v1'", ""}, {"v1\n", ""}, {"v1", "HEAD"}, {"v1", strings.Repeat("AB", 20)}} {
		_, _, err := main.Assemble(o[0], o[1], "l", "c", "r", "n")
		assert.Error(t, err, "version %q, commit %q", o[0], o[1])
	}
}
