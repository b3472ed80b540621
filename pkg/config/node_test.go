package config_test

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

// nest returns a user config whose [mpc_node_config] is the given document, by prefixing the headers in its text.
func nest(document string) string {
	var b strings.Builder
	b.WriteString("[launcher_config]\nimage = \"x\"\n[mpc_node_config]\n")
	var parser unstable.Parser
	parser.Reset([]byte(document))
	for parser.NextExpression() {
		n := parser.Expression()
		if n.Kind == unstable.KeyValue {
			b.Write(parser.Raw(n.Raw))
			b.WriteByte('\n')
			continue
		}
		open, end := "[", "]"
		if n.Kind == unstable.ArrayTable {
			open, end = "[[", "]]"
		}
		b.WriteString(open + "mpc_node_config")
		for parts := n.Key(); parts.Next(); {
			b.WriteByte('.')
			b.Write(parser.Raw(parts.Node().Raw))
		}
		b.WriteString(end + "\n")
	}
	return b.String()
}

// canonical renders decoded TOML so that different values have different texts: NaN is NaN, -0 isn't 0, an integer isn't
// a float, and a time has its offset.
func canonical(v any) string {
	switch v := v.(type) {
	case map[string]any:
		var parts []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, fmt.Sprintf("%q: %s", key, canonical(v[key])))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case []any:
		var parts []string
		for _, element := range v {
			parts = append(parts, canonical(element))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case float64:
		if math.IsNaN(v) {
			return "nan"
		}
		return fmt.Sprintf("float %x", math.Float64bits(v))
	case time.Time:
		return v.Format("2006-01-02T15:04:05.000000000-07:00")
	}
	return fmt.Sprintf("%T %#v", v, v)
}

func decode(t *testing.T, text string) map[string]any {
	t.Helper()
	values := map[string]any{}
	require.NoError(t, toml.Unmarshal([]byte(text), &values), "%s", text)
	return values
}

// checkNodeConfig requires that the node gets exactly this, and [tee].
func checkNodeConfig(t *testing.T, c *config.Config, p config.Platform, node map[string]any) {
	t.Helper()
	text, err := c.NodeConfig(p, hashA)
	require.NoError(t, err)
	got := decode(t, string(text))
	authority := map[string]any{"type": "local"}
	if p == config.TEE {
		authority = map[string]any{"type": "dstack", "dstack_endpoint": "/var/run/dstack.sock"}
	}
	require.Equal(t, map[string]any{
		"image_hash":                    hashA.String(),
		"latest_allowed_hash_file_path": "/mnt/shared/image-digest.bin",
		"authority":                     authority,
	}, got["tee"])
	delete(got, "tee")
	require.Equal(t, canonical(node), canonical(got), "as it was written:\n%s", text)
}

