package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
)

// mark is a part of every planted secret. It is made of digits, so that there can be one in every kind of value.
const mark = "918273645"

// secretive is a user config with a secret in every kind of value and in every position of one.
func secretive() string {
	return `[launcher_config]
image = "nearone/mpc-node"
[launcher_config.registry_auth."ghcr.io"]
username = "x918273645"
password = "x918273645"
[launcher_config.registry_auth."quay.io"]
registry_token = "x918273645"
[mpc_node_config]
basic = "x918273645" # comment 918273645
literal = 'x918273645'
multi = """
x918273645
"""
multi_literal = '''
x918273645'''
escaped = "\u0039\u0031\u0038\u0032\u0037\u0033\u0036\u0034\u0035"
integer = 918273645
negative = -918273645
hexadecimal = 0x918273645
float = 0.918273645
exponent = 918273645e3
offset = 1979-05-27T00:32:00.918273645-07:00
local = 1979-05-27T00:32:00.918273645
time = 00:32:00.918273645
array = ["x918273645", 918273645, [918273645.0, { a = "x918273645" }]]
inline = { a = "x918273645", "b" = 918273645, c.d = '918273645' }
[mpc_node_config.x918273645]
x918273645 = 1
"y918273645" = { 'z918273645' = 2 }
a.x918273645.b = 3
[[mpc_node_config.tables918273645]]
secret_store_key_hex = "x918273645"
[mpc_node_config.tables918273645.inner]
key = "x918273645"
`
}

// shown returns everything that a caller could print of what Parse returned.
func shown(t *testing.T, c *config.Config, warnings []config.Warning, err error) string {
	var b bytes.Buffer
	options := &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{} // its digits are anybody's
		}
		return a
	}}
	things := []any{warnings, err, exit.Hints(err), c}
	var typed config.Problems
	if errors.As(err, &typed) {
		things = append(things, typed, []config.Problem(typed), typed.Hints())
	}
	if c != nil {
		things = append(things, *c, []config.Config{*c}, []*config.Config{c}, map[string]config.Config{"x": *c},
			struct{ C config.Config }{*c}, struct{ c config.Config }{*c}, struct{ c *config.Config }{c},
			struct{ any }{*c}, &struct{ c config.Config }{*c}, []any{struct{ c any }{*c}}, c.Image, c.Ports, c.Retry, c.Sources)
		for _, host := range []string{"ghcr.io", "quay.io"} {
			if credential, ok := c.Credential(host); ok {
				fmt.Fprintf(&b, "%v %+v %#v %s %q %x %d %v %v", credential, credential, credential, credential, credential, credential,
					credential, []any{credential}, &credential)
				slog.New(slog.NewJSONHandler(&b, options)).Info("a message", "credential", credential)
				slog.New(slog.NewTextHandler(&b, options)).Info("a message", "credential", credential)
				assert.NoError(t, json.NewEncoder(&b).Encode([]any{credential}))
			}
		}
	}
	for _, thing := range things {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T", "%e", "%-9v", "%!"} {
			fmt.Fprintf(&b, verb+"\n", thing)
		}
		fmt.Fprintln(&b, thing)
		for _, handler := range []slog.Handler{slog.NewTextHandler(&b, options), slog.NewJSONHandler(&b, options)} {
			slog.New(handler).Info("a message", "thing", thing, slog.Group("group", "thing", thing))
		}
		if text, err := json.Marshal(thing); err == nil {
			b.Write(text)
		}
	}
	for _, w := range warnings {
		b.WriteString(w.String())
	}
	if err != nil {
		b.WriteString(err.Error())
	}
	return b.String()
}

