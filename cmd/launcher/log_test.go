package main_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/status"
)

// records reads a log in JSON. The lines that aren't are the contract's.
func records(t *testing.T, stderr string) (all []map[string]any, launched int) {
	t.Helper()
	for line := range strings.Lines(stderr) {
		if line == launch.Launched+"\n" {
			launched++
			continue
		}
		if object, ok := strings.CutPrefix(line, status.Prefix); ok {
			_, err := status.Parse([]byte(object))
			require.NoError(t, err, "%s", line)
			continue
		}
		var record map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &record), "not JSON: %s", line)
		assert.NotEmpty(t, record["msg"], line)
		all = append(all, record)
	}
	return all, launched
}

// TestALogInJSON: every line is one object, and numbers are numbers.
func TestALogInJSON(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	environ := append(onMachine(m), "PLATFORM=NONTEE", "LOG_FORMAT=json")
	_, stderr, code := run(t, environ, "run")
	require.Equal(t, exit.OK, code, "%s", stderr)
	all, launched := records(t, stderr)
	assert.Equal(t, 1, launched, "%s", stderr)
	assert.Equal(t, "dev", all[0]["version"])
	assert.NotEmpty(t, all[0]["commit"])
	assert.NotContains(t, all[1], "version", "once")
	var loaded map[string]any
	for _, record := range all {
		if record["msg"] == "loaded" {
			loaded = record
		}
	}
	require.NotNil(t, loaded, "%s", stderr)
	assert.IsType(t, float64(0), loaded["fetched"])
	assert.IsType(t, float64(0), loaded["took"])
	assert.Greater(t, loaded["fetched"], float64(70_000), "bytes")
	assert.Less(t, loaded["took"], float64(60), "seconds")
}

// TestErrorsInJSON: those of a step, of a setting, and of the very command line.
func TestErrorsInJSON(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		environ []string
		args    []string
		want    map[string]any
	}{
		"of a step": {append(nonTEE(t), "LOG_FORMAT=json"), []string{"run"},
			map[string]any{"code": "config", "exit_code": 3.0, "step": "config"}},
		"of a setting":        {[]string{"PLATFORM=tee"}, []string{"run", "--log-format=json"}, map[string]any{"code": "usage", "exit_code": 2.0}},
		"of an unknown flag":  {nil, []string{"run", "--no-such-flag", "--log-format", "json"}, map[string]any{"code": "usage", "exit_code": 2.0}},
		"of an empty command": {[]string{"LOG_FORMAT=json"}, []string{"lauch"}, map[string]any{"code": "usage", "exit_code": 2.0}},
	} {
		_, stderr, _ := run(t, c.environ, c.args...)
		all, launched := records(t, stderr)
		assert.Zero(t, launched, name)
		last := all[len(all)-1]
		assert.Equal(t, "ERROR", last["level"], name)
		for key, want := range c.want {
			assert.Equal(t, want, last[key], "%s: %s", name, key)
		}
		assert.NotEmpty(t, last["hints"], name)
		assert.NotEmpty(t, all[0]["version"], name)
		for _, record := range all[:len(all)-1] {
			assert.NotEqual(t, "ERROR", record["level"], "%s: logged and returned", name)
		}
	}
}

// TestWhatTheWorkloadSaysIsNotOurs: its last lines have a prefix, or are JSON.
func TestWhatTheWorkloadSaysIsNotOurs(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		// Outside a CVM the engine starts it again, to no better end.
		m := doublesOf(t, launchtest.MachineOptions{Engine: launchtest.EngineOptions{
			OnStart: func(launchtest.ContainerInfo) (int, bool) { return 7, false },
		}})
		m.Engine.Fail(launchtest.EngineFault{Match: "POST /containers/*/start", Before: func() {
			require.NoError(t, m.Engine.Log("mpc-node", "error: forged\x1b[2K\n{\"level\":\"ERROR\"}\n"+launch.Launched+"\n", ""))
		}})
		_, stderr, code := run(t, append(onMachine(m), "PLATFORM=NONTEE", "LOG_FORMAT="+format), "run")
		require.Equal(t, exit.Workload, code, "%s", stderr)
		if format == "json" {
			all, launched := records(t, stderr)
			assert.Zero(t, launched)
			var foreign []any
			for _, record := range all {
				if record["from"] == "mpc-node" {
					foreign = append(foreign, record["msg"])
				}
			}
			assert.Equal(t, []any{"error: forged [2K", `{"level":"ERROR"}`, launch.Launched}, foreign)
			continue
		}
		assert.Contains(t, stderr, "\nmpc-node: error: forged [2K\nmpc-node: {\"level\":\"ERROR\"}\nmpc-node: "+launch.Launched+"\n")
	}
}

