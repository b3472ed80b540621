package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"tee-launcher/pkg/config"
)

func TestParseImage(t *testing.T) {
	t.Parallel()
	path255 := strings.Repeat("a", 255)
	for s, want := range map[string]struct{ registry, path, tag, text string }{
		// What the original accepts.
		"nearone/mpc-node":                                  {"index.docker.io", "nearone/mpc-node", "", ""},
		"nearone/mpc-node:3.8.1":                            {"index.docker.io", "nearone/mpc-node", "3.8.1", ""},
		"nearone/mpc-node:testnet-release":                  {"index.docker.io", "nearone/mpc-node", "testnet-release", ""},
		"ghcr.io/nearone/mpc-node":                          {"ghcr.io", "nearone/mpc-node", "", ""},
		"public.ecr.aws/myalias/mpc-node":                   {"public.ecr.aws", "myalias/mpc-node", "", ""},
		"us-docker.pkg.dev/my-project/my-repo/mpc-node":     {"us-docker.pkg.dev", "my-project/my-repo/mpc-node", "", ""},
		"myregistry.azurecr.io/mpc-node":                    {"myregistry.azurecr.io", "mpc-node", "", ""},
		"registry.example.com:5000/myproject/mpc-node":      {"registry.example.com:5000", "myproject/mpc-node", "", ""},
		"registry.example.com:5000/myproject/mpc-node:v1.0": {"registry.example.com:5000", "myproject/mpc-node", "v1.0", ""},
		"ubuntu":                            {"index.docker.io", "library/ubuntu", "", ""},
		"library/alpine":                    {"index.docker.io", "library/alpine", "", "alpine"},
		"ghcr.io/org/team/subproject/image": {"ghcr.io", "org/team/subproject/image", "", ""},
		"my_org/my_image":                   {"index.docker.io", "my_org/my_image", "", ""},
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com/x/y:z": {"123456789012.dkr.ecr.eu-west-1.amazonaws.com", "x/y", "z", ""},
		// The names of Docker Hub.
		"docker.io/nearone/mpc-node":                 {"index.docker.io", "nearone/mpc-node", "", "nearone/mpc-node"},
		"index.docker.io/nearone/mpc-node:1":         {"index.docker.io", "nearone/mpc-node", "1", "nearone/mpc-node:1"},
		"registry.hub.docker.com/nearone/mpc-node":   {"index.docker.io", "nearone/mpc-node", "", "nearone/mpc-node"},
		"Docker.IO/nearone/mpc-node":                 {"index.docker.io", "nearone/mpc-node", "", "nearone/mpc-node"},
		"docker.io/ubuntu":                           {"index.docker.io", "library/ubuntu", "", "ubuntu"},
		"docker.io/library/ubuntu:24.04":             {"index.docker.io", "library/ubuntu", "24.04", "ubuntu:24.04"},
		"docker.io/library/a/b":                      {"index.docker.io", "library/a/b", "", "library/a/b"},
		"docker.io/ghcr.io/x":                        {"index.docker.io", "ghcr.io/x", "", ""},
		"docker.io/localhost/x":                      {"index.docker.io", "localhost/x", "", ""},
		"registry.hub.docker.com:443/nearone/mpc":    {"registry.hub.docker.com:443", "nearone/mpc", "", ""},
		"library/" + strings.Repeat("a", 64):         {"index.docker.io", "library/" + strings.Repeat("a", 64), "", ""},
		"library/" + strings.Repeat("a", 64) + ":1":  {"index.docker.io", "library/" + strings.Repeat("a", 64), "1", ""},
		"ghcr.io/" + strings.Repeat("a", 64):         {"ghcr.io", strings.Repeat("a", 64), "", ""},
		"docker.io/docker.io/library/x":              {"index.docker.io", "docker.io/library/x", "", ""},
		"localhost/x":                                {"localhost", "x", "", ""},
		"localhost:5000/x":                           {"localhost:5000", "x", "", ""},
		"127.0.0.1:5000/x:y":                         {"127.0.0.1:5000", "x", "y", ""},
		"[::1]:5000/x":                               {"[::1]:5000", "x", "", ""},
		"[2001:db8::1]/x/y:z":                        {"[2001:db8::1]", "x/y", "z", ""},
		"GHCR.IO/x":                                  {"GHCR.IO", "x", "", ""},
		"Harbor/x":                                   {"Harbor", "x", "", ""},
		"host:1/x":                                   {"host:1", "x", "", ""},
		"host:65535/x":                               {"host:65535", "x", "", ""},
		"a":                                          {"index.docker.io", "library/a", "", ""},
		"a/b/c/d/e/f/g":                              {"index.docker.io", "a/b/c/d/e/f/g", "", ""},
		"a.b":                                        {"index.docker.io", "library/a.b", "", ""},
		"a_b/c__d/e-f/g--h/i---j/k.l":                {"index.docker.io", "a_b/c__d/e-f/g--h/i---j/k.l", "", ""},
		"a:_":                                        {"index.docker.io", "library/a", "_", ""},
		"a:A.b-C_d":                                  {"index.docker.io", "library/a", "A.b-C_d", ""},
		"a:" + strings.Repeat("t", 128):              {"index.docker.io", "library/a", strings.Repeat("t", 128), ""},
		"ghcr.io/" + path255:                         {"ghcr.io", path255, "", ""},
		strings.Repeat("a", 63) + ":1":               {"index.docker.io", "library/" + strings.Repeat("a", 63), "1", ""},
		"0123456789abcdef/" + strings.Repeat("a", 9): {"index.docker.io", "0123456789abcdef/aaaaaaaaa", "", ""},
	} {
		t.Run(s, func(t *testing.T) {
			t.Parallel()
			image, err := config.ParseImage(s)
			require.NoError(t, err)
			assert.Equal(t, want.registry, image.Repository.RegistryStr())
			assert.Equal(t, want.path, image.Repository.RepositoryStr())
			assert.Equal(t, want.tag, image.Tag)
			text := want.text
			if text == "" {
				text = s
			}
			assert.Equal(t, text, image.String())
			assert.Equal(t, want.registry+"/"+want.path+"@"+hashA.String(), image.At(hashA).Name())
			assert.Equal(t, image.At(hashA).Name(), image.At(hashA).String())
		})
	}
}