func requireNoMark(t *testing.T, text string) {
	t.Helper()
	at := strings.Index(text, mark)
	require.Negative(t, at, "a secret behind: %s", text[max(at-300, 0):max(at, 0)])
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	t.Parallel()
	c, warnings, err := config.Parse(file, []byte(secretive()), config.TEE)
	require.NoError(t, err)
	text := shown(t, c, warnings, err)
	requireNoMark(t, text)
	assert.Contains(t, text, "nearone/mpc-node", "but something is")

	node, err := c.NodeConfig(config.TEE, hashA)
	require.NoError(t, err)
	assert.Greater(t, strings.Count(string(node), mark), 20, "they are there")
}

func TestLogValueSaysWhatIsConfigured(t *testing.T) {
	t.Parallel()
	c, _ := parse(t, with(`image = "ghcr.io/x/y:z"`, `mpc_hash_override = "`+hashA.String()+`"`, `port_mappings = [{ host = 80, container = 81 }]`))
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Info("read", "config", c)
	for _, want := range []string{"config.image=ghcr.io/x/y:z", "config.override=" + hashA.String(), "80", "81"} {
		assert.Contains(t, b.String(), want)
	}
	assert.NotContains(t, b.String(), "home_dir")
}

// TestSecretsInMistakes has a secret next to every mistake that is reported about [mpc_node_config].
func TestSecretsInMistakes(t *testing.T) {
	t.Parallel()
	const launcher = "[launcher_config]\nimage = \"x\"\n"
	for name, text := range map[string]string{
		"no quotes":               launcher + "[mpc_node_config]\nkey = x918273645\n",
		"no quotes, a number":     launcher + "[mpc_node_config]\nkey = 918273645x\n",
		"open":                    launcher + "[mpc_node_config]\nkey = \"x918273645\n",
		"open, multi-line":        launcher + "[mpc_node_config]\nkey = \"\"\"x918273645\n",
		"an escape":               launcher + "[mpc_node_config]\nkey = \"918273645\\q\"\n",
		"no equals sign":          launcher + "[mpc_node_config]\nx918273645\n",
		"a key twice":             launcher + "[mpc_node_config]\nx918273645 = 1\nx918273645 = 2\n",
		"a table twice":           launcher + "[mpc_node_config.x918273645]\n[mpc_node_config.x918273645]\n",
		"a value and a table":     launcher + "[mpc_node_config]\nx918273645 = 1\n[mpc_node_config.x918273645]\n",
		"an array and a table":    launcher + "[mpc_node_config]\nx918273645 = []\n[[mpc_node_config.x918273645]]\n",
		"an inline table, wider":  launcher + "[mpc_node_config]\nx918273645 = {}\nx918273645.y = 1\n",
		"a large integer":         launcher + "[mpc_node_config]\nkey = 918273645918273645918273645918273645\n",
		"a large float":           launcher + "[mpc_node_config]\nkey = 918273645e918273645\n",
		"a wrong date":            launcher + "[mpc_node_config]\nkey = 9182-73-99\n",
		"a wrong time":            launcher + "[mpc_node_config]\nkey = 91:82:73.918273645\n",
		"a time zone":             launcher + "[mpc_node_config]\nkey = 1979-05-27T00:00:00.918273645+91:82\n",
		"NUL":                     launcher + "[mpc_node_config]\nkey = \"x918273645\x00\"\n",
		"UTF-8":                   launcher + "[mpc_node_config]\nkey = \"x918273645\xff\"\n",
		"tee, a string":           launcher + "[mpc_node_config]\ntee = \"x918273645\"\n",
		"tee, a table":            launcher + "[mpc_node_config.tee]\nx918273645 = \"x918273645\"\n",
		"gcp":                     launcher + "[mpc_node_config.gcp]\nkeyshare_secret_id = \"x918273645\"\n",
		"no table":                launcher + "mpc_node_config = 1\n[x]\ny = \"x918273645\"\n",
		"a string for a table":    "mpc_node_config = \"x918273645\"\n" + launcher,
		"an array for a table":    "mpc_node_config = [\"x918273645\"]\n" + launcher,
		"an array of tables":      launcher + "[[mpc_node_config]]\nkey = \"x918273645\"\n",
		"a misspelt table":        launcher + "[mpc_node_confg]\nkey = \"x918273645\"\n",
		"a misspelt nested table": launcher + "[mpc_node_confg.x918273645]\nkey = \"x918273645\"\n",
		"a value among ours":      launcher + "secret_store_key_hex = \"x918273645\"\n[mpc_node_config]\n",
		"nested too deep":         launcher + "[mpc_node_config]\n" + strings.Repeat("x918273645.", 200) + "a = 1\n",
		"too many":                launcher + "[mpc_node_config]\n" + manyLines(10_001, "x918273645_%d = 1\n"),
		".env":                    "MPC_ENV=x918273645\nMPC_SECRET_STORE_KEY=x918273645\nx918273645=x\nOTHER=x918273645\n",
		".env, no line of it":     "MPC_ENV=x\n-----BEGIN 918273645-----\nMII918273645==\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, warnings, err := config.Parse(file, []byte(text), config.TEE)
			require.Error(t, err)
			requireNoMark(t, shown(t, c, warnings, err))
		})
	}
}

