package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
)

const aSource = `[[launcher_config.sources]]`

func TestSources(t *testing.T) {
	t.Parallel()
	text := with(`image = "x"`, aSource, `registry = "https://cache.example:5000"`, `prefix = "hub"`, `ns = true`,
		aSource, `layout = "/tapp/images/"`, aSource, `registry = "http://127.0.0.1:5000"`,
		aSource, `registry = "http://cache.internal"`, aSource, `registry = "https://docker.io"`)
	c, _, err := config.Parse(file, []byte(text), config.TEE, "cache.internal")
	require.NoError(t, err)
	var got []string
	for _, source := range c.Sources {
		got = append(got, source.String())
	}
	assert.Equal(t, []string{"https://cache.example:5000/hub/", "/tapp/images", "http://127.0.0.1:5000", "http://cache.internal",
		"https://index.docker.io"}, got)
	assert.True(t, c.Sources[0].NS)
	assert.False(t, c.Sources[0].Plain)
	assert.True(t, c.Sources[2].Plain)
}

func TestSourceMistakes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		lines []string
		want  []string
	}{
		"no list":         {[]string{`sources = "https://x.example"`}, []string{"3:1: sources must be an array of tables, each behind [[launcher_config.sources]], not a string"}},
		"a single table":  {[]string{`[launcher_config.sources]`, `layout = "/x"`}, []string{"3:18: sources must be an array of tables, each behind [[launcher_config.sources]], not a table"}},
		"no tables":       {[]string{`sources = ["https://x.example"]`}, []string{"3:12: sources holds tables with registry or layout, not a string"}},
		"nothing":         {[]string{aSource}, []string{"3:19: sources: each needs one of registry and layout"}},
		"both":            {[]string{aSource, `registry = "https://x.example"`, `layout = "/x"`}, []string{"3:19: sources: each needs one of registry and layout"}},
		"a misspelt":      {[]string{aSource, `layout = "/x"`, aSource, `registri = "https://x.example"`}, []string{"5:19: sources: each needs one of registry and layout", `6:1: unknown key "registri" in sources; the nearest known one is "registry"`}},
		"no scheme":       {[]string{aSource, `registry = "x.example"`}, []string{`4:1: registry: "x.example" is not https://host[:port]`}},
		"another scheme":  {[]string{aSource, `registry = "ftp://x.example"`}, []string{`4:1: registry: "ftp://x.example" is not https://host[:port]`}},
		"a path":          {[]string{aSource, `registry = "https://x.example/v2/hub"`}, []string{`4:1: registry: "https://x.example/v2/hub" has a path: write it as prefix, without /v2`}},
		"a user":          {[]string{aSource, `registry = "https://robot:` + mark + `@x.example"`}, []string{`4:1: registry: a source's address holds no user: logins are in [launcher_config.registry_auth."ghcr.io"]`}},
		"plain http":      {[]string{aSource, `registry = "http://x.example:5000"`}, []string{"4:1: registry: x.example:5000 may be spoken to over https alone; only --insecure-registry, which is measured, allows plain http"}},
		"a prefix":        {[]string{aSource, `registry = "https://x.example"`, `prefix = "/hub"`}, []string{`5:1: prefix: "/hub" is not the beginning of a repository's path, such as "hub/"`}},
		"ns of text":      {[]string{aSource, `registry = "https://x.example"`, `ns = "docker.io"`}, []string{"5:1: ns must be a boolean, not a string"}},
		"ns of a layout":  {[]string{aSource, `layout = "/x"`, `ns = true`}, []string{"5:1: sources: ns is for a registry"}},
		"a relative path": {[]string{aSource, `layout = "images"`}, []string{`4:1: layout: "images" is not an absolute path`}},
		"a device":        {[]string{aSource, `layout = "/x/../dev/sda"`}, []string{`4:1: layout: "/x/../dev/sda" is no place for images`}},
		"twice":           {[]string{aSource, `layout = "/x"`, aSource, `layout = "/x/"`}, []string{"5:19: sources has this one twice"}},
		"too many":        {[]string{strings.Repeat("[[launcher_config.sources]]\nlayout = '/x'\n", 17)}, []string{"3:19: sources has more than 16 entries"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, warnings, err := config.Parse(file, []byte(with(append([]string{`image = "x"`}, test.lines...)...)), config.TEE, "y.example")
			require.Error(t, err)
			var want []string
			for _, line := range test.want {
				want = append(want, file+":"+line)
			}
			assert.Equal(t, strings.Join(want, "\n"), err.Error())
			requireNoMark(t, shown(t, c, warnings, err))
		})
	}
}