func TestNodeConfigRoundTrip(t *testing.T) {
	t.Parallel()
	for name, document := range map[string]string{
		"nothing": "",
		"a real one": `
home_dir = "/data"
[log]
format = "plain"
filter = "mpc=debug,info"
[near_init]
chain_id = "testnet"
boot_nodes = "ed25519:9qyu1RaJ5shX6UEb7UooPQYVXCC1tNHCiDPPxJ8Pv1UJ@116.202.220.238:34567"
download_genesis = true
[secrets]
secret_store_key_hex = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
[node]
my_near_account_id = "a.testnet"
web_ui = "0.0.0.0:8080"
cores = 4
[node.indexer]
concurrency = { Fixed = 1 }
[[node.foreign_chains]]
rpc = ["https://a", "https://b"]
[[node.foreign_chains]]
rpc = []
`,
		"integers": "a = 9223372036854775807\nb = -9223372036854775808\nc = 0\nd = -0\ne = +7\nf = 1_000\n" +
			"g = 0x7fffffffffffffff\nh = 0o777\ni = 0b1010\nj = 9007199254740993",
		"floats": "a = 0.0\nb = -0.0\nc = inf\nd = -inf\ne = +inf\nf = nan\ng = -nan\nh = 5e-324\ni = 1.7976931348623157e308\n" +
			"j = 0.1\nk = 1e5\nl = 1.0\nm = 3.141592653589793\nn = 1_0.0_1\no = -1E-9\np = 9007199254740993.0\nq = 1e22\nr = 1e21",
		"booleans": "a = true\nb = false",
		"offset date-times": "a = 1979-05-27T07:32:00Z\nb = 1979-05-27T00:32:00-07:00\nc = 1979-05-27T00:32:00.999999999+05:45\n" +
			"d = 1979-05-27 07:32:00Z\ne = 0000-01-01T00:00:00Z\nf = 9999-12-31T23:59:59.999999999Z\ng = 0001-01-01T00:00:00+23:59\n" +
			"h = 9999-12-31T23:59:59-23:59\ni = 1979-05-27t07:32:00z\nj = 2000-02-29T00:00:00.000000001-00:30\nk = 1979-05-27T07:32:00-00:00\n" +
			"l = 1979-05-27T07:32:00.100Z\nm = 1979-05-27T07:32:00.1234567899Z\nn = 1979-05-27T07:32Z\no = 0000-01-01T00:00:00+23:59",
		"local date-times": "a = 1979-05-27T07:32:00\nb = 1979-05-27T07:32:00.000000001\nc = 1979-05-27 07:32:00.5\n" +
			"d = 0000-01-01T00:00:00\ne = 9999-12-31T23:59:59.999999999\nf = 1979-05-27T07:32:00.100\ng = 1979-05-27T07:32:00.0",
		"local dates": "a = 1979-05-27\nb = 0000-01-01\nc = 9999-12-31\nd = 2000-02-29",
		"local times": "a = 07:32:00\nb = 00:00:00.000000000\nc = 23:59:59.999999999\nd = 12:00:00.1\ne = 12:00:00.10\n" +
			"f = 12:00:00.123456789123\ng = 07:32",
		"strings": `a = ""
b = "\b\t\n\f\r\"\\\u00e9\U0001F600\u0000\u001f\u007f\u0085\u2028\ufeff\ufffd\uffff"
c = 'C:\Users\nobody'
d = '''
first
'second' ''third''
'''
e = """
first \
   joined
"second" ""third\"""
"""
f = "it's"
g = 'a "quoted" one'
h = "\u0041\x41\e"
i = " leading and trailing "
j = "# no comment = [nor] {table}"
k = "'''"
l = '"""'
m = "line\r\nline"
n = "日本語 עברית 🏴󠁧󠁢󠁥󠁮󠁧󠁿 é"
o = ''
p = """"""
q = "true"
r = "1979-05-27"
s = "12"
t = "$HOME ${HOME} {{ x }}"`,
		"keys": `bare = 1
A-b_9 = 2
1234 = 3
"quoted key" = 4
'literal "key"' = 5
"" = 6
"a.b" = 7
"ʎǝʞ" = 8
"new\nline" = 9
"tab\t" = 10
"nul\u0000" = 11
"]" = 12
"=" = 13
"#" = 14
"'" = 15
"\"" = 16
'\' = 17
" " = 18
3.14159 = 19
true = 20
inf = 21
1979-05-27 = 22
teee = 23
"tee " = 24
"té" = 25
te = 26
x.tee = 27
x."TEE" = 28`,
		"dotted keys":                "a.b.c = 1\na.b.d = 2\na . e = 3\n\"a\".'f' = 4\na.\"g.h\".i = 5\n\n[x.y]\nz.w = 6\n[x]\nv = 7",
		"tables":                     "[a]\n[a.b.c]\nx = 1\n[a.b]\ny = 2\n[\"q.r\".'s t'.\"\"]\nz = 3",
		"empty tables":               "a = {}\nb = { c = {}, d = [] }\n[e]\n[f.g]\n[[h]]\n[[h]]\n[[i.j]]",
		"inline tables":              "a = { b = 1, c.d = 2, \"e f\" = { g = [{ h = 1 }] } }\nk = {\n  l = 1, # more\n  m = 2,\n}",
		"empty arrays":               "a = []\nb = [[]]\nc = [[], []]\nd = [{}]\ne = [[{}]]\nf = [[[[]]]]",
		"arrays":                     "a = [1, 2]\nb = [[1, 2], ['a', 'b']]\nc = [\n  1, # one\n  2,\n]\nd = [ [ [ 1 ] ], [] ]",
		"mixed arrays":               "a = [1, 1.0, 'x', true, 1979-05-27, { b = 1 }, [2, [3]], {}, 07:32:00, 1979-05-27T07:32:00Z, 1979-05-27T07:32:00]\nb = [{ c = 1 }, 2]",
		"arrays of them":             "a = [nan, -0.0, inf]\nb = [0000-01-01, 9999-12-31]\nc = [\"\\u0000\", '', \"\\n\"]",
		"array of tables":            "[[a]]\nx = 1\n[[a]]\n[[a]]\nx = 2\n[a.b]\ny = 3\n[[a.c]]\nz = 4\n[[a.c]]\nz.w = 5\n[[d.e.\"f g\"]]",
		"tables in arrays in tables": "a = [[{ b = [[{ c = 1 }], []] }, { }], [1]]\n[x]\ny = [{ z = [{ w = {} }] }]",
		"key and table order":        "z = 1\n[y]\nb = 1\na = 2\n[x]\n[y.c]\n[a]",
		"the same name everywhere":   "a.a.a = 1\n[a.a.b]\na = { a = [{ a = 1 }] }",
		"comments and no newline":    "# one\na = 1 # two\n# three",
		"deep tables":                strings.Repeat("a.", 120) + "a = 1",
		"deep arrays":                "a = " + strings.Repeat("[", 120) + strings.Repeat("]", 120),
		"deep inline tables":         strings.Repeat("a = { ", 120) + strings.Repeat("}", 120),
		"hundreds of keys":           manyLines(400, "k%d = 1\n"),
		"a long string":              "a = \"" + strings.Repeat("x", 50_000) + "\"",
		"a long array":               "a = [" + strings.Repeat("1,", 10_000) + "]",
		"gcp further down":           "x.gcp = 1\n[[y]]\ngcp = 1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := nest(document)
			for _, text := range []string{text, "\ufeff" + text, strings.ReplaceAll(text, "\n", "\r\n")} {
				node, ok := decode(t, strings.TrimPrefix(text, "\ufeff"))["mpc_node_config"].(map[string]any)
				require.True(t, ok)
				for _, p := range []config.Platform{config.TEE, config.NONTEE} {
					c, warnings, err := config.Parse(file, []byte(text), p)
					require.NoError(t, err)
					assert.Empty(t, warnings)
					checkNodeConfig(t, c, p, node)
				}
			}
		})
	}
}

