package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
)

const (
	tooMany    = "too many keys and values: more than 80000 of the characters . = , [ {"
	fiveQuotes = "a1 = \"\"\"\\\"\"\"\"\"\"\na2 = '''\\'''''\na3 = '\\'\na4 = \"\\\\\"\na5 = \"\" # \"\n"
)

// TestBrokenDocuments has the place and the reason of what isn't TOML at all.
func TestBrokenDocuments(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ text, want string }{
		"no quotes":                    {"a = secret", `1:5: invalid TOML: expected a value; strings must be quoted`},
		"no quotes, true":              {"a = truthy", `1:5: invalid TOML: expected a value; strings must be quoted`},
		"no quotes, a number":          {"a = 12secret", `1:7: invalid TOML: expected a value; strings must be quoted`},
		"no quotes, a keyword":         {"a = infinite", `1:8: invalid TOML: expected the end of the line`},
		"no quotes, nearly a keyword":  {"a = tsecret", `1:5: invalid TOML: expected a value; strings must be quoted`},
		"no value":                     {"a =", `1:3: invalid TOML: expected a value`},
		"no value, then more":          {"a =\nb = 1", `1:4: invalid TOML: expected a value; strings must be quoted`},
		"no equals sign":               {"secret", `1:6: invalid TOML: expected = after the key`},
		"a colon":                      {"a: secret", `1:2: invalid TOML: expected = after the key, not a colon; is this YAML?`},
		"two values":                   {"a = 1 b = 2", `1:7: invalid TOML: expected the end of the line`},
		"an open string":               {"a = \"secret\nb = 1", `1:12: invalid TOML: the string is not closed on its line`},
		"an open string at the end":    {"a = \"secret", `1:11: invalid TOML: the string is not closed`},
		"an open literal":              {"a = 'secret\nb = 1", `1:12: invalid TOML: the string is not closed on its line`},
		"an open literal at the end":   {"a = 'secret", `1:11: invalid TOML: the string is not closed`},
		"an open multi-line string":    {"a = \"\"\"\nsecret", `2:6: invalid TOML: the string is not closed`},
		"an open multi-line literal":   {"a = '''\nsecret", `2:6: invalid TOML: the string is not closed`},
		"six quotes":                   {"a = \"\"\"secret\"\"\"\"\"\"", `1:14: invalid TOML: too many quotes at the end of the string`},
		"an open array":                {"a = [1, 2", `1:9: invalid TOML: the array is not closed`},
		"an open array, then more":     {"a = [1\nb = 2", `2:1: invalid TOML: expected , or ] after the array's element`},
		"a comma too many":             {"a = [,]", `1:6: invalid TOML: expected a value`},
		"an open inline table":         {"a = { b = 1", `1:11: invalid TOML: the inline table is not closed`},
		"an inline table without one":  {"a = { b = 1 c = 2 }", `1:13: invalid TOML: expected , or } after the inline table's value`},
		"a comma first":                {"a = { , }", `1:7: invalid TOML: one comma too many`},
		"an open header":               {"[a\nb = 1", `1:3: invalid TOML: expected ] after the table's name`},
		"half an array header":         {"[[a]\nb = 1", `1:4: invalid TOML: expected ] after the table's name`},
		"an empty header":              {"[]", `1:2: invalid TOML: a key can't begin like this`},
		"a wrong escape":               {`a = "\q"`, `1:6: invalid TOML: no such escape in a string`},
		"a Windows path":               {`a = "C:\Users"`, `1:8: invalid TOML: a wrong \u escape`},
		"a short unicode escape":       {`a = "\u12"`, `1:6: invalid TOML: a wrong \u escape`},
		"a wrong unicode escape":       {`a = "\u12gg"`, `1:10: invalid TOML: a wrong \u escape`},
		"half a surrogate pair":        {`a = "\ud800"`, `1:6: invalid TOML: a wrong \u escape`},
		"a large integer":              {"a = 9223372036854775808", `1:5: invalid TOML: the integer doesn't fit into 64 bits`},
		"a large hexadecimal one":      {"a = 0xffffffffffffffffff", `1:5: invalid TOML: the integer doesn't fit into 64 bits`},
		"a large float":                {"a = 1e999", `1:5: invalid TOML: the float doesn't fit into 64 bits`},
		"a leading zero":               {"a = 0123", `1:5: invalid TOML: a number can't begin with 0`},
		"February 30":                  {"a = 2024-02-30", `1:13: invalid TOML: no such date`},
		"month 13":                     {"a = 2024-13-01", `1:10: invalid TOML: no such date`},
		"25 o'clock":                   {"a = 25:00:00", `1:5: invalid TOML: no such time`},
		"a leap second":                {"a = 2016-12-31T23:59:60Z", `1:22: invalid TOML: no such time`},
		"half a date":                  {"a = 2024-01", `1:5: invalid TOML: no such date`},
		"half a time":                  {"a = 12:0", `1:5: invalid TOML: no such time`},
		"a time zone":                  {"a = 2024-01-01T00:00:00+25:00", `1:25: invalid TOML: no such time zone`},
		"a key twice":                  {"a = 1\na = 2", `2:1: invalid TOML: defined twice, or as two different things`},
		"a key twice, once quoted":     {"a = 1\n\"a\" = 2", `2:1: invalid TOML: defined twice, or as two different things`},
		"a table twice":                {"[a]\n[b]\n[a]", `3:2: invalid TOML: defined twice, or as two different things`},
		"a key twice in a table":       {"a = { b = 1, b = 2 }", `1:1: invalid TOML: defined twice, or as two different things`},
		"a value, then a table":        {"a = 1\n[a.b]", `2:2: invalid TOML: defined twice, or as two different things`},
		"a table, then a value":        {"[a.b]\n[a]\nb = 1", `3:1: invalid TOML: defined twice, or as two different things`},
		"a table, then an array of it": {"[a]\n[[a]]", `2:3: invalid TOML: defined twice, or as two different things`},
		"an array, then a table of it": {"a = []\n[[a]]", `2:3: invalid TOML: defined twice, or as two different things`},
		"NUL":                          {"a = 1\n\x00", `2:1: invalid TOML: a key can't begin like this`},
		"NUL in a string":              {"a = \"x\x00\"", `1:7: invalid TOML: a control character; write it as an escape`},
		"NUL in a comment":             {"a = 1 # \x00", `1:9: invalid TOML: a control character`},
		"a control character":          {"a = \"\x1b[0m\"", `1:6: invalid TOML: a control character; write it as an escape`},
		"a carriage return alone":      {"a = 1\rb = 2", `1:6: invalid TOML: expected the end of the line`},
		"CRLF":                         {"a = 1\r\nb = 2\r\nc = x\r\n", `3:5: invalid TOML: expected a value; strings must be quoted`},
		"invalid UTF-8":                {"a = 1\nb = \"\xff\"", `2:6: not UTF-8`},
		"invalid UTF-8 in a comment":   {"# \xc3(\n", `1:3: not UTF-8`},
		"an encoded surrogate":         {"a = \"\xed\xa0\x80\"", `1:6: not UTF-8`},
		"UTF-16":                       {"\xff\xfea\x00", `1:1: not UTF-8`},
		"UTF-16 of the other kind":     {"\xfe\xff\x00a", `1:1: not UTF-8`},
		"a BOM, then an error":         {"\ufeffa = x", `1:5: invalid TOML: expected a value; strings must be quoted`},
		"two BOMs":                     {"\ufeff\ufeffa = 1", `1:1: invalid TOML: a key can't begin like this`},
		"a BOM inside":                 {"a = 1\n\ufeffb = 1", `2:1: invalid TOML: a key can't begin like this`},
		"YAML":                         {"launcher_config:\n  image: x\n", `1:16: invalid TOML: expected = after the key, not a colon; is this YAML?`},
		"JSON":                         {"{\"launcher_config\": {}}", `1:1: invalid TOML: a key can't begin like this; is this JSON?`},
		"a shell's export":             {"export A=1", `1:8: invalid TOML: expected = after the key`},
		"one byte too many":            {"#" + strings.Repeat("x", config.MaxSize), `1:1: larger than 1048576 bytes`},
		"too many arrays in arrays":    {"a = " + strings.Repeat("[", 50_000), `1:10005: invalid TOML: nested too deep`},
		"arrays in arrays":             {"a = " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000), `1:1: nested deeper than 128 levels`},
		"tables in tables":             {"a = " + strings.Repeat("{a = ", 5000) + "1" + strings.Repeat("}", 5000), `1:641: nested deeper than 128 levels`},
		"a long dotted key":            {strings.Repeat("a.", 50_000) + "a = 1", `1:257: nested deeper than 128 levels`},
		"a long header":                {"[" + strings.Repeat("a.", 50_000) + "a]", `1:258: nested deeper than 128 levels`},
		"too many keys":                {manyLines(10_001, "a%05d = 1\n"), `10001:1: more than 10000 keys`},
		"too many tables":              {manyLines(10_001, "[a%05d]\n"), `10001:2: more than 10000 keys`},
		"too many of an array":         {strings.Repeat("[[a]]\n", 10_001), `10001:3: more than 10000 keys`},
		"too many inline tables":       {"a = [" + strings.Repeat("{},", 10_001) + "]", `1:1: more than 10000 keys`},
		"too many values":              {"a = [" + strings.Repeat("0,", 80_000), `1:160003: ` + tooMany},
		"too many dots":                {strings.Repeat("a.", 80_001), `1:160002: ` + tooMany},
		"too many after texts":         {fiveQuotes + "c = [" + strings.Repeat("[", 80_000), `6:79999: ` + tooMany},
		"many in texts":                {"a = \"\"\"" + strings.Repeat(",", 100_001) + "\"\"\"\nb = '" + strings.Repeat("{", 100_001) + "'\nc", `3:1: invalid TOML: expected = after the key`},
		"many in comments":             {"#" + strings.Repeat(",", 100_001) + "\nc", `2:1: invalid TOML: expected = after the key`},
		"long keys, repeated":          {"[" + strings.Repeat("a", 100_000) + "]\n" + manyLines(1000, "b%d = {}\n"), `22:1: too many keys for keys as long as these`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := problems(t, test.text, config.TEE)
			assert.Equal(t, []string{file + ":" + test.want}, got)
		})
	}
}

func manyLines(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestSize(t *testing.T) {
	t.Parallel()
	text := with(`image = "x"`)
	c, _ := parse(t, text+"#"+strings.Repeat("x", config.MaxSize-1-len(text)))
	require.NotNil(t, c)
	problems(t, text+"#"+strings.Repeat("x", config.MaxSize-len(text)), config.TEE)
}

func TestEncodings(t *testing.T) {
	t.Parallel()
	text := with(`image = "x"`, `pull_max_retries = 3  # Über`)
	for name, text := range map[string]string{
		"as it is":         text,
		"CRLF":             strings.ReplaceAll(text, "\n", "\r\n"),
		"a BOM":            "\ufeff" + text,
		"a BOM and CRLF":   "\ufeff" + strings.ReplaceAll(text, "\n", "\r\n"),
		"no last newline":  strings.TrimSuffix(text, "\n"),
		"indented":         strings.ReplaceAll(text, "\n", "\n\t  "),
		"mixed line ends":  strings.Replace(text, "\n", "\r\n", 1),
		"white space last": text + "\n\n  \t\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, warnings := parse(t, text)
			assert.Empty(t, warnings)
			assert.Equal(t, 3, c.Retry.Rounds)
		})
	}
}
