//go:build e2e

package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/status"
)

// promtool has Prometheus's own tool look at something.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	tool := exec.Command("../../hack/tool", "promtool")
	tool.Stderr = os.Stderr
	path, err := tool.Output()
	require.NoError(t, err)
	cmd := exec.Command(strings.TrimSpace(string(path)), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	assert.NoError(t, err, "promtool %v: %s", args, out)
	if args[0] == "check" && args[1] == "metrics" {
		assert.Empty(t, string(out), "it has nothing to say against them")
	}
}

// TestE2EPromtool holds metrics and alerts to Prometheus's own rules.
func TestE2EPromtool(t *testing.T) {
	t.Parallel()
	full, err := os.ReadFile(filepath.Join("..", "..", "testdata", "status", "metrics.prom"))
	require.NoError(t, err)
	promtool(t, string(full), "check", "metrics")
	promtool(t, string(status.Status{}.Metrics()), "check", "metrics")
	odd := status.Status{Reference: "a\"b\\c\nd", Launcher: "\xff\x1b日本語"}
	promtool(t, string(odd.Metrics()), "check", "metrics")
	examples := filepath.Join("..", "..", "examples")
	promtool(t, "", "check", "rules", filepath.Join(examples, "alerts.yaml"))
	promtool(t, "", "test", "rules", filepath.Join(examples, "alerts_test.yaml"))
}
