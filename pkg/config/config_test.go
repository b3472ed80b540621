package config_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

const file = "/tapp/user_config"

var hashA = digest.Digest(bytes.Repeat([]byte{0xaa}, 32))

// with returns a user config with these lines in [launcher_config].
func with(lines ...string) string {
	return "[launcher_config]\n" + strings.Join(lines, "\n") + "\n[mpc_node_config]\nhome_dir = \"/data\"\n"
}

func parse(t *testing.T, text string) (*config.Config, []string) {
	t.Helper()
	c, warnings, err := config.Parse(file, []byte(text), config.TEE)
	require.NoError(t, err)
	require.NotNil(t, c)
	var texts []string
	for _, w := range warnings {
		texts = append(texts, w.String())
	}
	return c, texts
}

// problems parses a user config that must have some, and returns them as they are printed.
func problems(t *testing.T, text string, p config.Platform) []string {
	t.Helper()
	c, _, err := config.Parse(file, []byte(text), p)
	require.Error(t, err)
	assert.Nil(t, c)
	var typed config.Problems
	require.ErrorAs(t, err, &typed)
	require.NotEmpty(t, typed)
	assert.Equal(t, exit.Config, exit.Of(err))
	assert.NotEmpty(t, exit.Hints(err))
	assert.True(t, slices.IsSortedFunc(typed, func(a, b config.Problem) int {
		return 1_000_000*(a.Line-b.Line) + a.Column - b.Column
	}), "in the order of the file: %v", typed)
	var texts []string
	for _, problem := range typed {
		assert.Equal(t, file, problem.File)
		assert.Positive(t, problem.Line)
		assert.Positive(t, problem.Column)
		texts = append(texts, problem.String())
	}
	return texts
}

func TestMinimal(t *testing.T) {
	t.Parallel()
	c, warnings := parse(t, with(`image = "nearone/mpc-node"`))
	assert.Empty(t, warnings)
	assert.Equal(t, "nearone/mpc-node", c.Image.String())
	assert.Nil(t, c.Override)
	assert.Empty(t, c.Ports)
	assert.Equal(t, config.Retry{Rounds: 5, Interval: 2 * time.Second, MaxDelay: time.Minute}, c.Retry)
}

func TestEverySetting(t *testing.T) {
	t.Parallel()
	c, warnings := parse(t, with(
		`image = "ghcr.io/nearone/mpc-node:3.9.0"`,
		`mpc_hash_override = "`+hashA.String()+`"`,
		`port_mappings = [{ host = 11780, container = 1178 }, { container = 65535, host = 1 }]`,
		`pull_max_retries = 0`,
		`pull_retry_interval_secs = 7`,
		`pull_max_delay_secs = 0x10`,
	))
	assert.Empty(t, warnings)
	assert.Equal(t, "ghcr.io/nearone/mpc-node:3.9.0", c.Image.String())
	assert.Equal(t, &hashA, c.Override)
	assert.Equal(t, []config.Port{{Host: 11780, Container: 1178}, {Host: 1, Container: 65535}}, c.Ports)
	assert.Equal(t, config.Retry{Rounds: 0, Interval: 7 * time.Second, MaxDelay: 16 * time.Second}, c.Retry)
}

