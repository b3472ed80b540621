package search_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// mutants are one-line changes to the code that is searched, each switched on by its name. The search has to find that each
// violates an invariant.
func mutants() []mutant {
	return []mutant{
		{"emits whatever the log says", "one event", "rtmr/measure.go",
			`	if present {`,
			`	if present && mutant != "emits whatever the log says" {`, "", ""},
		{"forgets the intent of a run that died", "one event", "admission/admission.go",
			`	if f.Record.Unfinished() {`,
			`	if f.Record.Unfinished() && mutant != "forgets the intent of a run that died" {`, "1.1", "done late"},
		{"starts without an event", "nothing unmeasured runs", "launch/measure.go",
			`		case made.running:`,
			`		case made.running || mutant == "starts without an event":`, "", ""},
		{"pulls another image than it measures", "what is measured runs", "launch/image.go",
			`		source := m.client(chosen).Source(ref)`,
			`		if mutant == "pulls another image than it measures" { ref = ref.Context().Digest(m.Settings.DefaultDigest.String()) }
		source := m.client(chosen).Source(ref)`, "", ""},
		{"leaves impostors alone", "no impostor left", "launch/gate.go",
			`	if !m.Settings.Supervised() {`,
			`	if !m.Settings.Supervised() || mutant == "leaves impostors alone" {`, "", ""},
		{"holds no volumes", "volumes referenced", "launch/create.go",
			`c.ID != but && c.NeverStarted()`,
			`(c.ID != but || mutant == "holds no volumes") && c.NeverStarted()`, "", ""},
		{"removes no old container", "the same good state", "launch/create.go",
			`		if err := m.engine.Remove(ctx, c.ID); err != nil {`,
			`		if mutant == "removes no old container" { continue } else if err := m.engine.Remove(ctx, c.ID); err != nil {`, "", ""},
		{"verify knows no impostors", "verify says what run does", "preflight/containers.go",
			`	if !known.AnImage() {`,
			`	if !known.AnImage() || mutant == "verify knows no impostors" {`, "", ""},
	}
}

type mutant struct {
	name, violates, file, old, new string
	bounds, events                 string // where it is found; empty: by one step, whichever
}

// TestEachMutantIsFound searches each until it is found.
func TestEachMutantIsFound(t *testing.T) {
	binary := buildMutants(t)
	violated := map[string]bool{}
	for _, m := range mutants() {
		t.Run(m.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), binary, "-test.run", "^TestSearch$", "-bounds", cmp.Or(m.bounds, "1.0"), "-events", m.events)
			cmd.Env = append(os.Environ(), "LAUNCHER_MUTANT="+m.name)
			out, err := cmd.CombinedOutput()
			assert.Error(t, err, "it lives: %s", out)
			assert.Contains(t, string(out), m.violates+": ", "found for another reason")
			violated[m.violates] = true
		})
	}
	for _, invariant := range invariants() {
		assert.True(t, violated[invariant], "no mutant violates %s", invariant)
	}
}

// buildMutants builds this package's tests with all mutants in the code, and returns the program.
func buildMutants(t *testing.T) string {
	dir := t.TempDir()
	pkg, err := filepath.Abs("../..")
	require.NoError(t, err)
	replace, changed := map[string]string{}, map[string]string{}
	for _, m := range mutants() {
		path := filepath.Join(pkg, m.file)
		text, known := changed[path]
		if !known {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			text = string(data)
			switches := filepath.Join(filepath.Dir(path), "mutant.go")
			changed[switches] = fmt.Sprintf("package %s\n\nimport \"os\"\n\nvar mutant = os.Getenv(\"LAUNCHER_MUTANT\")\n", filepath.Base(filepath.Dir(path)))
		}
		require.Equal(t, 1, strings.Count(text, m.old), "%s: %s", m.file, m.old)
		changed[path] = strings.Replace(text, m.old, m.new, 1)
	}
	for path, text := range changed {
		at := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		require.NoError(t, os.WriteFile(at, []byte(text), 0o600))
		replace[path] = at
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	binary := filepath.Join(dir, "mutants.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}
