package registry_test

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/launchtest/growth"
	"tee-launcher/pkg/registry"
)

// TestDockerConfigIsBounded, for go-containerregistry reads one of any size. The environment is the
// process's, so this test isn't parallel.
func TestDockerConfigIsBounded(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", dir)
	file := filepath.Join(dir, "config.json")
	repo, err := name.NewRepository("registry.test/a/b")
	require.NoError(t, err)
	find := func(config string) registry.Credential {
		write(t, file, config)
		return registry.FindCredential(t.Context(), new(registry.Client), repo)
	}
	config := `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`
	fits := config + strings.Repeat(" ", 1<<20-len(config))
	assert.Equal(t, "u", find(fits).Username)
	got := find(fits + " ")
	assert.Empty(t, got.Username)
	assert.Equal(t, "because "+file+" is larger than 1048576 bytes", got.Note)
}

// TestGrowth finds credentials in configs that hold the worst kinds of JSON.
func TestGrowth(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", dir)
	file := filepath.Join(dir, "config.json")
	repo, err := name.NewRepository("registry.test/a/b")
	require.NoError(t, err)
	growth.Check(t, 160<<20, growth.JSON(`{"auths":%s}`), func(document []byte) {
		require.NoError(t, os.WriteFile(file, document, 0o600))
		registry.FindCredential(t.Context(), new(registry.Client), repo)
	})
}

// TestManyWaysToLogIn: each way on offer is a request to whom it names, so a few are tried.
func TestManyWaysToLogIn(t *testing.T) {
	t.Parallel()
	f := newFront(t, false)
	f.hook = func(w http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path == "/token" {
			return refuse(w, http.StatusUnauthorized, "not you")
		}
		var offers []string
		for i := range 200 {
			token := fmt.Sprintf(`Bearer realm="%s/token",service="%d"`, f.URL, i)
			offers = append(offers, token+`, Basic realm="x"`)
		}
		return refuse(w, http.StatusUnauthorized, "", offers...)
	}
	_, _, err := pull(t.Context(), f.client(keychain{Username: user, Password: password}), f.ref)
	requireError(t, err, image.Refused)
	assert.LessOrEqual(t, len(f.requests()), 40, "of what 200 offers could cost in each of six rounds")
}

// TestPlainSizeIsBounded: whoever believes the claim makes room for it.
func TestPlainSizeIsBounded(t *testing.T) {
	t.Parallel()
	const size = 1000
	for claim, believed := range map[uint32]bool{
		0: false, size/2 - 1: false, size / 2: true, 20 * size: true, 20*size + 1: false, 2e9: false,
	} {
		r := newRegistry(t, launchtest.RegistryOptions{})
		blob := binary.LittleEndian.AppendUint32(make([]byte, size-4), claim)
		img, err := mutate.AppendLayers(empty.Image, static.NewLayer(blob, types.DockerLayer))
		require.NoError(t, err)
		img, err = mutate.ConfigFile(img, platformOf(t, img))
		require.NoError(t, err)
		ref := push(t, r, img)
		p := defaults(new(clock))
		v, err := resolve(t.Context(), p, ref)
		require.NoError(t, err)
		got, ok := p.Source(ref).PlainSize(t.Context(), v.Layers()[0])
		assert.Equal(t, believed, ok, claim)
		assert.EqualValues(t, claim, got)
	}
}

func platformOf(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config.OS, config.Architecture = "linux", "amd64"
	return config
}
