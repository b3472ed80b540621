package registry_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/registry"
)

// FuzzContentRange: what is accepted is a closed range within its total, and says so again when it
// is written out.
func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/100")
	f.Fuzz(func(t *testing.T, s string) {
		start, end, total, err := registry.ParseContentRange(s)
		if err != nil {
			require.Less(t, len(err.Error()), 500)
			return
		}
		require.LessOrEqual(t, int64(0), start)
		require.LessOrEqual(t, start, end)
		size := "*"
		if total >= 0 {
			require.Less(t, end, total)
			size = fmt.Sprint(total)
		}
		written := fmt.Sprintf("bytes %d-%d/%s", start, end, size)
		start2, end2, total2, err := registry.ParseContentRange(written)
		require.NoError(t, err)
		require.Equal(t, []int64{start, end, total}, []int64{start2, end2, total2})
	})
}

func TestContentRange(t *testing.T) {
	t.Parallel()
	for s, want := range map[string][]int64{
		"bytes 0-99/100":  {0, 99, 100},
		"bytes 10-10/*":   {10, 10, -1},
		"bytes 005-09/10": {5, 9, 10},
		"":                nil, "bytes": nil, "bytes ": nil, "bytes 0-99": nil, "bytes */100": nil, "bytes 99-0/100": nil,
		"bytes 0-100/100": nil, "bytes -1-5/10": nil, "bytes +0-5/10": nil, "bytes 0-5/-1": nil, "bytes 0-5/": nil, "items 0-5/10": nil,
		"bytes 0-5/99999999999999999999": nil, "bytes 0 - 5/10": nil, "bytes 0-5/10 ": nil, "bytes 0-5/10, bytes 0-5/10": nil, "bytes=0-5/10": nil,
		"bytes 9223372036854775808-9223372036854775809/*": nil,
	} {
		start, end, total, err := registry.ParseContentRange(s)
		if want == nil {
			assert.Error(t, err, "%q", s)
			continue
		}
		require.NoError(t, err, "%q", s)
		assert.Equal(t, want, []int64{start, end, total}, "%q", s)
	}
}

// TestSeedsAreThere holds the committed inputs of the fuzz tests to their number.
func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	for name, least := range map[string]int{"FuzzContentRange": 5} {
		entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", name))
		require.NoError(t, err)
		assert.GreaterOrEqual(t, len(entries), least, "seeds of %s", name)
	}
}
