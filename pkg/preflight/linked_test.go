package preflight_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestWhatActsIsNotEvenLinked: some packages hold both a half that reads and one that acts. The linker keeps what can be reached, so in
// a program that is nothing but preflight no function that loads, measures, creates or starts may be left.
func TestWhatActsIsNotEvenLinked(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "linked")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, seeds+"/linked").CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.CommandContext(t.Context(), "go", "tool", "nm", program).Output()
	require.NoError(t, err)
	symbols := string(out)
	for _, reads := range []string{
		"tee-launcher/pkg/preflight.Run", "tee-launcher/pkg/rtmr.(*Agent).CanEmit", "tee-launcher/pkg/rtmr.(*Native).Look", "tee-launcher/pkg/compose.Find",
		"tee-launcher/pkg/docker/inspect.(*Engine).Prove",
	} {
		assert.Contains(t, symbols, reads, "this test doesn't see what it looks for")
	}
	for _, acts := range []string{
		"tee-launcher/pkg/launch.", "tee-launcher/pkg/docker.", "tee-launcher/pkg/rtmr.(*Agent).emit", "tee-launcher/pkg/rtmr.(*held)",
		"tee-launcher/pkg/rtmr.(*Native).emitOnce", "tee-launcher/pkg/rtmr.(*Native).extend", "tee-launcher/pkg/rtmr.(*Native).Settle",
		"tee-launcher/pkg/compose.Tool.Create", "tee-launcher/pkg/internal/files.(*Dir).Write", "tee-launcher/pkg/internal/files.(*Dir).Lock",
	} {
		for line := range strings.Lines(symbols) {
			assert.NotContains(t, line, acts)
		}
	}
}