// TestGenerations has the forms that were deployed, and how each is told to be written today.
func TestGenerations(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		lines    []string
		image    string
		warnings []string
	}{
		"image": {
			lines: []string{`image = "nearone/mpc-node:3.9.0"`},
			image: "nearone/mpc-node:3.9.0",
		},
		"image_reference": {
			lines: []string{`image_reference = "nearone/mpc-node:3.8.1"`},
			image: "nearone/mpc-node:3.8.1",
		},
		"3.8, Docker Hub": {
			lines: []string{
				`image_tags = ["main-260e88b"]`,
				`image_name = "nearone/mpc-node"`,
				`registry = "registry.hub.docker.com"`,
				`rpc_request_timeout_secs = 10`,
				`rpc_request_interval_secs = 1`,
				`rpc_max_attempts = 20`,
				`port_mappings = [`,
				`    { host = 8080, container = 8080 },`,
				`    { host = 24566, container = 24566 },`,
				`]`,
			},
			image: "nearone/mpc-node:main-260e88b",
			warnings: []string{
				`/tapp/user_config:4:1: deprecated: registry, image_name, image_tags; use image_reference = "nearone/mpc-node:main-260e88b"`,
				`/tapp/user_config:5:1: rpc_request_timeout_secs is deprecated and has no effect; use pull_max_retries and pull_max_delay_secs`,
				`/tapp/user_config:6:1: rpc_request_interval_secs is deprecated and has no effect; use pull_retry_interval_secs`,
				`/tapp/user_config:7:1: rpc_max_attempts is deprecated and has no effect; use pull_max_retries`,
			},
		},
		"3.8, another registry": {
			lines:    []string{`registry = "ghcr.io"`, `image_name = "nearone/mpc-node"`, `image_tags = ["a", "b"]`},
			image:    "ghcr.io/nearone/mpc-node:a",
			warnings: []string{`/tapp/user_config:2:1: deprecated: registry, image_name, image_tags; use image_reference = "ghcr.io/nearone/mpc-node:a"`},
		},
		"3.8, a registry with a port": {
			lines:    []string{`registry = "localhost:5000"`, `image_name = "mpc-node"`},
			image:    "localhost:5000/mpc-node",
			warnings: []string{`/tapp/user_config:2:1: deprecated: registry, image_name; use image_reference = "localhost:5000/mpc-node"`},
		},
		"3.8, without a registry": {
			lines:    []string{`image_name = "nearone/mpc-node"`, `image_tags = []`},
			image:    "nearone/mpc-node",
			warnings: []string{`/tapp/user_config:2:1: deprecated: image_name, image_tags; use image_reference = "nearone/mpc-node"`},
		},
		"3.8, the registry twice": {
			lines:    []string{`registry = "ghcr.io"`, `image_name = "ghcr.io/nearone/mpc-node"`},
			image:    "ghcr.io/nearone/mpc-node",
			warnings: []string{`/tapp/user_config:2:1: deprecated: registry, image_name; use image_reference = "ghcr.io/nearone/mpc-node"`},
		},
		"all of them, agreeing": {
			lines: []string{
				`image = "docker.io/nearone/mpc-node"`,
				`image_reference = "nearone/mpc-node:x"`,
				`registry = "index.docker.io"`,
				`image_name = "nearone/mpc-node"`,
				`image_tags = ["y", "x"]`,
			},
			image: "nearone/mpc-node:x",
			warnings: []string{
				`/tapp/user_config:4:1: deprecated: registry, image_name, image_tags; use image_reference = "nearone/mpc-node:x"`,
			},
		},
		"left-overs beside image": {
			lines:    []string{`image = "ghcr.io/nearone/mpc-node"`, `registry = "ghcr.io"`, `image_tags = ["x"]`},
			image:    "ghcr.io/nearone/mpc-node:x",
			warnings: []string{`/tapp/user_config:3:1: deprecated: registry, image_tags; use image_reference = "ghcr.io/nearone/mpc-node:x"`},
		},
		"a fraction of a second": {
			lines:    []string{`image = "nearone/mpc-node"`, `rpc_request_interval_secs = 0.5`},
			image:    "nearone/mpc-node",
			warnings: []string{`/tapp/user_config:3:1: rpc_request_interval_secs is deprecated and has no effect; use pull_retry_interval_secs`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, warnings := parse(t, with(test.lines...))
			assert.Equal(t, test.image, c.Image.String())
			assert.Equal(t, test.warnings, warnings)
			assert.Equal(t, config.Retry{Rounds: 5, Interval: 2 * time.Second, MaxDelay: time.Minute}, c.Retry)
		})
	}
}

