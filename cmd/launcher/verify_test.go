package main_test

import (
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/rtmr"
)

// newMachine is a healthy machine whose port is free.
func newDoubles(t *testing.T) *launchtest.Machine {
	t.Helper()
	return doublesOf(t, launchtest.MachineOptions{})
}

func doublesOf(t *testing.T, options launchtest.MachineOptions) *launchtest.Machine {
	t.Helper()
	m, err := launchtest.NewMachine(options)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.Empty(t, m.Unexpected())
		assert.NoError(t, m.Close())
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	text, err := os.ReadFile(m.ConfigFile)
	require.NoError(t, err)
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	require.NoError(t, os.WriteFile(m.ConfigFile, []byte(strings.Replace(string(text), "11780", port, 1)), 0o600))
	return m
}

func TestVerifySaysWhatItWould(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	stdout, stderr, code := run(t, onMachine(m), "verify")
	require.Equal(t, exit.OK, code, "%s%s", stdout, stderr)
	assert.Empty(t, stderr)
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	assert.Equal(t, "run would succeed: download 72.8 kB, measure the image, start the workload.", lines[len(lines)-1])
	assert.NotContains(t, stdout, "\x1b", "a colour, and it isn't a terminal")
	assert.Contains(t, stdout, "\ndigest  "+m.Digests[0].String()+"\n")

	stdout, stderr, code = run(t, append(onMachine(m), "LAUNCHER_COMPOSE=/nonexistent"), "verify", "-o", "json")
	assert.Equal(t, exit.Workload, code)
	assert.Equal(t, "error: run would end with exit code 9\n", stderr)
	var report preflight.Report
	require.NoError(t, json.Unmarshal([]byte(stdout), &report))
	assert.Equal(t, preflight.ReportVersion, report.Version)
	assert.Equal(t, exit.Workload, report.ExitCode)
	assert.Empty(t, m.Effects.Effects())
}

func TestVerifyLeavesOut(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	environ := append(onMachine(m), "LAUNCHER_DSTACK_SOCKET=/nonexistent", "DOCKER_HOST=unix:///nonexistent", "LAUNCHER_COMPOSE=/nonexistent")
	_, _, code := run(t, environ, "verify")
	assert.Equal(t, exit.Engine, code)
	stdout, stderr, code := run(t, environ, "verify", "--skip", "agent,engine", "--skip", "compose")
	assert.Equal(t, exit.OK, code, "%s", stderr)
	assert.Contains(t, stdout, "\nNo error was found; not checked: engine, compose, agent.\n")
	require.NoError(t, m.Registry.Stop())
	_, _, code = run(t, environ, "verify", "--skip", "agent,engine,compose", "--offline")
	assert.Equal(t, exit.OK, code)

	for _, args := range [][]string{{"--skip", "agents"}, {"--skip", "settings"}, {"--skip", ""}, {"--offline", "--deep"}, {"now"}} {
		stdout, stderr, code := run(t, environ, append([]string{"verify"}, args...)...)
		assert.Equal(t, exit.Usage, code, "%v", args)
		assert.Empty(t, stdout, "%v", args)
		assert.Equal(t, 1, strings.Count(stderr, "error: "), "%v: %s", args, stderr)
	}
}

func TestVerifyReportsSettings(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	environ := append(onMachine(m), "PLATFORM=tee", "LAUNCHER_SHARED_DRI=x", "LAUNCHER_INSECURE_REGISTRIES=registry.example")
	stdout, stderr, code := run(t, environ, "verify")
	assert.Equal(t, exit.Usage, code)
	assert.Equal(t, "error: run would end with exit code 2\n", stderr, "what was found is on stdout")
	for _, want := range []string{"SET001 error: PLATFORM", "SET002 warning", "SET003 warning", "ok    user config", "ok    manifest"} {
		assert.Contains(t, stdout, want, "the others are checked nevertheless")
	}
}

