package sanitize_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/sanitize"
)

// nasty returns one of each kind that must not be shown.
func nasty() map[string]string {
	return map[string]string{
		"a line break":              "\n",
		"a carriage return":         "\r",
		"a line tabulation":         "\v",
		"a tab":                     "\t",
		"NUL":                       "\x00",
		"escape":                    "\x1b",
		"delete":                    "\x7f",
		"next line, U+0085":         "\u0085",
		"CSI, U+009B":               "\u009b",
		"soft hyphen":               "\u00ad",
		"line separator":            "\u2028",
		"paragraph separator":       "\u2029",
		"right-to-left override":    "\u202e",
		"left-to-right isolate":     "\u2066",
		"right-to-left mark":        "\u200f",
		"Arabic letter mark":        "\u061c",
		"zero-width space":          "\u200b",
		"zero-width joiner":         "\u200d",
		"word joiner":               "\u2060",
		"byte order mark":           "\ufeff",
		"combining grapheme joiner": "\u034f",
		"Hangul filler":             "\u3164",
		"a variation selector":      "\ufe0f",
		"a tag":                     "\U000e0041",
		"private use":               "\ue000",
		"no character":              "\ufffe",
		"no-break space":            "\u00a0",
		"ideographic space":         "\u3000",
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	for name, s := range nasty() {
		assert.Equal(t, "a b", sanitize.Line("a"+s+"b", 100), name)
		assert.Empty(t, sanitize.Line(s+s, 100), name)
	}
	for _, s := range []string{"", "plain", "größer als 日本語 – “x” …", "é", "\ufffd"} {
		assert.Equal(t, s, sanitize.Line(s, 100))
	}
	assert.Equal(t, "a b c", sanitize.Line("  a \r\n b\t\tc  ", 100))
	assert.Equal(t, "a\ufffdb", sanitize.Line("a\xffb", 100))
	assert.Equal(t, "error: hint: run this", sanitize.Line("error:\n\nhint: run this", 100))
	assert.Equal(t, "abcd…", sanitize.Line("abcdefgh", 5))
	assert.Equal(t, "abcde", sanitize.Line("abcde \n", 5))
	assert.Equal(t, "abc…", sanitize.Line("abc def", 5))
}

func TestLines(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"one", "two three"}, sanitize.Lines("one\r\n\n \u202e\ntwo\u2028three", 100))
	assert.Empty(t, sanitize.Lines("\n\n", 100))
	assert.Equal(t, []string{"abc", "de…", "…"}, sanitize.Lines("abc\ndefghi\njkl", 7))
}

func TestJSON(t *testing.T) {
	t.Parallel()
	for name, s := range nasty() {
		document, err := json.MarshalIndent(map[string]string{"a" + s: s + "é"}, "", "\t")
		require.NoError(t, err, name)
		clean := sanitize.JSON(document)
		for _, r := range s {
			inside := strings.NewReplacer("\n", "", "\t", "").Replace(string(clean))
			assert.NotContains(t, inside, string(r), name)
		}
		var want, got any
		require.NoError(t, json.Unmarshal(document, &want))
		require.NoError(t, json.Unmarshal(clean, &got), name)
		assert.Equal(t, want, got, name)
	}
}

func FuzzLine(f *testing.F) {
	for _, s := range nasty() {
		f.Add("a"+s+"b", 3)
	}
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit = max(1, limit%1000)
		line := sanitize.Line(text, limit)
		require.True(t, utf8.ValidString(line))
		require.LessOrEqual(t, utf8.RuneCountInString(line), limit)
		require.Equal(t, line, sanitize.Line(line, limit+1), "a clean line stays as it is")
		for _, s := range nasty() {
			require.NotContains(t, line, s)
		}
	})
}