// TestNoLetterOfASecretIsPrinted knows the secret by a letter that occurs nowhere else.
func TestNoLetterOfASecretIsPrinted(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"key = ΩΩΩ", "ΩΩΩ", "key = 'x' ΩΩΩ", "key = \"\\Ω\"", "key = [1 Ω]", "key = {Ω", "key = { a = 1 Ω", "key = 1Ω", "key = 1.Ω", "key = 1eΩ",
		"key = 0xΩ", "key = +Ω", "key = trueΩ", "key = \"\\u00Ω0\"", "[Ω", "[a]Ω", "key = 2024-01-01Ω", "key = \"\"\"ΩΩΩ", "key = 'Ω", "key = \"x\x01Ω\"",
		"\"Ω\" = 1\n\"Ω\" = 2", "[\"Ω\"]\n[\"Ω\"]", "key Ω = 1", "\"Ω\" 1", "key = \"Ω\r\"", "# Ω\x00",
	} {
		c, warnings, err := config.Parse(file, []byte(with(`image = "x"`)+text+"\n"), config.TEE)
		require.Error(t, err, "%s", text)
		got := shown(t, c, warnings, err)
		for _, form := range []string{"Ω", "U+03A9", "U+00CE", "U+00A9", "03a9", `\xce`, "Î"} {
			assert.NotContains(t, got, form, "%s", text)
		}
	}
}

// TestBrokenAnywhere breaks a config at each of its bytes in each of several ways.
func TestBrokenAnywhere(t *testing.T) {
	t.Parallel()
	const launcher = "[launcher_config]\nimage = \"x\"\n"
	const node = "[mpc_node_config]\na = \"x918273645\" # 918273645\nb = 'x918273645'\nc = \"\"\"\nx918273645\n\"\"\"\nd = '''\nx918273645'''\ne = 918273645\n" +
		"f = 0.918273645\ng = 1979-05-27T00:32:00.918273645-07:00\nh = [918273645, { a = 'x918273645' }]\n[[mpc_node_config.i]]\n\"x918273645\".x918273645 = 918273645e3\n"
	broken := 0
	for at := range len(node) {
		variants := []string{node[:at], node[:at] + node[at+1:]}
		for _, insert := range []string{`"`, `'`, `"""`, `'''`, `[`, `]`, `{`, `=`, `,`, `#`, "\n", `\`, "\xff", "0"} {
			variants = append(variants, node[:at]+insert+node[at:])
		}
		for _, variant := range variants {
			c, warnings, err := config.Parse(file, []byte(launcher+variant), config.TEE)
			got := fmt.Sprintf("%v %+v %#v %v %+v %v", err, err, err, warnings, c, exit.Hints(err))
			require.False(t, strings.Contains(got, mark), "%q: %s", variant, got)
			if err != nil {
				broken++
			}
		}
	}
	assert.Greater(t, broken, 2000, "most of them are errors")
}
