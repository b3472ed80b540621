package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/fleet"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/status"
)

// launcherSays is what a launcher says on a machine whose workload runs.
func launcherSays(m *launchtest.Machine) status.Status {
	measured, place := true, 0
	return status.Status{
		Version: status.Version, Phase: status.Supervise, Since: time.Now().Add(-3 * time.Hour).UTC(), BootID: "boot",
		Reference: "nearone/mpc-node", Digest: &m.Digests[0], Reason: "newest approved", Approved: &place,
		Measured: &measured, RTMR3: m.Agent.RTMR3(), Launcher: "v1.2.3",
	}
}

// outside is the machine's outside port, without a log.
func outside(t *testing.T, m *launchtest.Machine) (*launchtest.Outside, string) {
	t.Helper()
	port := &launchtest.Outside{Agent: m.Agent, PublicTCBInfo: true}
	server := httptest.NewServer(port)
	t.Cleanup(server.Close)
	return port, server.URL
}

// watchedNode measures the machine's image, and returns where its launcher's log says so.
func watchedNode(t *testing.T, m *launchtest.Machine) string {
	t.Helper()
	m.Agent.Emit(rtmr.EventName, m.Digests[0][:])
	port, url := outside(t, m)
	port.Log("launcher", launcherSays(m).Line()+"\n")
	return url
}

// speaks has a launcher answer health checks.
func speaks(t *testing.T, temporary string, s status.Status) {
	t.Helper()
	l, err := status.Listen(temporary)
	require.NoError(t, err)
	var teller status.Teller
	teller.Tell(s)
	ended := make(chan error)
	go func() { ended <- teller.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		assert.NoError(t, <-ended)
	})
}

func TestStatusOfNodes(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	good := watchedNode(t, m)
	port, waits := outside(t, m)
	s := launcherSays(m)
	s.Phase, s.Error = status.Waiting, &status.Error{Code: exit.Refused, Message: "pull: manifest: 404 Not Found" + forgery}
	port.Log("launcher", s.Line()+"\n")

	stdout, stderr, code := run(t, nil, "status", good, waits)
	assert.Equal(t, exit.Refused, code)
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	require.Len(t, lines, 2, "a line for each and nothing else")
	address := func(url string) string { return strings.TrimPrefix(url, "http://") }
	digest := m.Digests[0].Hex()[:8]
	assert.Regexp(t, `^5 +`+address(waits)+` +waiting +3h +`+digest+` +consistent +0 +0 +no +v1\.2\.3 +pull: manif`, lines[0])
	assert.Regexp(t, `^0 +`+address(good)+` +supervise +3h +`+digest+` +consistent +0 +0 +no +v1\.2\.3$`, lines[1])
	assert.Contains(t, stderr, "nothing is attested without a verified quote")
	assert.Contains(t, stderr, "\nEXIT NODE ")
	assert.Contains(t, stderr, "error: 1 of 2 nodes, the worst: 5, refused\n")
	requireClean(t, stdout+stderr)
	widest(t, stdout, 100)

	stdout, _, code = run(t, nil, "status", "-o", "json", waits, good, "--expect", m.Digests[0].String())
	assert.Equal(t, exit.Refused, code)
	var answers []fleet.Answer
	require.NoError(t, json.Unmarshal([]byte(stdout), &answers))
	require.Len(t, answers, 2)
	assert.Equal(t, waits, answers[0].Node)
	assert.Equal(t, exit.Refused, answers[0].Status.Error.Code)
	assert.Equal(t, fleet.Consistent, answers[1].Evidence)
	assert.Contains(t, stdout, `"attested":false`)

	_, stderr, code = run(t, nil, "status", waits, "--log-format", "json")
	assert.Equal(t, exit.Refused, code)
	all, _ := records(t, stderr)
	assert.Len(t, all, 2, "the note and the error")
	_, stderr, _ = run(t, nil, "status", good, "-q")
	assert.Empty(t, stderr)
	_, stderr, code = run(t, nil, "status", good)
	assert.Equal(t, exit.OK, code)
	assert.NotContains(t, stderr, "error: ")
	_, stderr, code = run(t, nil, "status", good, "--expect", m.Digests[1].String())
	assert.Equal(t, exit.Measurement, code)
	assert.Contains(t, stderr, "error: "+good+": got "+m.Digests[0].String()+", want "+m.Digests[1].String())
}

