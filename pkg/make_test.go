package pkg_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMakeRunsEveryTestOnce: make e2e picks its tests by package and name, so that no hermetic test
// is run again with them. None may be left out by that.
func TestMakeRunsEveryTestOnce(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "Makefile"))
	require.NoError(t, err)
	picked := regexp.MustCompile(`(?m)^e2e:.*\n.* -tags e2e -run '(.+)' (.+)$`).FindSubmatch(text)
	require.NotNil(t, picked, "make e2e is written in another way")
	name, err := regexp.Compile(string(picked[1]))
	require.NoError(t, err)
	packages := strings.Fields(string(picked[2]))

	test := regexp.MustCompile(`^Test($|[^a-z])`)
	hermetic, endToEnd := 0, 0
	for _, path := range goFiles(t) {
		if !strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(filepath.Join("..", path))
		require.NoError(t, err)
		within := slices.Contains(packages, "./"+filepath.Dir(path))
		tagged := bytes.HasPrefix(text, []byte("//go:build e2e\n"))
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, declared := range file.Decls {
			f, ok := declared.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !test.MatchString(f.Name.Name) || f.Name.Name == "TestMain" {
				continue
			}
			runs := within && name.MatchString(f.Name.Name)
			assert.Equal(t, tagged, runs, "%s: %s is an end-to-end test, run by make e2e", path, f.Name)
			if tagged {
				endToEnd++
			} else {
				hermetic++
			}
		}
	}
	assert.Greater(t, hermetic, 100)
	assert.Greater(t, endToEnd, 5)
}

// TestTestdata: what tests compare with stands in one place, with a line on where it comes from; with
// a package are its fuzz seeds alone, and those of verify.
func TestTestdata(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "testdata", "README.md"))
	require.NoError(t, err)
	var told []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+) \\|").FindAllSubmatch(text, -1) {
		for name := range strings.SplitSeq(string(row[1]), ", ") {
			told = append(told, strings.Trim(name, "`"))
		}
	}
	files := 0
	require.NoError(t, fs.WalkDir(os.DirFS(".."), ".", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != "." && strings.HasPrefix(e.Name(), "."), path == "dist":
			return fs.SkipDir
		case e.IsDir():
			return nil
		}
		dir, name, ok := strings.Cut(path, "testdata/")
		if !ok || name == "README.md" {
			return nil
		}
		if dir != "" {
			assert.True(t, strings.HasPrefix(name, "fuzz/") || dir == "pkg/preflight/", "%s belongs in testdata", path)
			return nil
		}
		files++
		assert.True(t, slices.ContainsFunc(told, func(known string) bool {
			return name == known || strings.HasSuffix(known, "/") && strings.HasPrefix(name, known)
		}), "%s has no line on its origin in testdata/README.md", path)
		return nil
	}))
	assert.Greater(t, files, 30)
}
