package main_test

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

// testImage builds an image for a platform.
func testImage(t *testing.T, seed uint64, architecture string) v1.Image {
	t.Helper()
	layers, err := launchtest.RandomLayers(seed, 1000, 500)
	require.NoError(t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{OCI: true, Layers: layers, Platform: v1.Platform{OS: "linux", Architecture: architecture}})
	require.NoError(t, err)
	return img
}

func TestDigest(t *testing.T) {
	t.Parallel()
	r, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	defer r.Close()
	here, there := testImage(t, 1, runtime.GOARCH), testImage(t, 3, "s390x")
	both, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: []v1.Image{here, there}, Attestations: true})
	require.NoError(t, err)
	foreign, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: []v1.Image{there}, Attestations: true})
	require.NoError(t, err)
	alone, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: []v1.Image{here}, Attestations: true})
	require.NoError(t, err)
	repo := r.Host() + "/nearone/mpc-node"
	single, err := r.Push("nearone/mpc-node", here, "main", "latest")
	require.NoError(t, err)
	for tag, index := range map[string]v1.ImageIndex{"both": both, "foreign": foreign, "alone": alone} {
		_, err := r.PushIndex("nearone/mpc-node", index, tag)
		require.NoError(t, err)
	}
	_, err = r.Push("nearone/mpc-node", there, "other-machine")
	require.NoError(t, err)

	for _, c := range []struct {
		ref      string
		warnings []string
	}{
		{repo + ":main", nil}, {repo, nil}, {repo + "@" + single.DigestStr(), nil}, {repo + ":main@" + single.DigestStr(), nil}, {repo + ":alone", nil},
		{repo + ":both", []string{"several images that can run"}}, {repo + ":foreign", []string{"no image for this machine"}},
		{repo + ":other-machine", []string{"no image for this machine"}},
	} {
		stdout, stderr, code := run(t, nil, "digest", c.ref)
		require.Equal(t, exit.OK, code, "%s: %s", c.ref, stderr)
		_, err := digest.Parse(strings.TrimSuffix(stdout, "\n"))
		assert.NoError(t, err, "the digest and nothing else: %q", stdout)
		assert.Equal(t, len(c.warnings), strings.Count(stderr, "level=WARN"), "%s: %s", c.ref, stderr)
		for _, w := range c.warnings {
			assert.Contains(t, stderr, w)
		}
	}

	stdout, _, code := run(t, nil, "digest", repo+":both", repo+":main")
	require.Equal(t, exit.OK, code)
	want, err := both.Digest()
	require.NoError(t, err)
	assert.Equal(t, want.String()+"\n"+single.DigestStr()+"\n", stdout, "one line each, in order")
	for _, q := range r.Requests() {
		assert.NotContains(t, []string{layerOf(t, here), layerOf(t, there)}, q.Path[strings.LastIndexByte(q.Path, '/')+1:], "a layer was asked for")
	}

	stdout, _, code = run(t, nil, "digest", "-o", "json", repo+":both", repo+":main", repo+":foreign")
	require.Equal(t, exit.OK, code)
	var got []struct {
		Reference    string
		Digest       digest.Digest
		MediaType    string         `json:"media_type"`
		EventDigest  string         `json:"event_digest"`
		ConfigDigest *digest.Digest `json:"config_digest"`
		Platform     *string
		SizeBytes    *int64 `json:"size_bytes"`
		Layers       *int
		Platforms    []struct {
			Platform       string
			ManifestDigest digest.Digest `json:"manifest_digest"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &got))
	require.Len(t, got, 3)
	assert.Equal(t, want.String(), got[0].Digest.String())
	config, err := here.ConfigName()
	require.NoError(t, err)
	assert.Equal(t, rtmr.DigestV1("mpc-image-digest", got[0].Digest[:]).String(), got[0].EventDigest, "of the index: that is what is measured")
	for _, d := range got[:2] {
		assert.Equal(t, config.String(), d.ConfigDigest.String())
		assert.Equal(t, "linux/"+runtime.GOARCH, *d.Platform)
		assert.Equal(t, 2, *d.Layers)
		assert.Positive(t, *d.SizeBytes)
	}
	require.Len(t, got[0].Platforms, 2, "without what describes images")
	assert.Equal(t, "linux/s390x", got[0].Platforms[1].Platform)
	assert.Len(t, got[1].Platforms, 1)
	assert.Nil(t, got[2].ConfigDigest)
	assert.Contains(t, stdout, `"config_digest":null`, "stable names")
}

func layerOf(t *testing.T, img v1.Image) string {
	t.Helper()
	layers, err := img.Layers()
	require.NoError(t, err)
	h, err := layers[0].Digest()
	require.NoError(t, err)
	return h.String()
}

func TestDigestFailures(t *testing.T) {
	t.Parallel()
	r, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	defer r.Close()
	good := r.Host() + "/nearone/mpc-node:main"
	_, err = r.Push("nearone/mpc-node", testImage(t, 1, runtime.GOARCH), "main")
	require.NoError(t, err)
	for _, c := range []struct {
		args []string
		code exit.Code
	}{
		{nil, exit.Usage}, {[]string{""}, exit.Usage}, {[]string{"Upper/Case"}, exit.Usage}, {[]string{good, "a b"}, exit.Usage},
		{[]string{"x@sha256:00"}, exit.Usage}, {[]string{zeros}, exit.Usage},
		{[]string{good, r.Host() + "/nearone/mpc-node:none"}, exit.Refused},
		{[]string{r.Host() + "/nearone/mpc-node@" + zeros, good}, exit.Refused},
	} {
		stdout, stderr, code := run(t, nil, append([]string{"digest"}, c.args...)...)
		assert.Equal(t, c.code, code, "%v: %s", c.args, stderr)
		assert.Empty(t, stdout, "%v: all or nothing", c.args)
		assert.Equal(t, 1, strings.Count(stderr, "error: "), "%v: %s", c.args, stderr)
	}
}