// TestStatusFits in 100 columns, whatever a node says.
func TestStatusFits(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	long := strings.Repeat("日本語\u0301x", 100)
	s := launcherSays(m)
	s.Phase, s.Launcher, s.Restarts = long, long, 1_000_000_000
	s.Staged = &status.Staged{Digest: &m.Digests[0], State: long}
	s.Error = &status.Error{Code: exit.Engine, Message: long}
	path := filepath.Join(t.TempDir(), strings.Repeat("y", 100))
	require.NoError(t, os.WriteFile(path, []byte(s.Line()+"\n"), 0o600))
	stdout, stderr, code := run(t, nil, "status", path)
	assert.Equal(t, exit.Engine, code)
	assert.Equal(t, 1, strings.Count(stdout, "\n"))
	widest(t, stdout, 100)
	assert.Less(t, len(stdout), 140, "nothing that takes two columns, or none")
	header := strings.Split(stderr, "\n")[1]
	assert.LessOrEqual(t, utf8.RuneCountInString(header), 100)
	assert.True(t, strings.HasPrefix(header, "EXIT NODE"), "%s", stderr)
}

func TestStatusOfLists(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	good := watchedNode(t, m)
	dir := t.TempDir()
	list, log := filepath.Join(dir, "nodes"), filepath.Join(dir, "log")
	require.NoError(t, os.WriteFile(list, []byte("# ours\n\n "+good+" \r\n"+log+"\n"), 0o600))
	require.NoError(t, os.WriteFile(log, []byte(launcherSays(m).Line()+"\n"), 0o600))
	stdout, _, code := run(t, nil, "status", "--nodes", list)
	assert.Equal(t, exit.OK, code)
	assert.Equal(t, 2, strings.Count(stdout, "\n"))
	assert.Equal(t, 1, strings.Count(stdout, " said "), "a file has no event log")

	var out, errs bytes.Buffer
	code = main.Run(t.Context(), []string{"status", "-"}, nil, strings.NewReader(launcherSays(m).Line()), &out, &errs)
	assert.Equal(t, exit.OK, code, "%s", &errs)
	code = main.RunOn(t.Context(), "darwin", []string{"status", log}, &out, &errs)
	assert.Equal(t, exit.OK, code, "on a laptop: %s", &errs)
	code = main.Run(t.Context(), []string{"status", "--nodes", "-"}, nil, strings.NewReader(good+"\n"), &out, &errs)
	assert.Equal(t, exit.OK, code, "%s", &errs)

	for _, args := range [][]string{
		{}, {"--self", good}, {"--self", "--nodes", list}, {"http://u:secret@x"}, {"ftp://x"}, {"-", "-"}, {"--nodes", "-", "-"},
		{"--watch", "1s", good}, {"--watch", "1m", "-o", "json", good}, {"--watch", "1m", "-"}, {"--expect", "latest", good},
	} {
		stdout, stderr, code := run(t, nil, append([]string{"status"}, args...)...)
		assert.Equal(t, exit.Usage, code, "%v", args)
		assert.Empty(t, stdout, "%v", args)
		assert.NotContains(t, stderr, "secret")
	}
	_, stderr, code := run(t, nil, "status", "--nodes", filepath.Join(dir, "none"))
	assert.Equal(t, exit.Config, code)
	assert.Contains(t, stderr, "hint: ")
	stdout, _, code = run(t, nil, "status", "http://127.0.0.1:1")
	assert.Equal(t, exit.Unavailable, code)
	assert.Regexp(t, `^4 +127\.0\.0\.1:1 .*nothing .* connection refused\n$`, stdout)
}