func TestLauncherProblems(t *testing.T) {
	t.Parallel()
	const image = `image = "nearone/mpc-node"`
	const theKeys = "image_reference, mpc_hash_override, port_mappings, " +
		"pull_max_retries, pull_retry_interval_secs, pull_max_delay_secs, sources, registry_auth; all else is a flag, a variable or the node's"
	for name, test := range map[string]struct {
		lines []string
		want  []string // without the file
	}{
		"no image":                   {nil, []string{`1:2: image_reference is missing`}},
		"an empty image":             {[]string{`image = ""`}, []string{`2:1: image: "" is not [registry[:port]/]name[:tag]`}},
		"an image of the wrong type": {[]string{`image = ["x"]`}, []string{`2:1: image must be a string, not an array`}},
		"a misspelt key": {[]string{image, `pull_max_retry = 1`},
			[]string{`3:1: unknown key "pull_max_retry" in [launcher_config]; the nearest known one is "pull_max_retries"`}},
		"another letter case": {[]string{image, `IMAGE = "x"`},
			[]string{`3:1: unknown key "IMAGE" in [launcher_config]; the nearest known one is "image"`}},
		"another letter case, alone": {[]string{`Image = "x"`},
			[]string{`1:2: image_reference is missing`, `2:1: unknown key "Image" in [launcher_config]; the nearest known one is "image"`}},
		"a long key": {[]string{image, strings.Repeat("x", 1000) + ` = 1`},
			[]string{`3:1: unknown key "` + strings.Repeat("x", 60) + `" in [launcher_config]; the keys are ` + theKeys}},
		"a strange key": {[]string{image, `"\u001b[2J" = 1`},
			[]string{`3:1: unknown key "\x1b[2J" in [launcher_config]; the keys are ` + theKeys}},
		"a dotted key": {[]string{`image.tag = "x"`}, []string{`2:1: image must be a string, not a table`}},
		"a date":       {[]string{`image = 2024-01-01`}, []string{`2:1: image must be a string, not a date or time`}},
		"no digest": {[]string{image, `mpc_hash_override = "latest"`},
			[]string{`3:1: mpc_hash_override: "latest" is not sha256: and 64 lower-case hex digits, 71 characters: it has 6`}},
		"an empty digest": {[]string{image, `mpc_hash_override = ""`},
			[]string{`3:1: mpc_hash_override: "" is not sha256: and 64 lower-case hex digits, 71 characters: it has 0`}},
		"a digest of the wrong type": {[]string{image, `mpc_hash_override = 1.5`},
			[]string{`3:1: mpc_hash_override must be a string, not a float`}},
		"too many rounds": {[]string{image, `pull_max_retries = 10001`},
			[]string{`3:1: pull_max_retries must be 0 to 10000, not 10001`}},
		"negative rounds": {[]string{image, `pull_max_retries = -1`},
			[]string{`3:1: pull_max_retries must be 0 to 10000, not -1`}},
		"a huge delay": {[]string{image, `pull_retry_interval_secs = 9223372036854775807`},
			[]string{`3:1: pull_retry_interval_secs must be 0 to 86400, not 9223372036854775807`}},
		"a negative delay": {[]string{image, `pull_max_delay_secs = -5`},
			[]string{`3:1: pull_max_delay_secs must be 0 to 86400, not -5`}},
		"a float delay": {[]string{image, `pull_max_delay_secs = 1.0`},
			[]string{`3:1: pull_max_delay_secs must be an integer, not a float`}},
		"a boolean delay": {[]string{image, `pull_max_delay_secs = true`},
			[]string{`3:1: pull_max_delay_secs must be an integer, not a boolean`}},
		"an old setting of wrong type": {[]string{image, `rpc_max_attempts = "x"`},
			[]string{`3:1: rpc_max_attempts must be a number that isn't negative`}},
		"an old setting below zero": {[]string{image, `rpc_max_attempts = -1`},
			[]string{`3:1: rpc_max_attempts must be a number that isn't negative`}},
		"an old setting, infinite": {[]string{image, `rpc_request_timeout_secs = inf`},
			[]string{`3:1: rpc_request_timeout_secs must be a number that isn't negative`}},
		"an old setting, nan": {[]string{image, `rpc_request_timeout_secs = nan`},
			[]string{`3:1: rpc_request_timeout_secs must be a number that isn't negative`}},
		"ports that are no list": {[]string{image, `port_mappings = 80`},
			[]string{`3:1: port_mappings must be an array of tables { host = …, container = … }, not an integer`}},
		"ports as docker has them": {[]string{image, `port_mappings = ["80:80"]`},
			[]string{`3:18: port_mappings holds tables { host = …, container = … }, not a string`}},
		"ports in a list in a list": {[]string{image, `port_mappings = [[{ host = 1, container = 1 }]]`},
			[]string{`3:1: port_mappings holds tables { host = …, container = … }, not an array`}},
		"port 0": {[]string{image, `port_mappings = [{ host = 0, container = 1 }]`},
			[]string{`3:20: host must be 1 to 65535, not 0`}},
		"port 65536": {[]string{image, `port_mappings = [{ host = 1, container = 65536 }]`},
			[]string{`3:30: container must be 1 to 65535, not 65536`}},
		"port -1": {[]string{image, `port_mappings = [{ host = -1, container = 1 }]`},
			[]string{`3:20: host must be 1 to 65535, not -1`}},
		"port 65616, mod 80": {[]string{image, `port_mappings = [{ host = 65616, container = 80 }]`},
			[]string{`3:20: host must be 1 to 65535, not 65616`}},
		"a quoted port": {[]string{image, `port_mappings = [{ host = "80", container = 1 }]`},
			[]string{`3:20: host must be an integer, not a string`}},
		"half a mapping":   {[]string{image, `port_mappings = [{ host = 80 }]`}, []string{`3:18: port_mappings: container is missing`}},
		"an empty mapping": {[]string{image, `port_mappings = [{}]`}, []string{`3:18: port_mappings: host is missing`, `3:18: port_mappings: container is missing`}},
		"a mapping of an early generation": {[]string{image, `port_mappings = [{ src = 80, dst = 80 }]`}, []string{
			`3:18: port_mappings: host is missing`, `3:18: port_mappings: container is missing`,
			`3:20: unknown key "src" in port_mappings; the keys are host, container`,
			`3:30: unknown key "dst" in port_mappings; the nearest known one is "host"`,
		}},
		"a host port twice": {[]string{image, `port_mappings = [{ host = 80, container = 80 },`, ` { host = 80, container = 81 }]`},
			[]string{`4:4: host port 80 is mapped twice`}},
		"mappings as tables": {[]string{image, `[[launcher_config.port_mappings]]`, `host = 80`, `container = 80`,
			`[[launcher_config.port_mappings]]`, `host = 80`, `container = 70000`, `hots = 1`},
			[]string{`7:1: host port 80 is mapped twice`, `8:1: container must be 1 to 65535, not 70000`,
				`9:1: unknown key "hots" in port_mappings; the nearest known one is "host"`}},
		"image and image_reference": {[]string{image, `image_reference = "nearone/mpc-node-gcp"`},
			[]string{`2:1: image_reference and image have different values: keep image_reference`}},
		"different tags": {[]string{`image = "x:1"`, `image_reference = "x:2"`},
			[]string{`2:1: image_reference and image have different values: keep image_reference`}},
		"different registries": {[]string{image, `image_reference = "ghcr.io/nearone/mpc-node"`},
			[]string{`2:1: image_reference and image have different values: keep image_reference`}},
		"image and image_name": {[]string{image, `image_name = "nearone/mpc-node-gcp"`},
			[]string{`3:1: image and image_name have different values: keep image_reference`}},
		"image_reference and image_name": {[]string{`image_reference = "x"`, `registry = "ghcr.io"`, `image_name = "x"`},
			[]string{`4:1: image_reference and image_name have different values: keep image_reference`}},
		"image and registry": {[]string{image, `registry = "ghcr.io"`}, []string{`3:1: image and registry have different values: keep image_reference`}},
		"image and image_tags": {[]string{`image = "x:1"`, `image_tags = ["2", "3"]`},
			[]string{`3:1: image and image_tags have different values: keep image_reference`}},
		"image_name with a tag": {[]string{`image_name = "x:1"`, `image_tags = ["2"]`},
			[]string{`3:1: image_name and image_tags have different values: keep image_reference`}},
		"a registry alone": {[]string{`registry = "ghcr.io"`}, []string{`1:2: image_reference is missing`}},
		"tags alone":       {[]string{`image_tags = ["x"]`}, []string{`1:2: image_reference is missing`}},
		"a registry of another name": {[]string{`registry = "quay.io"`, `image_name = "ghcr.io/x/y"`},
			[]string{`3:1: image_name: "ghcr.io/x/y" is not in registry "quay.io"`}},
		"a registry without a dot": {[]string{`registry = "harbor"`, `image_name = "x/y"`},
			[]string{`2:1: registry: "harbor" has neither a dot nor a port, so Docker would read it as a part of the name`}},
		"an empty registry": {[]string{`registry = ""`, `image_name = "x/y"`},
			[]string{`2:1: registry: "" has neither a dot nor a port, so Docker would read it as a part of the name`}},
		"a registry with a scheme": {[]string{`registry = "https://ghcr.io"`, `image_name = "x/y"`},
			[]string{`2:1: registry: "https://ghcr.io" is not registry[:port]`}},
		"a registry with a path": {[]string{`registry = "ghcr.io/x"`, `image_name = "y"`},
			[]string{`2:1: registry: "ghcr.io/x" is not registry[:port]`}},
		"a bad image_name": {[]string{`registry = "ghcr.io"`, `image_name = "a b"`},
			[]string{`3:1: image_name: "ghcr.io/a b" is not [registry[:port]/]name[:tag]`}},
		"a bad name in its registry": {[]string{`registry = "ghcr.io"`, `image_name = "ghcr.io/X"`},
			[]string{`3:1: image_name: "ghcr.io/X" has capitals: the name of an image has none`}},
		"a bad tag": {[]string{`image_name = "x"`, `image_tags = ["a b"]`},
			[]string{`3:1: image_tags holds something that is not a tag`}},
		"a tag that is a number": {[]string{`image_name = "x"`, `image_tags = [3]`},
			[]string{`3:1: image_tags holds something that is not a tag`}},
		"tags as a string": {[]string{`image_name = "x"`, `image_tags = "main"`},
			[]string{`3:1: image_tags must be an array, not a string`}},
		"everything at once": {[]string{`pull_max_retries = "many"`, `imge = "x"`, `port_mappings = [{ host = 0, container = 0 }]`, `mpc_hash_override = "x"`},
			[]string{
				`1:2: image_reference is missing`,
				`2:1: pull_max_retries must be an integer, not a string`,
				`3:1: unknown key "imge" in [launcher_config]; the nearest known one is "image"`,
				`4:20: host must be 1 to 65535, not 0`,
				`4:30: container must be 1 to 65535, not 0`,
				`5:1: mpc_hash_override: "x" is not sha256: and 64 lower-case hex digits, 71 characters: it has 1`,
			}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var want []string
			for _, w := range test.want {
				want = append(want, file+":"+w)
			}
			assert.Equal(t, want, problems(t, with(test.lines...), config.TEE))
		})
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	const launcher, node = "[launcher_config]\nimage = \"x\"\n", "[mpc_node_config]\n"
	for name, test := range map[string]struct {
		text     string
		problems []string
		warnings []string
	}{
		"nothing":    {text: "", problems: []string{`1:1: table [launcher_config] is missing`, `1:1: table [mpc_node_config] is missing`}},
		"a comment":  {text: "# nothing\n", problems: []string{`1:1: table [launcher_config] is missing`, `1:1: table [mpc_node_config] is missing`}},
		"only ours":  {text: launcher, problems: []string{`1:1: table [mpc_node_config] is missing`}},
		"only its":   {text: node, problems: []string{`1:1: table [launcher_config] is missing`}},
		"both":       {text: node + launcher},
		"inline":     {text: "mpc_node_config = { a = 1 }\nlauncher_config = { image = \"x\" }\n"},
		"dotted":     {text: "mpc_node_config.a = 1\nlauncher_config.image = \"x\"\n"},
		"quoted":     {text: "[\"launcher_config\"]\n'image' = \"x\"\n[ 'mpc_node_config' ]\n"},
		"ours not":   {text: "launcher_config = \"x\"\n" + node, problems: []string{`1:1: launcher_config must be a table, not a string`}},
		"its not":    {text: "mpc_node_config = 1\n" + launcher, problems: []string{`1:1: mpc_node_config must be a table, not an integer`}},
		"ours twice": {text: "[[launcher_config]]\nimage = \"x\"\n" + node, problems: []string{`1:3: launcher_config must be a table, not an array`}},
		"misspelt": {text: "[launcher-config]\nimage = \"x\"\n" + node, problems: []string{
			`1:1: table [launcher_config] is missing`, `1:2: unknown table or key "launcher-config"; the nearest known one is [launcher_config]`}},
		"another letter case": {text: "[Launcher_Config]\nimage = \"x\"\n" + node, problems: []string{
			`1:1: table [launcher_config] is missing`, `1:2: unknown table or key "Launcher_Config"; the nearest known one is [launcher_config]`}},
		"another generation's name": {text: launcher + "[mpc_config.node]\na = 1\n", problems: []string{
			`1:1: table [mpc_node_config] is missing`, `3:2: unknown table or key "mpc_config"; the nearest known one is [mpc_node_config]`}},
		"no header": {text: "image = \"x\"\n" + node, problems: []string{
			`1:1: table [launcher_config] is missing`, `1:1: image belongs in [launcher_config]`}},
		"something beside": {text: launcher + node + "[docker_command_config]\nx = 1\n", warnings: []string{
			`4:2: ignored: unknown table or key "docker_command_config"; the nearest known one is [mpc_node_config]`}},
		"a setting too high up": {text: "mpc_hash_override = \"x\"\n" + launcher + node, warnings: []string{
			`1:1: ignored: mpc_hash_override belongs in [launcher_config]`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := func(lines []string) (whole []string) {
				for _, line := range lines {
					whole = append(whole, file+":"+line)
				}
				return whole
			}
			if test.problems != nil {
				assert.Equal(t, want(test.problems), problems(t, test.text, config.TEE))
				return
			}
			_, warnings := parse(t, test.text)
			assert.Equal(t, want(test.warnings), warnings)
		})
	}
}

