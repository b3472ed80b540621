package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// secrets is a node table with something secret in every kind of value, key and table. Each piece is unlike anything else.
const secrets = `
string = "s3cret-string"
multiline = """
s3cret-multiline"""
literal = 's3cret-literal'
integer = 918273645546372819
float = 918273.6455463
infinite = inf
date = 1918-02-03
time = 19:18:27.918273
local = 1918-02-03T19:18:27.918273
offset = 1918-02-03T19:18:27.918273+09:18
array = ["s3cret-array", ["s3cret-nested"]]
inline = { x = "s3cret-inline" }
"s3cret key" = true
a."s3cret dotted".b = "s3cret-dotted"
[mpc_node_config.table]
key = "s3cret-table"
[[mpc_node_config.tables]]
key = "s3cret-tables"
`

// planted is what must not be found anywhere but in the node config.
func planted() []string {
	return []string{"s3cret", "918273645546372819", "918273.6455463", "18:27.918273", "1918-02-03"}
}

// TestNoSecretOfTheNodeIsEverShown boots, verifies and fails in many ways, and searches all that came out of it.
func TestNoSecretOfTheNodeIsEverShown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		node    string
		arrange func(*testing.T, *launchtest.Machine)
		compose string
		code    exit.Code
	}{
		"a boot": {code: exit.OK},
		"a node that doesn't stay": {code: exit.Workload, arrange: func(_ *testing.T, m *launchtest.Machine) {
			m.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", Times: -1, Status: 500, Message: "no"})
		}},
		"a compose that fails":   {code: exit.Workload, compose: " --fail=noise"},
		"a registry that fails":  {code: exit.Unavailable, arrange: func(_ *testing.T, m *launchtest.Machine) { m.Registry.Stop() }},
		"a reserved key":         {code: exit.Config, node: "Tee = \"s3cret-tee\"\n"},
		"a blocked table":        {code: exit.Config, node: "[mpc_node_config.GCP]\nx = \"s3cret-gcp\"\n"},
		"broken TOML":            {code: exit.Config, node: "x = \"s3cret-open\n"},
		"a value that is none":   {code: exit.Config, node: "x = s3cret\n"},
		"a key twice":            {code: exit.Config, node: "string = \"s3cret\"\n"},
		"a number that is none":  {code: exit.Config, node: "x = 918273_\n"},
		"a date that is none":    {code: exit.Config, node: "x = 1918-99-99\n"},
		"no end to a table name": {code: exit.Config, node: "[s3cret\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, err := launchtest.NewMachine(launchtest.MachineOptions{})
			require.NoError(t, err)
			defer m.Close()
			require.NoError(t, m.Configure("", c.node+secrets))
			if c.arrange != nil {
				c.arrange(t, m)
			}
			environ := []string{
				"PLATFORM=TEE", "DOCKER_CONTENT_TRUST=1", "DEFAULT_IMAGE_DIGEST=" + m.Digests[0].String(), "LAUNCHER_CONFIG=" + m.ConfigFile,
				"LAUNCHER_SHARED_DIR=" + m.SharedDir, "LAUNCHER_DSTACK_SOCKET=" + m.AgentSocket, "DOCKER_HOST=" + m.Engine.Host(),
				"LAUNCHER_COMPOSE=" + os.Args[0] + " compose-double" + c.compose, "LOG_LEVEL=debug",
			}
			var all strings.Builder
			for _, args := range [][]string{{"verify"}, {"run"}, {"run", "--log-format", "json"}} {
				stdout, stderr, code := runUntilSupervised(t, environ, args...)
				all.WriteString(stdout + stderr)
				if args[0] == "run" {
					assert.Equal(t, c.code, code, "%s", stderr)
				}
			}
			found := 0
			require.NoError(t, filepath.WalkDir(m.SharedDir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				data, err := os.ReadFile(path)
				if filepath.Base(path) == "mpc-config.toml" {
					found = strings.Count(string(data), "s3cret")
					return err
				}
				all.WriteString("\n" + path + "\n" + string(data))
				return err
			}))
			if c.code == exit.OK {
				assert.Equal(t, strings.Count(secrets, "s3cret"), found, "the node gets all of it")
			}
			for _, secret := range planted() {
				assert.NotContains(t, all.String(), secret)
			}
			assert.NotEmpty(t, all.String())
		})
	}
}

// runUntilSupervised is run, ended by a signal where the launcher has come as far as supervising the workload.
func runUntilSupervised(
	t *testing.T, environ []string, args ...string,
) (stdout, stderr string, code exit.Code) {
	t.Helper()
	var out bytes.Buffer
	ctx, errs := once(t.Context())
	code = main.Run(ctx, args, environ, strings.NewReader(""), &out, errs)
	return out.String(), errs.all.String(), code
}

// once returns a context that ends when a launcher writes there that it supervises, or that an attempt
// failed and it waits: then with what it failed with.
func once(parent context.Context) (context.Context, *until) {
	ctx, cancel := context.WithCancelCause(parent)
	errs := &until{text: "supervising", failed: cancel}
	errs.do = func() { cancel(&exit.Error{Code: exit.Terminated, Err: errors.New("ended by signal")}) }
	return ctx, errs
}

// attemptFailed is what is written then, in both formats of the log.
var attemptFailed = regexp.MustCompile(`the attempt failed, trying again"[ ,].*` +
	`exit_code"?[=:](\d+)[ ,]"?error"?[=:]("(?:[^"\\]|\\.)*"|\S+)[ ,].*"?step"?[=:]"?(\w+)"?[ ,]`)

// until does something when a text is written.
type until struct {
	text   string
	do     func()
	failed func(error) // gets what an attempt failed with; nil: nobody does
	mu     sync.Mutex
	all    bytes.Buffer
}

func (u *until) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n, err := u.all.Write(p)
	if bytes.Contains(u.all.Bytes(), []byte(u.text)) {
		u.do()
	}
	if m := attemptFailed.FindSubmatch(u.all.Bytes()); m != nil && u.failed != nil {
		code, err := strconv.Atoi(string(m[1]))
		text, unquoted := strconv.Unquote(string(m[2]))
		if unquoted != nil {
			text = string(m[2])
		}
		u.failed(&exit.Error{Code: exit.Code(code), Err: errors.Join(err, fmt.Errorf("%s: %s", m[3], text))})
	}
	return n, err
}
