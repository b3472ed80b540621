// Package pkg_test holds the layout to its rules: boundaries follow trust, and imports flow one way.
// docs/ARCHITECTURE.md says why.
package pkg_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "tee-launcher/"

// allowed says which packages of this module each package may import directly. The table of exit
// codes, digests, the cleaner of text from outside, the board of what is waited for and what is below
// pkg/internal are open to all.
func allowed() map[string][]string {
	return map[string][]string{
		"pkg/exit":     {},
		"pkg/digest":   {},
		"pkg/sanitize": {},
		"pkg/waiting":  {},
		"pkg/status":   {},
		"pkg/fleet":    {"pkg/rtmr", "pkg/status"},
		// The leaves know each other only for the proof values that they consume.
		"pkg/config":         {},
		"pkg/approval":       {},
		"pkg/image":          {},
		"pkg/layout":         {"pkg/image"},
		"pkg/registry":       {"pkg/image", "pkg/config", "pkg/layout"},
		"pkg/rtmr":           {},
		"pkg/docker/inspect": {"pkg/image", "pkg/docker/internal/api"},
		"pkg/docker":         {"pkg/image", "pkg/docker/inspect", "pkg/docker/internal/api"},
		"pkg/compose":        {"pkg/docker/inspect"},
		// The rules, and what reads the facts that they judge by: `run` and `verify` have both from there.
		"pkg/admission": {"pkg/config", "pkg/approval", "pkg/rtmr", "pkg/docker/inspect", "pkg/compose"},
		"pkg/state":     {"pkg/admission", "pkg/config", "pkg/approval", "pkg/image", "pkg/docker/inspect", "pkg/compose"},
		// What runs without effects can't reach what has them.
		"pkg/preflight": {"pkg/admission", "pkg/config", "pkg/approval", "pkg/image", "pkg/registry", "pkg/rtmr", "pkg/docker/inspect", "pkg/compose", "pkg/state"},
		// Beside the workload that runs, for the next boot. What it must know of files it is told.
		"pkg/stage": {"pkg/config", "pkg/image", "pkg/docker/inspect", "pkg/docker", "pkg/compose"},
		// Everything meets where effects are ordered.
		"pkg/launch":   {"pkg/stage", "pkg/admission", "pkg/config", "pkg/approval", "pkg/image", "pkg/layout", "pkg/registry", "pkg/rtmr", "pkg/docker/inspect", "pkg/docker", "pkg/compose", "pkg/state", "pkg/status"},
		"cmd/launcher": {"pkg/admission", "pkg/config", "pkg/approval", "pkg/image", "pkg/layout", "pkg/registry", "pkg/rtmr", "pkg/docker/inspect", "pkg/compose", "pkg/launch", "pkg/preflight", "pkg/stage", "pkg/fleet", "pkg/status"},
		// The doubles model what is outside, so they know nothing of what is inside.
		"pkg/launchtest": {},
	}
}

func TestImportsFlowOneWay(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...").Output()
	require.NoError(t, err)
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		require.NoError(t, dec.Decode(&p))
		name := strings.TrimPrefix(p.ImportPath, module)
		if name == "pkg" || strings.HasPrefix(name, "hack/") || strings.HasPrefix(name, "pkg/launchtest/") || strings.Contains(name, "internal/") {
			continue
		}
		permitted, known := allowed()[name]
		require.True(t, known, "package %s has no place in the layout: add it to this test and to docs/ARCHITECTURE.md", name)
		seen[name] = true
		for _, i := range p.Imports {
			i, ours := strings.CutPrefix(i, module)
			if ours && !strings.HasPrefix(i, "pkg/internal/") && !slices.Contains([]string{"pkg/exit", "pkg/digest", "pkg/sanitize", "pkg/waiting"}, i) {
				assert.Contains(t, permitted, i, "%s imports %s", name, i)
			}
			assert.False(t, ours && strings.HasPrefix(i, "pkg/launchtest"), "%s imports a double", name)
		}
	}
	for name := range allowed() {
		assert.True(t, seen[name], "package %s is gone", name)
	}
}

// TestTheCoreParsesNothingForeign: what chooses, names and measures a digest depends on no client
// of a registry.
func TestTheCoreParsesNothingForeign(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"pkg/digest", "pkg/approval", "pkg/rtmr"} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+name).Output()
		require.NoError(t, err)
		assert.Contains(t, string(out), module+"pkg/digest\n")
		assert.NotContains(t, string(out), "go-containerregistry", name)
	}
}

// TestOnlyMainTouchesTheProcess: who ends the process or writes to its streams anywhere else can't be tested or composed.
func TestOnlyMainTouchesTheProcess(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles", module+"pkg/...", module+"cmd/...").Output()
	require.NoError(t, err)
	checked := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath, Dir string
			GoFiles         []string
		}
		require.NoError(t, dec.Decode(&p))
		if strings.HasPrefix(p.ImportPath, module+"pkg/launchtest") {
			continue
		}
		for _, file := range p.GoFiles {
			if file == "main.go" {
				continue
			}
			checked++
			text, err := os.ReadFile(filepath.Join(p.Dir, file))
			require.NoError(t, err)
			for _, forbidden := range []string{"os.Exit(", "os.Stdout", "os.Stderr", "log.Fatal", "func init()"} {
				assert.False(t, strings.Contains(string(text), forbidden), "%s/%s: %s", p.ImportPath, file, forbidden)
			}
		}
	}
	assert.Positive(t, checked)
}
