package registry_test

import (
	"encoding/json"
	"html"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/registry"
)

// TestHide takes secrets out whole, and leaves the rest.
func TestHide(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                     "",
		"nothing of it":        "nothing of it",
		"it is hunter2.":       "it is ….",
		"hunter2hunter2":       "……",
		"HUNTER2 Hunter%32":    "… …",
		"hunter":               "hunter",
		"aHVudGVyMg==":         "…==",     // base64
		"hunter2 and hunter22": "… and …", // the longer one whole
		`a\\b a\b`:             "… …",
		"100%25 100% 100%":     "… … …",
		"p&amp;q p&q p&":       "… … p&",
		"% & \\ &; %4 \\u00":   "% & \\ &; %4 \\u00",
	} {
		assert.Equal(t, want, registry.Hide(text, "hunter2", "hunter22", `a\b`, "100%", "p&q"), text)
	}
	assert.Equal(t, "hunter2", registry.Hide("hunter2", ""), "nothing is no secret")
}

// FuzzHide: whatever is between what is no secret, no spelling of one stays.
func FuzzHide(f *testing.F) {
	f.Add("hunter2", "before ", " after")
	f.Add(`p455 "w0rd"\%41/+&<é`, "", "")
	f.Fuzz(func(t *testing.T, secret, before, after string) {
		if secret == "" || strings.Contains(secret, "…") {
			return
		}
		quoted, err := json.Marshal(secret)
		require.NoError(t, err)
		for _, spelled := range []string{
			secret, url.QueryEscape(secret), url.PathEscape(secret), strings.ToLower(url.PathEscape(secret)),
			html.EscapeString(secret), strconv.Quote(secret), string(quoted),
		} {
			hidden := registry.Hide(before+spelled+after, secret)
			require.NotContains(t, hidden, secret)
			require.LessOrEqual(t, len(hidden), 3*len(before+spelled+after))
		}
	})
}
