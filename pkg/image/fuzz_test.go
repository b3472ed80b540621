package image_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestSeedsAreThere holds the committed inputs of the fuzz tests to their number.
func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	for name, least := range map[string]int{"FuzzDocuments": 8} {
		entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", name))
		require.NoError(t, err)
		assert.GreaterOrEqual(t, len(entries), least, "seeds of %s", name)
	}
}
