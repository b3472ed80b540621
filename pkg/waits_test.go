package pkg_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// wait is a place in a test or a double that waits for a time instead of a fact.
type wait struct {
	file, function string
	what           string
}

// tolerated says why a place may wait for a time. An entry that nothing needs any more fails too.
func tolerated() map[wait]string {
	const link = "it stands for a link, of which time is what there is to say"
	return map[wait]string{
		{"pkg/launchtest/registry_link.go", "Read", "time.Sleep"}:  link,
		{"pkg/launchtest/registry_link.go", "Write", "time.Sleep"}: link,
		// Nobody waits for it: it gets in the way again and again as long as it runs.
		{"pkg/launchtest/node/main.go", "obstruct", "time.Sleep"}: "a nuisance",
		// Nothing is looked at after it: it keeps a clock on which time passes at once from spinning.
		{"pkg/registry/registry_test.go", "Sleep", "time.After"}: "a clock's tick",
	}
}

// TestNothingWaitsForATime: how long something takes on a busy machine nobody knows, so a test that
// waits for a while and then looks says something false sooner or later. Tests wait for the very
// fact, under a bound of a minute at least. What is about time itself runs in testing/synctest or
// on a clock of the test's.
func TestNothingWaitsForATime(t *testing.T) {
	t.Parallel()
	known := tolerated()
	needed := map[wait]bool{}
	for _, path := range goFiles(t) {
		if !strings.HasSuffix(path, "_test.go") && !strings.HasPrefix(path, "pkg/launchtest/") {
			continue
		}
		set := token.NewFileSet()
		name := filepath.Join("..", path)
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, declared := range file.Decls {
			function := "-"
			if f, ok := declared.(*ast.FuncDecl); ok {
				function = f.Name.Name
			}
			ast.Inspect(declared, func(n ast.Node) bool {
				what := waits(n)
				if what == bubble || what == "" {
					return what == ""
				}
				place := wait{path, function, what}
				needed[place] = true
				if known[place] == "" {
					t.Errorf("%s: %s waits for a time, not for a fact", set.Position(n.Pos()), what)
				}
				return true
			})
		}
	}
	for place := range known {
		assert.True(t, needed[place], "%v waits no longer: take it off the list", place)
	}
}

// goFiles returns the paths of the module's own Go files.
func goFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := fs.WalkDir(os.DirFS(".."), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != "." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			files = append(files, path)
		}
		return err
	})
	require.NoError(t, err)
	require.Greater(t, len(files), 100, "they are elsewhere")
	return files
}

// bubble is what waits says of a call that runs on a clock of its own.
const bubble = "synctest.Test"

// waits names the function by which a call waits for a time: by name, however short, or as a bound
// that is too short to be one.
func waits(n ast.Node) string {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return ""
	}
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	from := ""
	if x, ok := selector.X.(*ast.Ident); ok {
		from = x.Name
	}
	name := selector.Sel.Name
	bound := -1 // of which argument
	switch {
	case from == "synctest" && name == "Test":
		return bubble
	case from == "time" && name == "Sleep", strings.HasPrefix(name, "Never"):
		return from + "." + name
	case from == "time" && name == "After":
		bound = 0
	case strings.HasPrefix(name, "Eventually"):
		// A method has no *testing.T before the condition.
		bound = 1
		if from == "assert" || from == "require" {
			bound = 2
		}
	}
	if bound < 0 || bound >= len(call.Args) {
		return ""
	}
	if d, ok := literal(call.Args[bound]); ok && d < time.Minute {
		return from + "." + name
	}
	return ""
}

// literal returns a duration that is written out, such as 5*time.Second. What has a name was chosen
// for a reason.
func literal(e ast.Expr) (time.Duration, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		n, err := strconv.ParseInt(e.Value, 0, 64)
		return time.Duration(n), err == nil
	case *ast.SelectorExpr:
		unit, ok := map[string]time.Duration{
			"Nanosecond": time.Nanosecond, "Microsecond": time.Microsecond,
			"Millisecond": time.Millisecond, "Second": time.Second,
			"Minute": time.Minute, "Hour": time.Hour,
		}[e.Sel.Name]
		return unit, ok
	case *ast.BinaryExpr:
		x, known := literal(e.X)
		y, also := literal(e.Y)
		return x * y, e.Op == token.MUL && known && also
	case *ast.ParenExpr:
		return literal(e.X)
	}
	return 0, false
}

// TestWaits proves the check above on what it looks for.
func TestWaits(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"time.Sleep(d)":            "time.Sleep",
		"assert.Never(t, f, d, d)": "assert.Never",
		"r.Neverf(f, d, d, m)":     "r.Neverf",

		"time.After(20 * time.Millisecond)": "time.After",
		"time.After(time.Second)":           "time.After",
		"time.After((3) * time.Second)":     "time.After",
		"time.After(time.Minute)":           "",
		"time.After(2 * time.Minute)":       "",
		"time.After(patience)":              "",

		"require.Eventually(t, f, 5 * time.Second, tick)":   "require.Eventually",
		"a.Eventually(f, time.Second, tick)":                "a.Eventually",
		"assert.Eventually(t, f, 90 * time.Second, tick)":   "",
		"assert.EventuallyWithT(t, f, patience, time.Hour)": "",

		"synctest.Test(t, func(t *testing.T) { time.Sleep(d) })": bubble,

		"x.Sleep(d)": "", "time.Since(began)": "", "f(time.Second)": "",
	} {
		e, err := parser.ParseExpr(text)
		require.NoError(t, err)
		assert.Equal(t, want, waits(e), text)
	}
}