// TestCanonicalTellsApart keeps the round trip's yardstick honest.
func TestCanonicalTellsApart(t *testing.T) {
	t.Parallel()
	values := decode(t, `v = [0, 0.0, -0.0, nan, inf, "0", false, [], {}, [[]], [{}], 1979-05-27, "1979-05-27", 00:00:00, 00:00:00.0, 1979-05-27T00:00:00,
		1979-05-27T00:00:00Z, 1979-05-27T01:00:00+01:00, 1979-05-27T00:00:00.000000001Z, {a = 1}, {a = 1.0}, {b = 1}, "", " "]`)["v"].([]any)
	seen := map[string]bool{}
	for _, v := range values {
		assert.False(t, seen[canonical(v)], "%s", canonical(v))
		seen[canonical(v)] = true
	}
}

func TestNodeConfigIsCompleteAndStable(t *testing.T) {
	t.Parallel()
	c, _ := parse(t, "[launcher_config]\nimage = \"x\"\n[mpc_node_config]\nhome_dir = \"/data\"\n[mpc_node_config.node]\ncores = 4\n")
	first, err := c.NodeConfig(config.TEE, hashA)
	require.NoError(t, err)
	assert.Equal(t, `home_dir = '/data'

[node]
cores = 4

[tee]
image_hash = '`+hashA.String()+`'
latest_allowed_hash_file_path = '/mnt/shared/image-digest.bin'

[tee.authority]
dstack_endpoint = '/var/run/dstack.sock'
type = 'dstack'
`, string(first))
	for range 10 {
		again, err := c.NodeConfig(config.TEE, hashA)
		require.NoError(t, err)
		require.Equal(t, first, again, "the same in, the same out")
	}
	local, err := c.NodeConfig(config.NONTEE, hashA)
	require.NoError(t, err)
	assert.Contains(t, string(local), "[tee.authority]\ntype = 'local'\n")
	assert.NotContains(t, string(local), "dstack")
}

