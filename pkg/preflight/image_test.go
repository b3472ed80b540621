package preflight_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// TestMoreLayersThanTheEngineTakes is said before any of them is fetched.
func TestMoreLayersThanTheEngineTakes(t *testing.T) {
	t.Parallel()
	layer, err := launchtest.FileLayer(launchtest.File{Path: "data"})
	require.NoError(t, err)
	var layers [][]byte
	for i := range 126 {
		layers = append(layers, append(bytes.Clone(layer), make([]byte, 512*i)...))
	}
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(t, err)
	w := newWorld(t, launchtest.MachineOptions{})
	ref, err := w.Registry.Push(launchtest.Repository, img)
	require.NoError(t, err)
	w.settings.DefaultDigest, err = digest.Parse(ref.DigestStr())
	require.NoError(t, err)
	config, err := img.ConfigName()
	require.NoError(t, err)
	w.names["@config-deep@"] = config.String()
	report := w.run()
	assert.Equal(t, []string{"ENG018"}, codes(report))
	assert.Equal(t, exit.Refused, report.ExitCode)
	assert.NotEmpty(t, result(t, report, "image").Findings[0].Fix)
}