func TestVerifyCompletion(t *testing.T) {
	t.Parallel()
	stdout, _, code := run(t, nil, "__complete", "verify", "--skip", "agent,")
	assert.Equal(t, exit.OK, code)
	assert.Contains(t, stdout, "agent,engine\n")
	assert.NotContains(t, stdout, "agent,agent")
	stdout, _, _ = run(t, nil, "__complete", "ver")
	assert.Contains(t, stdout, "verify")
	for _, command := range []string{"digest", "render", "verify"} {
		stdout, _, _ = run(t, nil, "__complete", command, "-o", "")
		assert.Contains(t, stdout, "json\n", command)
	}
}

// TestTheTextFits renders reports with anything in them and looks at the form.
func TestTheTextFits(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	hash := digest.Of([]byte("an image"))
	text := hash.String()
	reference := "registry.example:5000/" + strings.Repeat("deep/", 8) + "mpc-node@" + text
	report := preflight.Report{
		ExitCode: exit.Config, Summary: "run would end with exit code 3, config: CFG002, and 12 more errors.",
		Checks: []preflight.Result{
			{Check: "first", Status: preflight.OK, Detail: "short"}, {Check: "second", Status: preflight.OK, Detail: text + " (newest approved)"},
			{Check: "third", Status: preflight.Failed, Findings: []preflight.Finding{
				{Code: "CFG002", Severity: preflight.Error, Found: long + "\x1b[2J\u202e " + reference + ": manifest: 404\nsecond line → öäü", Fix: []string{"do " + text, ""}},
			}},
			{Check: "fourth", Status: preflight.OK, Findings: []preflight.Finding{{Code: "CFG003", Severity: preflight.Warning, Found: ""}}},
			{Check: "fifth", Status: preflight.Skipped, Detail: long}, {Check: "sixth", Status: preflight.Unchecked},
		},
		WouldRun: &preflight.WouldRun{Reference: reference, Digest: hash, ConfigDigest: &hash, ImageID: &hash, Reason: long,
			Event: &preflight.Event{Name: "mpc-image-digest", Payload: hash.Hex(), Digest: strings.Repeat("ab", 48)}},
	}
	plain := main.ReportText(&report, false)
	for line := range strings.Lines(plain) {
		line = strings.TrimSuffix(line, "\n")
		assert.LessOrEqual(t, utf8.RuneCountInString(line), 80, "%s", line)
		assert.Equal(t, strings.TrimRight(line, " "), line)
	}
	assert.Equal(t, 7, strings.Count(plain, text), "digests stay in one piece")
	assert.True(t, strings.HasSuffix(plain, "\n"+report.Summary+"\n"))
	assert.NotContains(t, plain, "\x1b")
	assert.NotContains(t, plain, "\u202e")
	coloured := main.ReportText(&report, true)
	assert.Contains(t, coloured, "\x1b[31mFAIL\x1b[0m")
	assert.Equal(t, plain, regexp.MustCompile("\x1b\\[[0-9]*m").ReplaceAllString(coloured, ""), "colours alone are added")
}

func TestColourIsForTerminals(t *testing.T) {
	t.Parallel()
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer file.Close()
	terminal := main.NewPty(t).Terminal
	assert.False(t, main.Colourful(file, nil))
	assert.True(t, main.Colourful(terminal, nil))
	assert.True(t, main.Colourful(terminal, []string{"NO_COLOR="}))
	assert.False(t, main.Colourful(terminal, []string{"NO_COLOR=1"}))
	assert.False(t, main.Colourful(terminal, []string{"TERM=dumb"}))
}

// sessions are what the README shows: a healthy machine, and one on which several things are wrong.
func sessions(t *testing.T) map[string]string {
	t.Helper()
	healthy, failing := newDoubles(t), newDoubles(t)
	unknown, err := digest.Parse("sha256:" + strings.Repeat("c0ffee00", 8))
	require.NoError(t, err)
	for _, m := range []*launchtest.Machine{healthy, failing} {
		_, err := m.Engine.Call(http.MethodPost, "/volumes/create", map[string]string{"Name": "mpc-data"})
		require.NoError(t, err)
	}
	require.NoError(t, failing.Approve(unknown, failing.Digests[0]))
	return map[string]string{
		"verify": session(t, healthy, onMachine(healthy)), "verify fails": session(t, failing, append(onMachine(failing), "LAUNCHER_COMPOSE="+os.Args[0]+" compose-double --fail=old")),
	}
}