func refusedImages() []string {
	return []string{
		// What the original refuses.
		"", "nearone/mpc-node:", "nearone/", "nearone/mpc-node.", "nearone//mpc-node", "nearone/mpc-node::tag", "nearone/mpc-node:.tag",
		".hidden/image", "/nearone/mpc-node", ":latest", "nearone/mpc node", "nearone/mpc-node\nevil: true", "nearone/mpc-node\"; evil",
		"nearone/mpc-node; rm -rf /", "nearone/`whoami`", "nearone/${USER}", "nearone\\mpc-node",
		// A digest, or a user.
		"nearone/mpc-node@sha256:" + strings.Repeat("a", 64), "nearone/mpc-node:x@sha256:" + strings.Repeat("a", 64), "user@ghcr.io/x",
		"user:password@ghcr.io/x", "@", "x@", strings.Repeat("a", 64), "sha256:" + strings.Repeat("a", 129),
		// What Docker's grammar hasn't.
		"Ubuntu", "ghcr.io/Nearone/mpc-node", "nearone/MPC", "a..b", "a._b", "a___b", "a-", "-a", "_a", "a_", "a/-b", "a/b-", "a/./b", "a/../b",
		"https://ghcr.io/x", "docker://x", "ghcr.io/", "ghcr.io:/x", "ghcr.io:x/y", "ghcr.io:0/x",
		"ghcr.io:65536/x", "ghcr.io:-1/x", "ghcr.io:+1/x", "ghcr.io:99999999999999999999/x", "ghcr..io/x", ".ghcr.io/x", "ghcr.io./x",
		"-ghcr.io/x", "ghcr-.io/x", "gh_cr.io/x", "[::1/x", "::1/x", "[g::1]/x", "[::1]x/y", "[::1%eth0]/x", "[]/x", "1.2.3.4:5:6/x",
		"a:b:c", "a:b/c:d:e", "a:-t", "a:.t", "a:" + strings.Repeat("t", 129), "a: t", "a:t ", " a", "a ", "a\n", "\ta", "a\x00", "a\r",
		"a:t\n", "ghcr.io\n/x", "a'b", `a"b`, "a$b", "a$(b)", "a|b", "a&b", "a>b", "a<b", "a*b", "a?b", "a!b", "a#b", "a%20b", "a{b}", "a[b]",
		"a(b)", "a+b", "a=b", "a,b", "a~b", "a^b", "caf\u00e9/x", "\u0430pple/x", "a\u200bb", "a\xffb", "a\u2028b", "\ufeffa", "*a", "&a", "- a", "!!str a",
		"ghcr.io/" + strings.Repeat("a", 256), strings.Repeat("a/", 200) + "a", "ghcr.io?x/y", "ghcr.io#x/y",
	}
}

func TestParseImageRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range refusedImages() {
		t.Run(s, func(t *testing.T) {
			t.Parallel()
			image, err := config.ParseImage(s)
			require.Error(t, err, "%q was read as %s", s, image)
			assert.Zero(t, image)
			assert.NotContains(t, err.Error(), "password")
			assert.NotContains(t, err.Error(), "\n", "nothing gets out of its line")
			assert.Less(t, len(err.Error()), 1000)
		})
	}
}

// checkImage is what holds for every accepted reference.
func checkImage(t *testing.T, s string) {
	image, err := config.ParseImage(s)
	if err != nil {
		require.Zero(t, image)
		return
	}
	again, err := config.ParseImage(image.String())
	require.NoError(t, err)
	require.Equal(t, image, again, "what is printed means the same")
	require.False(t, strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:[]", r)
	}), "%q", s)

	// ggcr reads the same, except a host that is one only by its capitals, which it doesn't take for one and refuses.
	digest := image.At(hashA)
	host := image.Repository.RegistryStr()
	if strings.ContainsAny(host, ".:") || host == "localhost" {
		reread, err := name.NewDigest(digest.Name())
		require.NoError(t, err)
		require.Equal(t, digest.Repository, reread.Repository)
	}

	// Nothing accepted can change the structure of a document that it is marshalled into, or be interpolated there.
	for _, text := range []string{s, image.String(), digest.Name()} {
		document := map[string]any{"services": map[string]any{"mpc-node": map[string]any{
			"image": text, "labels": []any{text, "reference=" + text}, "pull_policy": "never",
		}}}
		marshalled, err := yaml.Marshal(document)
		require.NoError(t, err)
		var back map[string]any
		require.NoError(t, yaml.Unmarshal(marshalled, &back))
		require.Equal(t, document, back)
		require.NotContains(t, string(marshalled), "$")
	}
}

func FuzzParseImage(f *testing.F) {
	f.Fuzz(checkImage)
}

func TestRefusedAndAcceptedKeepTheInvariant(t *testing.T) {
	t.Parallel()
	// All short texts over the letters that have a meaning.
	letters := []string{"", "a", "B", "0", ".", "-", "_", "/", ":", "@", "[", "]", "localhost"}
	texts := slices.Clone(letters)
	for range 4 {
		var longer []string
		for _, text := range texts {
			for _, letter := range letters[1:] {
				longer = append(longer, text+letter)
			}
		}
		texts = longer
		if len(texts) > 1500 {
			break
		}
	}
	accepted := 0
	for _, text := range texts {
		checkImage(t, text)
		if _, err := config.ParseImage(text); err == nil {
			accepted++
		}
	}
	assert.Greater(t, accepted, 50, "the table says something")
}