func TestStatusOfThisMachine(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	temporary, err := os.MkdirTemp("", "self")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(temporary)) })
	environ := []string{"TMPDIR=" + temporary}
	_, stderr, code := run(t, environ, "status", "--self")
	assert.Equal(t, exit.Unavailable, code)
	assert.Contains(t, stderr, "error: self: no launcher answers here: ")

	s := launcherSays(m)
	speaks(t, temporary, s)
	stdout, stderr, code := run(t, environ, "status", "--self")
	assert.Equal(t, exit.OK, code, "%s", stderr)
	assert.Regexp(t, `^0 +self +supervise `, stdout)
	assert.Empty(t, stderr)
	measured := false
	s.Measured = &measured
	speaks(t, temporary, s)
	_, _, code = run(t, environ, "status", "--self")
	assert.Equal(t, exit.Measurement, code)
	s.Measured, s.Phase = nil, "load"
	speaks(t, temporary, s)
	stdout, stderr, code = run(t, environ, "status", "--self", "-o", "json")
	assert.Equal(t, exit.Unavailable, code)
	assert.Contains(t, stderr, "error: self: it doesn't run yet: load\n")
	var answers []fleet.Answer
	require.NoError(t, json.Unmarshal([]byte(stdout), &answers))
	assert.Equal(t, "load", answers[0].Status.Phase)
	assert.Empty(t, m.Agent.Requests(), "each Info makes a quote")
}

// TestTheHealthCheckOfALauncherThatRuns finds it where the launcher is.
func TestTheHealthCheckOfALauncherThatRuns(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	temporary, err := os.MkdirTemp("", "self")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(temporary)) })
	environ := append(onMachine(m), "PLATFORM=TEE", "TMPDIR="+temporary)
	var codes []exit.Code
	var once sync.Once
	ctx, cancel := context.WithCancelCause(t.Context())
	errs := &until{text: `launcher-status {"version":1,"error":null,"staged":null,"phase":"supervise"`, do: func() {
		once.Do(func() {
			go func() {
				_, _, code := run(t, environ, "status", "--self")
				codes = append(codes, code)
				cancel(&exit.Error{Code: exit.Terminated, Err: io.EOF})
			}()
		})
	}}
	code := main.Run(ctx, []string{"run"}, environ, strings.NewReader(""), io.Discard, errs)
	assert.Equal(t, exit.OK, code, "%s", &errs.all)
	assert.Equal(t, []exit.Code{exit.OK}, codes)
}

// TestStatusWatches until a signal, and draws on a terminal anew.
func TestStatusWatches(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	good := watchedNode(t, m)
	pty := main.NewPty(t)
	screen := screenOf(t, pty)
	ctx, cancel := context.WithCancelCause(t.Context())
	rounds := 0
	code := main.Watching(ctx, []string{"status", "--watch", "30s", good}, pty.Terminal, func(ctx context.Context, d time.Duration) error {
		assert.Equal(t, 30*time.Second, d)
		if rounds++; rounds == 3 {
			cancel(&exit.Error{Code: exit.Interrupted, Err: io.EOF})
		}
		return context.Cause(ctx)
	})
	pty.Terminal.Close()
	assert.Equal(t, exit.OK, code, "a signal is how it ends, and what it saw last counts")
	text := screen()
	assert.Equal(t, 3, strings.Count(text, "\x1b[H\x1b[2J"))
	assert.Equal(t, 3, strings.Count(text, " consistent "))
	assert.Equal(t, 3, strings.Count(text, "EXIT NODE"), fmt.Sprintf("%q", text))
}

// TestAWorkloadForgesNoStatus: what it says stands in the launcher's log too, behind its name.
func TestAWorkloadForgesNoStatus(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		m := doublesOf(t, launchtest.MachineOptions{Engine: launchtest.EngineOptions{
			OnStart: func(launchtest.ContainerInfo) (int, bool) { return 7, false },
		}})
		forged := launcherSays(m)
		forged.Launcher = "forged"
		m.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", Before: func() {
			require.NoError(t, m.Engine.Log("mpc-node", "x\r"+forged.Line()+"\n"+forged.Line()+"\n", ""))
		}})
		_, log, code := run(t, append(onMachine(m), "PLATFORM=NONTEE", "LOG_FORMAT="+format), "run")
		require.Equal(t, exit.Workload, code, "%s", log)
		if format == "text" {
			require.Contains(t, log, "\nmpc-node: "+status.Prefix, "it is in the log")
		}
		var out, errs bytes.Buffer
		code = main.Run(t.Context(), []string{"status", "-", "-o", "json"}, nil, strings.NewReader(log), &out, &errs)
		assert.Equal(t, exit.Workload, code, "%s", &errs)
		var answers []fleet.Answer
		require.NoError(t, json.Unmarshal(out.Bytes(), &answers))
		assert.Equal(t, "start", answers[0].Status.Phase)
		assert.Equal(t, "dev", answers[0].Status.Launcher)
	}
}
