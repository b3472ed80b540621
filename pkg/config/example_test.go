package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
)

// TestTheExample looks that the example for people to copy has every key, and not a single mistake.
func TestTheExample(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join("..", "..", "examples", "user_config.toml"))
	require.NoError(t, err)
	text := string(data)
	_, warnings, err := config.Parse("user_config.toml", data, config.TEE)
	require.NoError(t, err)
	assert.Empty(t, warnings)
	whole := regexp.MustCompile(`(?m)^# (\[+launcher_config|[a-z_]+ = )`).ReplaceAllString(text, "$1")
	c, warnings, err := config.Parse("user_config.toml", []byte(whole), config.TEE)
	require.NoError(t, err)
	assert.Empty(t, warnings)
	assert.NotNil(t, c.Override)
	assert.NotEmpty(t, c.Sources)
	for _, host := range []string{"ghcr.io", "registry.example:5000", "quay.io"} {
		_, ok := c.Credential(host)
		assert.True(t, ok, host)
	}
	require.Contains(t, config.Keys(), "image_reference")
	for _, key := range config.Keys() {
		assert.Regexp(t, `\n(`+key+` = |\[+launcher_config\.`+key+`[].])`, whole)
	}
}
