package pkg_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the figures of the auditor's list anew")

// auditLimit is what one person can read with full attention.
const auditLimit = 1000

// audited is a package that decides what is measured or what runs.
type audited struct {
	name    string
	files   []string // those that decide it; nil: all
	names   []string // those that only give names: constants and their types decide nothing
	imports []string // all that they may import
}

// audit is the auditor's list, in the order in which it is read.
func audit() []audited {
	const v1 = "github.com/google/go-containerregistry/pkg/v1"
	return []audited{
		{"pkg/digest", nil, nil, []string{"crypto/sha256", "encoding/hex", "errors", "fmt", "strings"}},
		{"pkg/approval", nil, []string{"names.go"}, []string{
			"errors", "fmt", "slices", "pkg/digest", "pkg/exit", "pkg/internal/strictjson",
		}},
		{"pkg/admission", nil, []string{"names.go"}, []string{
			"fmt", "path", "slices", "strings", "time", v1,
			"pkg/approval", "pkg/compose", "pkg/config", "pkg/digest", "pkg/docker/inspect",
			"pkg/exit", "pkg/rtmr",
		}},
		{"pkg/rtmr", []string{"event.go", "verify.go", "measure.go", "native.go"}, nil, []string{
			"bytes", "context", "crypto/sha512", "encoding/binary",
			"encoding/hex", "errors", "fmt", "slices", "strings", "time", "pkg/digest", "pkg/exit",
		}},
		{"pkg/launch", []string{"sequence.go"}, nil, []string{
			"context", "errors", "pkg/admission", "pkg/internal/files",
		}},
	}
}

// TestTheAuditorsList: what is measured and what runs can be read in one go, and stays so.
func TestTheAuditorsList(t *testing.T) {
	t.Parallel()
	const begin, end = "<!-- begin audit -->\n", "<!-- end audit -->\n"
	table := "| file | lines of code | imports |\n|---|---|---|\n"
	total := 0
	for _, p := range audit() {
		files := p.files
		if files == nil {
			files = sourceFiles(t, p.name)
		}
		for _, file := range p.names {
			assert.Contains(t, files, file)
			onlyNames(t, path.Join(p.name, file))
			files = slices.DeleteFunc(files, func(f string) bool { return f == file })
		}
		unused := slices.Clone(p.imports)
		for _, file := range files {
			file = path.Join(p.name, file)
			lines, imports := linesOfCode(t, file), importsOf(t, file)
			for _, i := range imports {
				assert.Contains(t, p.imports, i, "%s: imports more than the auditor's list allows", file)
				unused = slices.DeleteFunc(unused, func(u string) bool { return u == i })
			}
			total += lines
			table += fmt.Sprintf("| `%s` | %d | %s |\n", file, lines, strings.Join(imports, ", "))
		}
		assert.Empty(t, unused, "%s: nothing imports them any more", p.name)
	}
	table += fmt.Sprintf("| **all** | **%d** | |\n", total)
	assert.Less(t, total, auditLimit, "too much to be read in one go")

	document := filepath.Join("..", "docs", "ARCHITECTURE.md")
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok)
	written, after, ok := strings.Cut(rest, end)
	require.True(t, ok)
	if *update {
		require.NoError(t, os.WriteFile(document, []byte(before+begin+table+end+after), 0o644))
		return
	}
	assert.Equal(t, table, written, "docs/ARCHITECTURE.md is out of date: run make docs")
}

// onlyNames asserts that a file declares nothing but constants and types without anything in them.
func onlyNames(t *testing.T, name string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", name), nil, 0)
	require.NoError(t, err)
	for _, d := range file.Decls {
		declared, ok := d.(*ast.GenDecl)
		if !assert.True(t, ok, "%s: a function", name) {
			continue
		}
		for _, s := range declared.Specs {
			constant, isConstant := s.(*ast.ValueSpec)
			kind, isType := s.(*ast.TypeSpec)
			switch {
			case isConstant && declared.Tok == token.CONST:
				for _, v := range constant.Values {
					ast.Inspect(v, func(n ast.Node) bool {
						switch n.(type) {
						case nil, *ast.BasicLit, *ast.BinaryExpr: // texts, put together
						default:
							assert.Fail(t, "more than a text", "%s: %v", name, constant.Names)
						}
						return true
					})
				}
			case isType:
				assert.IsType(t, &ast.Ident{}, kind.Type, "%s: %s", name, kind.Name)
			default:
				assert.Fail(t, "neither a constant nor a type", "%s: %s", name, declared.Tok)
			}
		}
	}
}

// sourceFiles returns the names of a package's files but its tests.
func sourceFiles(t *testing.T, name string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("..", name))
	require.NoError(t, err)
	var files []string
	for _, e := range entries {
		require.False(t, e.IsDir() && e.Name() != "testdata", "%s/%s isn't on the list", name, e.Name())
		if strings.HasSuffix(e.Name(), ".go") && !strings.HasSuffix(e.Name(), "_test.go") {
			files = append(files, e.Name())
		}
	}
	require.NotEmpty(t, files)
	return files
}

// linesOfCode counts the lines that hold a token, even a lone brace or a part of a long string.
func linesOfCode(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", name))
	require.NoError(t, err)
	file := token.NewFileSet().AddFile(name, -1, len(text))
	var s scanner.Scanner
	s.Init(file, text, func(_ token.Position, message string) { assert.Fail(t, message, name) }, 0)
	lines := map[int]bool{}
	for {
		position, kind, literal := s.Scan()
		switch {
		case kind == token.EOF:
			return len(lines)
		case kind == token.SEMICOLON && literal == "\n": // the scanner's own, at a line's end
			continue
		}
		first := file.Line(position)
		for line := range strings.Count(literal, "\n") + 1 {
			lines[first+line] = true
		}
	}
}

// importsOf returns what a file imports, this module's packages without its name.
func importsOf(t *testing.T, name string) []string {
	t.Helper()
	from := filepath.Join("..", name)
	file, err := parser.ParseFile(token.NewFileSet(), from, nil, parser.ImportsOnly)
	require.NoError(t, err)
	var imports []string
	for _, i := range file.Imports {
		imported, err := strconv.Unquote(i.Path.Value)
		require.NoError(t, err)
		imports = append(imports, strings.TrimPrefix(imported, module))
	}
	return imports
}
