package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
)

// FuzzParse: a text is either a Config that keeps every promise of this package, or Problems that give nothing away.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, p := range []config.Platform{config.TEE, config.NONTEE} {
			checkParse(t, data, p)
		}
	})
}

func checkParse(t *testing.T, data []byte, p config.Platform) {
	c, warnings, err := config.Parse(file, data, p)
	lines := strings.Count(string(data), "\n") + 1
	for _, w := range warnings {
		require.True(t, w.Line >= 1 && w.Line <= lines && w.Column >= 1 && w.Message != "", "%v", w)
	}
	var document map[string]any
	decodeErr := toml.Unmarshal([]byte(strings.TrimPrefix(string(data), "\ufeff")), &document)
	node, isTable := document["mpc_node_config"].(map[string]any)
	if err != nil {
		require.Nil(t, c)
		require.Equal(t, exit.Config, exit.Of(err))
		var problems config.Problems
		require.True(t, errors.As(err, &problems) && len(problems) > 0)
		for _, problem := range problems {
			require.True(t, problem.Line >= 1 && problem.Line <= lines && problem.Column >= 1 && problem.Message != "", "%v", problem)
		}
		if decodeErr == nil && isTable {
			requireNothingOf(t, node, err.Error())
		}
		return
	}
	require.NoError(t, decodeErr)
	require.True(t, isTable)
	launcher, isTable := document["launcher_config"].(map[string]any)
	require.True(t, isTable)

	checkNodeConfig(t, c, p, node)
	for key := range node {
		require.False(t, strings.EqualFold(key, "tee") || p == config.TEE && strings.EqualFold(key, "gcp"), "%q", key)
	}
	again, err := config.ParseImage(c.Image.String())
	require.NoError(t, err)
	require.Equal(t, c.Image, again)
	if text, ok := launcher["image"].(string); ok {
		image, err := config.ParseImage(text)
		require.NoError(t, err)
		require.Equal(t, image.Repository, c.Image.Repository)
	}
	var hosts []uint16
	for _, port := range c.Ports {
		require.NotZero(t, port.Host)
		require.NotZero(t, port.Container)
		require.NotContains(t, hosts, port.Host)
		hosts = append(hosts, port.Host)
	}
	text, overridden := launcher["mpc_hash_override"].(string)
	require.Equal(t, overridden, c.Override != nil)
	if overridden {
		require.Equal(t, text, c.Override.String())
	}
	require.True(t, c.Retry.Rounds >= 0 && c.Retry.Interval >= 0 && c.Retry.MaxDelay >= 0)
}

// requireNothingOf requires that no string of the node's config stands in the text. Short ones may, by chance.
func requireNothingOf(t *testing.T, v any, text string) {
	switch v := v.(type) {
	case map[string]any:
		for _, element := range v {
			requireNothingOf(t, element, text)
		}
	case []any:
		for _, element := range v {
			requireNothingOf(t, element, text)
		}
	case string:
		// A text of ours that somebody made a value is no secret.
		ours := []string{"launcher_config", "mpc_node_config", "image", "unknown", "nearest", "integer", "missing", "mapped", "registry"}
		if len(v) > 5 && !slices.ContainsFunc(ours, func(word string) bool { return strings.Contains(word, v) || strings.Contains(v, word) }) {
			require.NotContains(t, text, v)
		}
	}
}

// FuzzNodeConfig: whatever TOML [mpc_node_config] holds, the node gets exactly that.
func FuzzNodeConfig(f *testing.F) {
	f.Fuzz(func(t *testing.T, document string) {
		if len(document) > 1<<16 || toml.Unmarshal([]byte(document), &map[string]any{}) != nil {
			return
		}
		text := nest(document)
		c, _, err := config.Parse(file, []byte(text), config.NONTEE)
		if err != nil {
			// Nothing but these is ever refused.
			require.Regexp(t, `reserved|nested deeper|more than 10000 keys|too many keys`, err.Error())
			return
		}
		checkNodeConfig(t, c, config.NONTEE, decode(t, text)["mpc_node_config"].(map[string]any))
	})
}

func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	for target, names := range map[string][]string{
		"FuzzParse": {
			"minimal", "every-setting", "generation-3.8", "image-reference", "conflict", "case-variants", "ports", "reserved", "gcp",
			"dotenv", "inline", "dotted", "bom-crlf", "broken", "duplicate", "not-utf8", "misspelt",
		},
		"FuzzNodeConfig": {
			"integers", "floats", "date-times", "strings", "keys", "dotted", "tables", "empty", "arrays", "array-of-tables", "inline", "reserved",
		},
		"FuzzParseImage": {
			"hub", "library", "ghcr", "port-and-tag", "localhost", "ipv6", "capital-host", "digest", "newline", "dollar", "hub-in-hub", "deep",
		},
	} {
		for _, name := range names {
			_, err := os.Stat(filepath.Join("testdata", "fuzz", target, name))
			assert.NoError(t, err)
		}
	}
}