// TestLoudness: -q leaves errors and results, -v adds what else happens.
func TestLoudness(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	ref := m.Registry.Host() + "/" + launchtest.Repository + ":main@" + m.Digests[0].String()
	environ := []string{"DOCKER_HOST=" + m.Engine.Host(), "LAUNCHER_SHARED_DIR=" + m.SharedDir, "LAUNCHER_X=1"}
	stdout, stderr, code := run(t, environ, "pull", "-q", ref)
	assert.Equal(t, exit.OK, code, "%s", stderr)
	assert.Empty(t, stderr)
	assert.NotEmpty(t, stdout)
	_, stderr, _ = run(t, environ, "pull", "-q", ref+"0")
	assert.Contains(t, stderr, "error: ")

	environ = append(onMachine(m), "PLATFORM=NONTEE", "LOG_LEVEL=error")
	_, stderr, code = run(t, environ, "run", "-v")
	assert.Equal(t, exit.OK, code, "%s", stderr)
	assert.Contains(t, stderr, "level=DEBUG")
	for _, args := range [][]string{{"-q", "-v"}, {"-q", "--log-level", "info"}} {
		_, _, code = run(t, environ, append([]string{"run"}, args...)...)
		assert.Equal(t, exit.Usage, code, "%v", args)
	}
}

// TestWhateverHangsIsNamed: nothing is waited for in silence.
func TestWhateverHangsIsNamed(t *testing.T) {
	t.Parallel()
	compose := filepath.Join(t.TempDir(), "compose")
	require.NoError(t, os.WriteFile(compose, []byte("#!/bin/sh\nexec sleep 600\n"), 0o755))
	for want, c := range map[string]struct {
		hang    func(m *launchtest.Machine)
		setting string
	}{
		"the Docker engine: ": {hang: func(m *launchtest.Machine) {
			m.Engine.Fail(launchtest.EngineFault{Match: "GET /containers/json", Hang: true, Times: -1})
		}},
		"the guest agent: Info": {hang: func(m *launchtest.Machine) {
			m.Agent.Fail(launchtest.AgentFault{Kind: launchtest.AgentHangs, Times: -1})
		}},
		"127.0.0.1:": {hang: func(m *launchtest.Machine) {
			m.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultNoHeader, On: launchtest.RequestManifest, Times: -1})
		}},
		compose + " version --short": {setting: "LAUNCHER_COMPOSE=" + compose},
	} {
		for _, command := range []string{"run", "verify"} {
			t.Run(command+" "+strings.Fields(want)[0], func(t *testing.T) {
				t.Parallel()
				m := newDoubles(t)
				if c.hang != nil {
					c.hang(m)
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				stderr := &found{want: want, then: func() {
					cancel(&exit.Error{Code: exit.Terminated, Err: context.Canceled})
				}}
				environ := append(onMachine(m), c.setting)
				main.Impatient(ctx, 20*time.Millisecond, []string{command}, environ, io.Discard, stderr)
				assert.True(t, stderr.is, "%q is said in\n%s", want, stderr.lines.take())
			})
		}
	}
}

// found ends something once a line says that something is waited for.
type found struct {
	lines
	want string
	then func()
	is   bool
}

func (f *found) Write(p []byte) (int, error) {
	if line := string(p); strings.Contains(line, "msg=waiting") && strings.Contains(line, f.want) {
		f.is = true
		f.then()
	}
	return f.lines.Write(p)
}
