package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
)

// TestHelpFits: in 80 columns where there is no terminal, and in those of a terminal.
func TestHelpFits(t *testing.T) {
	t.Parallel()
	for _, command := range append(main.Commands(), "") {
		args := append(strings.Fields(command), "--help")
		stdout, stderr, code := run(t, nil, args...)
		assert.Equal(t, exit.OK, code)
		assert.Empty(t, stderr)
		widest(t, stdout, 80)

		pty := main.NewPty(t)
		pty.Resize(t, 50)
		screen := screenOf(t, pty)
		main.Run(t.Context(), args, nil, strings.NewReader(""), pty.Terminal, io.Discard)
		pty.Terminal.Close()
		text, _, found := strings.Cut(strings.ReplaceAll(screen(), "\r", ""), "\nExamples:\n")
		assert.Equal(t, strings.Contains(stdout, "\nExamples:\n"), found)
		widest(t, text, 50)
	}
}

func widest(t *testing.T, text string, columns int) {
	t.Helper()
	for line := range strings.Lines(text) {
		assert.LessOrEqual(t, utf8.RuneCountInString(strings.TrimRight(line, "\n")), columns, "%s", line)
	}
}

// TestACommandHasTheFlagsThatItUses and no other.
func TestACommandHasTheFlagsThatItUses(t *testing.T) {
	t.Parallel()
	for command, flags := range map[string]string{
		"version":    "help output",
		"rtmr3":      "dstack-socket event-log expect help log-format log-level output predict quiet verbose",
		"digest":     "help insecure-registry log-format log-level output platform quiet shared-dir verbose",
		"pull":       "docker-host help insecure-registry log-format log-level output platform progress quiet shared-dir to verbose",
		"completion": "help",
	} {
		help, _, _ := run(t, nil, command, "--help")
		var got []string
		for _, match := range regexp.MustCompile(`(?m)^  (?:-., )?--([a-z0-9-]+)`).FindAllStringSubmatch(help, -1) {
			got = append(got, match[1])
		}
		assert.Equal(t, flags, strings.Join(got, " "), command)
	}
	_, stderr, code := run(t, nil, "pull", "--supervise", "on", "x@"+zeros)
	assert.Equal(t, exit.Usage, code)
	assert.Contains(t, stderr, "hint: --supervise belongs to run, verify, render\n")
}

func TestDidYouMean(t *testing.T) {
	t.Parallel()
	for typed, hint := range map[string]string{
		"verfy":            "hint: did you mean `launcher verify`?\n",
		"run --confg x":    "hint: did you mean --config?\n",
		"pull repo/name":   "hint: `launcher digest repo/name` says which digest it has now\n",
		"digest --verbos":  "hint: did you mean --verbose?\n",
		"verify --platfrm": "hint: did you mean --platform?\n",
		"help verfy":       "hint: did you mean `launcher verify`?\n",
		"completion bsh":   "hint: did you mean `launcher completion bash`?\n",
	} {
		_, stderr, code := run(t, nil, strings.Fields(typed)...)
		assert.Equal(t, exit.Usage, code, typed)
		assert.Contains(t, stderr, hint, typed)
	}
	_, stderr, _ := run(t, nil, "entirely-different")
	assert.NotContains(t, stderr, "did you mean")
}

func TestTheVersionFlag(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, nil, "--version")
	assert.Equal(t, exit.OK, code)
	assert.Empty(t, stderr)
	assert.Regexp(t, `^launcher dev \(commit .+\)\n$`, stdout)
}

// TestExamples runs the examples of the help as a shell does, in a directory with what they name.
// Only digests and references are others.
func TestExamples(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, command := range append(main.Commands(), "") {
		example := main.HelpExamples(command)
		if example == "" {
			assert.True(t, strings.HasPrefix(command, "completion"), "%s has no example", command)
			continue
		}
		seen++
		t.Run("launcher "+command, func(t *testing.T) {
			t.Parallel()
			m := newDoubles(t)
			dir := filepath.Dir(m.ConfigFile)
			voted := m.Digests[0].String()
			if command == "rtmr3" {
				voted = realImage
				asked(t, m, "Info", `{}`, filepath.Join(dir, "before.json"))
				asked(t, m, "EmitEvent", fmt.Sprintf(`{"event":"mpc-image-digest","payload":%q}`, voted[7:]), os.DevNull)
			}
			told := ""
			if command == "status" {
				told = watchedNode(t, m)
			}
			if command == "pull" || command == "digest" || command == "verify" {
				voted = both(t, m)
			}
			real, err := os.ReadFile(realLog)
			require.NoError(t, err)
			var document struct {
				AppCompose string `json:"app_compose"`
			}
			require.NoError(t, json.Unmarshal(real, &document))
			tool := func(text string) []byte { return []byte("#!/bin/sh\n" + text + "\n") }
			self, err := os.Executable()
			require.NoError(t, err)
			for file, data := range map[string][]byte{
				"tcb_info.json": real, "app-compose.json": []byte(document.AppCompose),
				"bin/launcher": tool("exec " + self + ` launcher "$@"`),
				"bin/curl":     tool("exec cat tcb_info.json"),
				"bin/jq":       tool("exec cat"),
				"bin/docker":   tool("exec cat log.txt"),
				"log.txt":      []byte(launcherSays(m).Line() + "\n"),
				"nodes.txt":    []byte("# ours\n" + told + "\n\n"),
			} {
				require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(dir, file), data, 0o755))
			}
			here := m.Registry.Host() + "/" + launchtest.Repository
			text := strings.NewReplacer("sha256:…", voted, "ghcr.io/nearone/mpc-node:3.9.0", here+":main",
				"ghcr.io/nearone/mpc-node", here, " nearone/mpc-node", " "+here,
				"http://node-1:8090", told, "http://node-2:8090", told).Replace(example)
			environ := []string{
				"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH"), "LAUNCHER_CONFIG=user_config", "LAUNCHER_SHARED_DIR=shared",
				"LAUNCHER_DSTACK_SOCKET=dstack.sock", "DOCKER_HOST=" + m.Engine.Host(), "LAUNCHER_COMPOSE=" + self + " compose-double",
			}
			if command == "status" {
				temporary, err := os.MkdirTemp("", "self")
				require.NoError(t, err)
				t.Cleanup(func() { assert.NoError(t, os.RemoveAll(temporary)) })
				environ = append(environ, "TMPDIR="+temporary)
				speaks(t, temporary, launcherSays(m))
			}
			if command == "" || command == "run" {
				environ = append(environ, "LAUNCHER_SUPERVISE=off") // so that it ends
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-euc", text)
			cmd.Dir, cmd.Env = dir, environ
			out, err := cmd.CombinedOutput()
			assert.NoError(t, err, "%s\n%s", text, out)
			if command == "" || command == "run" {
				assert.Contains(t, string(out), launch.Launched+"\n")
			}
		})
	}
	assert.Equal(t, 9, seen)
}

