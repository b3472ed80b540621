package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
)

func TestCredentials(t *testing.T) {
	t.Parallel()
	c, _ := parse(t, with(`image = "x"`,
		`[launcher_config.registry_auth."ghcr.io"]`, `username = "robot"`, `password = "p:w"`,
		`[launcher_config.registry_auth."docker.io"]`, `identity_token = "i"`,
		`[launcher_config.registry_auth."[::1]:5000"]`, `registry_token = "r"`,
		`[launcher_config.registry_auth."Cache.Example:8443"]`, `registry_token = "c"`))
	for host, want := range map[string]config.Credential{
		"ghcr.io":              {Username: "robot", Password: "p:w"},
		"GHCR.io":              {Username: "robot", Password: "p:w"},
		"ghcr.io:443":          {Username: "robot", Password: "p:w"},
		name.DefaultRegistry:   {IdentityToken: "i"},
		"registry-1.docker.io": {IdentityToken: "i"},
		"[::1]:5000":           {RegistryToken: "r"},
		"cache.example:8443":   {RegistryToken: "c"},
	} {
		got, ok := c.Credential(host)
		assert.True(t, ok, host)
		assert.True(t, want == got, host)
	}
	for _, host := range []string{"ghcr.io:5000", "x.ghcr.io", "io", "ghcr.io.", "[::1]", "cache.example", "cache.example:443", ""} {
		got, ok := c.Credential(host)
		assert.False(t, ok, host)
		assert.True(t, got == config.Credential{})
	}
	none, ok := (*config.Config)(nil).Credential("ghcr.io")
	assert.False(t, ok)
	assert.True(t, none == config.Credential{})
}

// TestCredentialMistakes plants the mark beside each mistake.
func TestCredentialMistakes(t *testing.T) {
	t.Parallel()
	const ghcr = `[launcher_config.registry_auth."ghcr.io"]`
	for name, test := range map[string]struct {
		lines []string
		want  []string
	}{
		"no table":           {[]string{`registry_auth = "` + mark + `"`}, []string{"3:1: registry_auth must be a table, not a string"}},
		"an entry, no table": {[]string{`registry_auth."ghcr.io" = "` + mark + `"`}, []string{`3:15: registry_auth: "ghcr.io" must be a table, not a string`}},
		"nothing": {[]string{ghcr},
			[]string{`3:32: registry_auth."ghcr.io" needs one of username with password, identity_token and registry_token`}},
		"two": {[]string{ghcr, `identity_token = "` + mark + `"`, `registry_token = "` + mark + `"`},
			[]string{`3:32: registry_auth."ghcr.io" needs one of username with password, identity_token and registry_token`}},
		"half":         {[]string{ghcr, `password = "` + mark + `"`}, []string{`3:32: registry_auth."ghcr.io": username and password need each other`}},
		"empty":        {[]string{ghcr, `username = "` + mark + `"`, `password = ""`}, []string{`5:1: registry_auth."ghcr.io": password is empty`}},
		"a number":     {[]string{ghcr, `registry_token = ` + mark}, []string{`4:1: registry_token must be a string, not an integer`}},
		"a misspelt":   {[]string{ghcr, `user_name = "` + mark + `"`, `registry_token = "x"`}, []string{`4:1: registry_auth."ghcr.io": unknown key; the nearest known one is "username"`}},
		"a secret as":  {[]string{ghcr, `"x` + mark + `" = ""`, `registry_token = "x"`}, []string{`4:1: registry_auth."ghcr.io": unknown key; the keys are username, password, identity_token, registry_token`}},
		"a line break": {[]string{ghcr, `registry_token = "` + mark + `\n"`}, []string{`4:1: registry_auth."ghcr.io": registry_token holds a character that none can hold`}},
		"a colon":      {[]string{ghcr, `username = "` + mark + `:x"`, `password = "x"`}, []string{`4:1: registry_auth."ghcr.io": username holds a character that none can hold`}},
		"in pieces": {[]string{`[launcher_config.registry_auth.ghcr.io]`, `registry_token = "` + mark + `"`},
			[]string{`3:32: registry_auth: a host is written in quotes, such as [launcher_config.registry_auth."ghcr.io"]`}},
		"a user in the host": {[]string{`[launcher_config.registry_auth."x:` + mark + `@ghcr.io"]`, `registry_token = "x"`},
			[]string{`3:32: registry_auth: this isn't a registry's host, with a port if it has one, such as [launcher_config.registry_auth."ghcr.io"]`}},
		"a URL": {[]string{`[launcher_config.registry_auth."https://` + mark + `.io"]`, `registry_token = "x"`},
			[]string{`3:32: registry_auth: this isn't a registry's host, with a port if it has one, such as [launcher_config.registry_auth."ghcr.io"]`}},
		"a repository": {[]string{`[launcher_config.registry_auth."ghcr.io/` + mark + `"]`, `registry_token = "x"`},
			[]string{`3:32: registry_auth: this isn't a registry's host, with a port if it has one, such as [launcher_config.registry_auth."ghcr.io"]`}},
		"twice": {[]string{ghcr, `registry_token = "x"`, `[launcher_config.registry_auth."ghcr.io:443"]`, `registry_token = "x"`},
			[]string{`5:32: registry_auth."ghcr.io:443" is the second one for the same host and port`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := with(append([]string{`image = "x"`}, test.lines...)...)
			c, warnings, err := config.Parse(file, []byte(text), config.TEE)
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