func TestReservedKeys(t *testing.T) {
	t.Parallel()
	const launcher = "[launcher_config]\nimage = \"x\"\n"
	for name, test := range map[string]struct {
		node string
		key  string // as it is written
		at   string
	}{
		"a table":            {"[mpc_node_config.tee]\n", "tee", "3:18"},
		"below it":           {"[mpc_node_config.tee.authority]\ntype = \"local\"\n", "tee", "3:18"},
		"a string":           {"[mpc_node_config]\ntee = \"sneaky\"\n", "tee", "4:1"},
		"an integer":         {"[mpc_node_config]\ntee = 0\n", "tee", "4:1"},
		"false":              {"[mpc_node_config]\ntee = false\n", "tee", "4:1"},
		"an empty array":     {"[mpc_node_config]\na = 1\ntee = []\n", "tee", "5:1"},
		"an inline table":    {"[mpc_node_config]\ntee = {}\n", "tee", "4:1"},
		"an array of tables": {"[[mpc_node_config.tee]]\n", "tee", "3:19"},
		"dotted":             {"[mpc_node_config]\ntee.authority.type = \"local\"\n", "tee", "4:1"},
		"dotted with spaces": {"[mpc_node_config]\n tee . authority = 1\n", "tee", "4:2"},
		"quoted":             {"[mpc_node_config]\n\"tee\" = 1\n", "tee", "4:1"},
		"literal":            {"[mpc_node_config]\n'tee' = 1\n", "tee", "4:1"},
		"escaped":            {"[mpc_node_config]\n\"\\u0074\\x65e\" = 1\n", "tee", "4:1"},
		"quoted header":      {"[mpc_node_config.\"tee\"]\n", "tee", "3:18"},
		"spaced header":      {"[ mpc_node_config . 'tee' ]\n", "tee", "3:21"},
		"capitals":           {"[mpc_node_config.TEE]\n", "TEE", "3:18"},
		"one capital":        {"[mpc_node_config]\nTee = 1\n", "Tee", "4:1"},
		"quoted capital":     {"[mpc_node_config]\n\"tEe\".x = 1\n", "tEe", "4:1"},
		"all inline":         {"mpc_node_config = { a = 1, tee = 1 }\n", "tee", ""},
		"all dotted":         {"mpc_node_config.tee.x = 1\n", "tee", ""},
		"gcp":                {"[mpc_node_config.gcp]\nproject_id = \"p\"\n", "gcp", "3:18"},
		"GCP":                {"[mpc_node_config]\nGCP.x = 1\n", "GCP", "4:1"},
		"Gcp":                {"[mpc_node_config]\n\"Gcp\" = 1\n", "Gcp", "4:1"},
		"gcp, all dotted":    {"mpc_node_config.gcp.x = 1\n", "gcp", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, at := launcher+test.node, file+":"+test.at
			if test.at == "" { // must stand before the first header
				text, at = test.node+launcher, file+":1:"
			}
			for _, p := range []config.Platform{config.TEE, config.NONTEE, ""} {
				if strings.EqualFold(test.key, "gcp") && p == config.NONTEE {
					c, _, err := config.Parse(file, []byte(text), p)
					require.NoError(t, err, "outside a TEE it is the node's own affair")
					checkNodeConfig(t, c, p, decode(t, text)["mpc_node_config"].(map[string]any))

					node, err := c.NodeConfig(config.TEE, hashA)
					require.Error(t, err, "and can't be carried into one")
					assert.Nil(t, node)
					assert.Equal(t, exit.Config, exit.Of(err))
					assert.Contains(t, err.Error(), file+": \""+test.key+"\" in [mpc_node_config] is refused")
					continue
				}
				got := problems(t, text, p)
				require.Len(t, got, 1)
				assert.Contains(t, got[0], at)
				assert.Contains(t, got[0], fmt.Sprintf("%q in [mpc_node_config]", test.key))
			}
		})
	}
	// All of them at once.
	got := problems(t, launcher+"[mpc_node_config]\ntee = 1\nTEE = 2\ngcp = 3\nGcP = 4\n", config.TEE)
	assert.Len(t, got, 4)
}

func TestNodeConfigRefuses(t *testing.T) {
	t.Parallel()
	c, _ := parse(t, with(`image = "x"`))
	for name, test := range map[string]struct {
		c *config.Config
		p config.Platform
		h digest.Digest
	}{
		"nil":                {nil, config.TEE, hashA},
		"a config of no one": {&config.Config{}, config.TEE, hashA},
		"no platform":        {c, "", hashA},
		"another platform":   {c, "tee", hashA},
		"no digest":          {c, config.TEE, digest.Digest{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := test.c.NodeConfig(test.p, test.h)
			require.Error(t, err)
			assert.Nil(t, text)
			assert.Equal(t, exit.Internal, exit.Of(err), "that is a bug of ours")
		})
	}
}

func TestNodeConfigDoesNotChangeTheConfig(t *testing.T) {
	t.Parallel()
	c, _ := parse(t, with(`image = "x"`))
	first, err := c.NodeConfig(config.TEE, hashA)
	require.NoError(t, err)
	_, err = c.NodeConfig(config.NONTEE, digest.Of([]byte("b")))
	require.NoError(t, err)
	again, err := c.NodeConfig(config.TEE, hashA)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(first, again))
}
