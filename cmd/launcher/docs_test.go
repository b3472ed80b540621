package main_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
)

var update = flag.Bool("update", false, "write the generated parts of the documents anew")

// TestDocs holds the generated parts of the README to the tables and the program that they come from.
func TestDocs(t *testing.T) {
	path := filepath.Join("..", "..", "README.md")
	old, err := os.ReadFile(path)
	require.NoError(t, err)
	text := string(old)
	for _, sections := range []map[string]string{main.Generated(), sessions(t)} {
		for name, content := range sections {
			text = replaceSection(t, text, name, content)
		}
	}
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return
	}
	assert.Equal(t, text, string(old), "README.md is out of date: run make docs")
}

// replaceSection puts content between the markers of the section name.
func replaceSection(t *testing.T, text, name, content string) string {
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->\n"
	before, rest, ok := strings.Cut(text, begin)
	require.True(t, ok, "README.md has no %q", begin)
	_, after, ok := strings.Cut(rest, end)
	require.True(t, ok, "README.md has no %q", end)
	return before + begin + content + end + after
}