// both pushes an index with an image for each of two machines, and returns its digest.
func both(t *testing.T, m *launchtest.Machine) string {
	t.Helper()
	var images []v1.Image
	for i, architecture := range []string{"amd64", "arm64"} {
		images = append(images, testImage(t, uint64(100+10*i), architecture))
	}
	index, err := launchtest.Index(launchtest.IndexOptions{OCI: true, Images: images})
	require.NoError(t, err)
	ref, err := m.Registry.PushIndex(launchtest.Repository, index, "main")
	require.NoError(t, err)
	return ref.DigestStr()
}

// asked asks the guest agent, and writes down what it answers.
func asked(t *testing.T, m *launchtest.Machine, method, question, file string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", m.AgentSocket)
		},
		DisableKeepAlives: true,
	}}
	answer, err := client.Post("http://agent/"+method, "application/json", strings.NewReader(question))
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, http.StatusOK, answer.StatusCode)
	data, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, data, 0o600))
}

// TestTheImageOfAnotherPlatform: what PLATFORM says is about the machine, and not about images.
func TestTheImageOfAnotherPlatform(t *testing.T) {
	t.Parallel()
	m := newDoubles(t)
	index := both(t, m)
	repository := m.Registry.Host() + "/" + launchtest.Repository
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	environ := []string{"PLATFORM=TEE", "DOCKER_HOST=" + m.Engine.Host(), "LAUNCHER_SHARED_DIR=" + m.SharedDir}
	of := func(architecture string) string {
		stdout, stderr, code := run(t, environ, "digest", "--platform", "linux/"+architecture, repository+":main")
		require.Equal(t, exit.OK, code, "%s", stderr)
		assert.Empty(t, stderr)
		return strings.TrimSpace(stdout)
	}
	assert.NotEqual(t, of(runtime.GOARCH), of(other))
	assert.NotEqual(t, index, of(other))

	var described []struct {
		Digest    string
		Platforms []struct{ Platform, ConfigDigest string }
	}
	stdout, _, code := run(t, environ, "digest", "-o", "json", "--platform", "linux/"+other, repository+":main")
	require.Equal(t, exit.OK, code)
	require.NoError(t, json.Unmarshal([]byte(stdout), &described))
	assert.Equal(t, of(other), described[0].Digest)
	require.Len(t, described[0].Platforms, 1)
	assert.Equal(t, "linux/"+other, described[0].Platforms[0].Platform)

	native, stderr, code := run(t, environ, "pull", repository+"@"+index)
	require.Equal(t, exit.OK, code, "%s", stderr)
	foreign, stderr, code := run(t, environ, "pull", "--platform", "linux/"+other, repository+"@"+index)
	require.Equal(t, exit.OK, code, "%s", stderr)
	assert.NotEqual(t, native, foreign)
	again, stderr, code := run(t, environ, "pull", repository+"@"+index)
	require.Equal(t, exit.OK, code, "%s", stderr)
	assert.Equal(t, native, again)
	assert.Contains(t, stderr, "the engine has the image", "the other one didn't replace its cached manifest")

	_, _, code = run(t, environ, "digest", "--platform", "linux/s390x", repository+":main")
	assert.Equal(t, exit.Refused, code)
	_, stderr, code = run(t, environ, "pull", "--platform", "linux/s390x", repository+"@"+index)
	assert.Equal(t, exit.Refused, code, "%s", stderr)
	for _, wrong := range []string{"TEE", "linux", "linux/", "/arm64", "linux/arm64/v8"} {
		_, _, code = run(t, environ, "pull", "--platform", wrong, repository+"@"+index)
		assert.Equal(t, exit.Usage, code, wrong)
	}
}
