package preflight_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
)

func TestSeedsDownload(t *testing.T) { testSeeds(t, "download") }

// TestDeep downloads every layer, and has one that was damaged on its way once repaired as a boot would.
func TestDeep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.Deep = true
	w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: w.target("@layer0@"), After: 7, Times: 2})
	sent := w.Registry.BlobBytes()
	report := w.run()
	assert.Equal(t, exit.OK, report.ExitCode, "%v", result(t, report, "download"))
	assert.Equal(t, preflight.OK, result(t, report, "download").Status)
	assert.GreaterOrEqual(t, w.Registry.BlobBytes()-sent, *report.WouldRun.SizeBytes)
	assert.Equal(t, 2, w.Registry.Hits(launchtest.FaultFlip), "one of them may have hit the question whether the layer is there")
	assert.Equal(t, *report.WouldRun.SizeBytes, *report.WouldRun.BytesLeft, "nothing was kept")
}
