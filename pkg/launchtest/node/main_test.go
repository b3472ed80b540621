package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// output collects what a program writes while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

type node struct {
	out        output
	terminated chan os.Signal
	exited     chan int
}

func start(t *testing.T, data, config string) *node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mpc-config.toml")
	require.NoError(t, os.WriteFile(path, []byte(config), 0o600))
	n := &node{terminated: make(chan os.Signal, 1), exited: make(chan int, 1)}
	go func() { n.exited <- run([]string{"start-with-config-file", path}, data, n.terminated, &n.out, &n.out) }()
	return n
}

// patience bounds every wait: nothing takes so long, on whatever machine.
const patience = 2 * time.Minute

func (n *node) says(t *testing.T, text string) {
	t.Helper()
	said := func() bool { return strings.Contains(n.out.String(), text) }
	require.Eventually(t, said, patience, time.Millisecond, "%q", text)
}

func (n *node) code(t *testing.T) int {
	t.Helper()
	select {
	case code := <-n.exited:
		return code
	case <-time.After(patience):
		require.Fail(t, "it still runs", n.out.String())
		return -1
	}
}

const tee = "[tee]\nimage_hash = \"sha256:abc\"\n"

func TestRunsUntilItIsTerminated(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	for i := range 2 {
		n := start(t, data, "home_dir = \"/data\"\n"+tee)
		n.says(t, fmt.Sprintf(`start %d, image_hash = "sha256:abc"`, i+1))
		n.terminated <- syscall.SIGTERM
		assert.Zero(t, n.code(t))
	}
	starts, err := os.ReadFile(filepath.Join(data, "starts"))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(starts)), "\n")
	require.Len(t, lines, 2, "one line for each start")
	assert.Regexp(t, `^[0-9a-f-]{36} 20\d\d-`, lines[0], "boot and time")
}

func TestBehaviours(t *testing.T) {
	t.Parallel()
	for config, code := range map[string]int{
		"exit_code = 3\n":                       3,
		"exit_after_ms = 20\n":                  0,
		"exit_code = 4\nexit_after_ms = 20\n":   4,
		"exit_code = junk\n":                    1,
		"listen = 70000\n":                      1,
		"a = [\n  1,\n  2\n]\nexit_code = 5 \n": 5,
	} {
		assert.Equal(t, code, start(t, t.TempDir(), config+tee).code(t), config)
	}
	assert.Equal(t, 1, start(t, t.TempDir(), "exit_code = 0\n").code(t), "a config without image_hash is none of the launcher's")
}

func TestIgnoresTermination(t *testing.T) {
	t.Parallel()
	n := start(t, t.TempDir(), "ignore_term = true\nlisten = 0\n"+tee)
	n.terminated <- syscall.SIGTERM
	n.says(t, "ignoring SIGTERM")
	n.order(t, "exit 6")
	assert.Equal(t, 6, n.code(t))
}

// order says a line to a node that listens, and returns what the node said before.
func (n *node) order(t *testing.T, line string) (greeting string) {
	t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+n.port(t))
	require.NoError(t, err)
	defer conn.Close()
	greeting, err = bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	_, err = fmt.Fprintln(conn, line)
	require.NoError(t, err)
	return greeting
}

// port is where the node listens, by its own word.
func (n *node) port(t *testing.T) string {
	t.Helper()
	n.says(t, "listening on port ")
	return regexp.MustCompile(`listening on port (\d+)\n`).FindStringSubmatch(n.out.String())[1]
}

func TestListens(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	n := start(t, data, "listen = 0\n"+tee)
	assert.Equal(t, "mpc-node: start 1\n", n.order(t, "stay"))
	taken := "listen = " + n.port(t) + "\n"
	assert.Equal(t, 1, start(t, t.TempDir(), taken+tee).code(t), "a taken port")
	assert.Equal(t, "mpc-node: start 1\n", n.order(t, "exit 7"))
	assert.Equal(t, 7, n.code(t))
	n = start(t, data, "listen = 0\n"+tee)
	assert.Equal(t, "mpc-node: start 2\n", n.order(t, "exit 0"))
	assert.Zero(t, n.code(t))
}

func TestRefusesOtherCommands(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"start"}, {"start-with-config-file"}, {"start-with-config-file", "/nosuch/file"}} {
		var out output
		assert.NotZero(t, run(args, t.TempDir(), nil, &out, &out), "%v", args)
		assert.NotEmpty(t, out.String())
	}
}