// session is what verify prints on a machine, with its names in the place of ours: they would be different ones every time.
func session(t *testing.T, m *launchtest.Machine, environ []string) string {
	t.Helper()
	text, _, code := run(t, environ, "verify", "-o", "json")
	double := os.Args[0] + " compose-double"
	text = strings.NewReplacer( // in this order: the second command begins as the first one does
		double+" --fail=old", "docker-compose", double, "docker compose",
		m.Registry.Host(), "registry.example",
		m.SharedDir, "/mnt/shared", m.ConfigFile, "/tapp/user_config",
	).Replace(text)
	replace := func(old, by string) { text = strings.ReplaceAll(text, old, by) }
	var report preflight.Report
	require.NoError(t, json.Unmarshal([]byte(text), &report))
	// Digests depend on the architecture: those of amd64 are shown, and what follows from them.
	w := report.WouldRun
	shown, err := digest.Parse("sha256:b70298cd0ef1766fef6ae5248bf14b5d1ef21d07ee47cf0d7c98d5a6dbd43625")
	require.NoError(t, err)
	replace(m.Digests[0].Hex(), shown.Hex())
	if w.Digest == m.Digests[0] {
		replace(w.ConfigDigest.Hex(), "6c57480baf1467b87ecbad47f02502fb843a20e51a08fa0155f76f4893185d85")
		event := rtmr.DigestV1(rtmr.EventName, shown[:])
		before, err := hex.DecodeString(m.Agent.RTMR3())
		require.NoError(t, err)
		replace(w.Event.Digest, event.String())
		replace(*w.RTMR3, rtmr.Extend(rtmr.Register(before), event).String())
	}
	text = regexp.MustCompile(`linux/[a-z0-9]+`).ReplaceAllString(text, "linux/amd64")
	report = preflight.Report{}
	require.NoError(t, json.Unmarshal([]byte(text), &report))
	for i := range report.Checks {
		c := &report.Checks[i]
		switch {
		case c.Check == "space" && code == exit.OK:
			c.Status, c.Detail = preflight.OK, "41.3 GB free at /var/lib/docker"
		case c.Check == "lock":
			c.Status, c.Detail = preflight.OK, "free"
		}
	}
	return "```console\n$ launcher verify\n" + main.ReportText(&report, false) + "$ echo $?\n" + strconv.Itoa(int(code)) + "\n```\n"
}

// TestVerifyOnDstack06 says that there is another way to measure, and what that one lacks.
func TestVerifyOnDstack06(t *testing.T) {
	t.Parallel()
	m, err := launchtest.NewMachine(launchtest.MachineOptions{Agent: launchtest.AgentOptions{Release: "0.6.0"}})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	stdout, _, code := run(t, onMachine(m), "verify")
	assert.Equal(t, exit.Measurement, code)
	stdout = strings.Join(strings.Fields(stdout), " ") // it is wrapped
	for _, said := range []string{"AGT002", "LAUNCHER_MEASURE=native", "examples/compose-native.yaml", "vote on", "OS measurements"} {
		assert.Contains(t, stdout, said)
	}

	dir := t.TempDir()
	for _, args := range [][]string{
		{"verify", "--measure", "native", "--rtmr-dir", dir, "--runtime-log-dir", dir},
		{"run", "--measure", "native", "--rtmr-dir", dir, "--runtime-log-dir", dir},
	} {
		stdout, stderr, code := run(t, onMachine(m), args...)
		assert.Equal(t, exit.Measurement, code, "%v", args)
		said := strings.Join(strings.Fields(stdout+stderr), " ")
		assert.Contains(t, said, "- /run/log/dstack:/run/log/dstack")
		if args[0] == "verify" {
			assert.Contains(t, said, "NAT001")
			assert.Contains(t, said, "NAT003")
			assert.Contains(t, said, "- /sys/devices/virtual/misc/tdx_guest/measurements:/run/tsm")
		}
	}
	_, stderr, code := run(t, append(onMachine(m), "LAUNCHER_MEASURE=kernel"), "run")
	assert.Equal(t, exit.Usage, code)
	assert.Contains(t, stderr, "must be agent or native")
}
