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

// TestTheRaceDetectorLooksAtWhatRunsAtOnce: every package that starts goroutines or shares something
// between them is tested with it, but for the doubles.
func TestTheRaceDetectorLooksAtWhatRunsAtOnce(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "Makefile"))
	require.NoError(t, err)
	list := regexp.MustCompile(`(?m)^RACE := (.+)$`).FindSubmatch(text)
	require.NotNil(t, list, "make hermetic is written in another way")
	packages := strings.Fields(string(list[1]))
	looked := 0
	for _, path := range goFiles(t) {
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "hack/") || strings.HasPrefix(path, "pkg/launchtest/") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", path), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		atOnce := slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool {
			return strings.HasPrefix(i.Path.Value, `"sync`)
		})
		ast.Inspect(file, func(n ast.Node) bool {
			_, starts := n.(*ast.GoStmt)
			atOnce = atOnce || starts
			return true
		})
		if atOnce {
			looked++
			assert.True(t, slices.ContainsFunc(packages, func(p string) bool {
				below, all := strings.CutSuffix(p, "/...")
				return p == "./"+filepath.Dir(path) || all && strings.HasPrefix("./"+path, below+"/")
			}), "%s: its package isn't tested with the race detector", path)
		}
	}
	assert.Greater(t, looked, 10)
}

// TestTestdata: what tests compare with stands in one place, with a line on where it comes from; with
// a package are its fuzz seeds alone.
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
			assert.True(t, strings.HasPrefix(name, "fuzz/"), "%s belongs in testdata", path)
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