func TestWarningsComeWithProblems(t *testing.T) {
	t.Parallel()
	_, warnings, err := config.Parse(file, []byte(with(`image_name = "x"`, `y = 1`)), config.TEE)
	require.Error(t, err)
	require.Len(t, warnings, 1)
	assert.Equal(t, 2, warnings[0].Line)
}

func TestManyProblemsAreNotAllShown(t *testing.T) {
	t.Parallel()
	var lines []string
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("unknown_%d = 1", i))
	}
	_, _, err := config.Parse(file, []byte(with(append(lines, `image = "x"`)...)), config.TEE)
	var typed config.Problems
	require.ErrorAs(t, err, &typed)
	assert.Len(t, typed, 1000)
	shown := strings.Split(err.Error(), "\n")
	require.Len(t, shown, 51)
	assert.Equal(t, "and 950 more", shown[50])
}

func TestParsePlatform(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"TEE", "NONTEE"} {
		p, err := config.ParsePlatform(s)
		require.NoError(t, err)
		assert.Equal(t, config.Platform(s), p)
	}
	for _, s := range []string{"", "tee", "Tee", "nontee", "NonTee", " TEE", "TEE\n", "NON-TEE", "SGX", strings.Repeat("x", 1<<20)} {
		p, err := config.ParsePlatform(s)
		require.Error(t, err)
		assert.Zero(t, p)
		assert.Less(t, len(err.Error()), 500)
	}
}
