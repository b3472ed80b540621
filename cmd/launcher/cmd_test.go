package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// TestMain lets the test binary play Compose, which the launcher runs as a process, and launchers
// with an environment and a stderr of their own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "launcher" {
		os.Args = os.Args[1:]
		main.Main()
	}
	if len(os.Args) > 1 && os.Args[1] == "compose-double" {
		syscall.Exit(launchtest.ComposeMain(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == "launchers" {
		syscall.Exit(launchAll())
	}
	dir, err := os.MkdirTemp("", "launcher-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv(commonDir, dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// commonDir is the variable with a directory of this run of the tests, for what several of them
// use.
const commonDir = "LAUNCHER_TEST_DIR"

const zeros = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func run(t *testing.T, environ []string, args ...string) (stdout, stderr string, code exit.Code) {
	t.Helper()
	var out, errs bytes.Buffer
	code = main.Run(t.Context(), args, environ, strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

// nonTEE is an environment in which every required setting is there, and nothing else exists.
func nonTEE(t *testing.T) []string {
	dir := t.TempDir()
	return []string{
		"PLATFORM=NONTEE", "DOCKER_CONTENT_TRUST=1", "DEFAULT_IMAGE_DIGEST=" + zeros, "LAUNCHER_CONFIG=" + filepath.Join(dir, "user_config"),
		"LAUNCHER_SHARED_DIR=" + dir, "DOCKER_HOST=unix://" + dir + "/docker.sock", "LAUNCHER_COMPOSE=/nonexistent/compose",
	}
}

func TestMistakesInSettingsAreReportedTogether(t *testing.T) {
	t.Parallel()
	for _, command := range [][]string{{}, {"run"}, {"verify"}} {
		stdout, stderr, code := run(t, []string{"PLATFORM=tee", "DOCKER_HOST=tcp://127.0.0.1:2375", "LOG_LEVEL=loud", "LAUNCHER_PROGRESS=1"}, command...)
		assert.Equal(t, exit.Usage, code, "%v", command)
		assert.Equal(t, slices.Contains(command, "verify"), stdout != "", "%v: only verify has a result: what it found", command)
		for _, name := range []string{"PLATFORM", "DEFAULT_IMAGE_DIGEST", "DOCKER_CONTENT_TRUST", "DOCKER_HOST", "LOG_LEVEL", "LAUNCHER_PROGRESS"} {
			if slices.Contains(command, "verify") {
				assert.Equal(t, 1, strings.Count(stdout, " error: "+name), "%s once in\n%s", name, stdout)
				assert.NotContains(t, stderr, name, "it is among the findings")
				continue
			}
			assert.Equal(t, 1, strings.Count(stderr, "error: "+name), "%s once in\n%s", name, stderr)
		}
		if slices.Contains(command, "verify") {
			assert.Equal(t, "error: run would end with exit code 2\n", stderr)
			continue
		}
		assert.Contains(t, stderr, "hint: ")
	}
}

func TestSettingsTakeExactlyWhatTheContractSays(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		set  string
		fine bool
	}{
		{"PLATFORM=TEE", true}, {"PLATFORM=NONTEE", true}, {"PLATFORM=Tee", false}, {"PLATFORM= TEE", false}, {"PLATFORM=", false},
		{"DEFAULT_IMAGE_DIGEST=" + zeros, true}, {"DEFAULT_IMAGE_DIGEST=" + strings.ToUpper(zeros), false},
		{"DEFAULT_IMAGE_DIGEST=" + zeros[:70], false}, {"DEFAULT_IMAGE_DIGEST=" + zeros + "0", false},
		{"DEFAULT_IMAGE_DIGEST=" + strings.Replace(zeros, "0", "A", 1), false}, {"DEFAULT_IMAGE_DIGEST=sha512:00", false},
		{"DOCKER_CONTENT_TRUST=1", true}, {"DOCKER_CONTENT_TRUST=0", false}, {"DOCKER_CONTENT_TRUST=true", false},
		{"LAUNCHER_SUPERVISE=on", true}, {"LAUNCHER_SUPERVISE=yes", false},
		{"DOCKER_HOST=unix:///run/docker.sock", true}, {"DOCKER_HOST=ssh://host", false}, {"DOCKER_HOST=unix://run/docker.sock", false},
		{"LAUNCHER_INSECURE_REGISTRIES=a.example:5000,b.example", true}, {"LAUNCHER_INSECURE_REGISTRIES=http://a.example", false},
		{"LAUNCHER_REPORT=none", true}, {"LAUNCHER_REPORT=report.json", true},
		{"LOG_FORMAT=json", true}, {"LOG_FORMAT=xml", false}, {"LAUNCHER_PROGRESS=none", true}, {"LAUNCHER_PROGRESS=1", false},
	} {
		environ := append(nonTEE(t), c.set) // the last one counts
		_, stderr, code := run(t, environ, "verify", "--config", "/nonexistent")
		if c.fine {
			assert.NotEqual(t, exit.Usage, code, "%s\n%s", c.set, stderr)
		} else {
			assert.Equal(t, exit.Usage, code, "%s\n%s", c.set, stderr)
		}
	}
}

func TestAMisspeltVariableIsAWarning(t *testing.T) {
	t.Parallel()
	environ := append(nonTEE(t), "LAUNCHER_SHARED_DRI=/x", "LAUNCHER_E=1", "MY_LAUNCHER_CONFIG=1", "LAUNCHER_COMPOSE=/nonexistent")
	_, stderr, _ := run(t, environ, "run")
	assert.Equal(t, 2, strings.Count(stderr, "is not a setting and is ignored"), "%s", stderr)
	assert.Contains(t, stderr, "LAUNCHER_SHARED_DRI is not a setting and is ignored; the nearest one is LAUNCHER_SHARED_DIR")
}

func TestAFlagGoesBeforeTheEnvironment(t *testing.T) {
	t.Parallel()
	_, stderr, code := run(t, nonTEE(t), "run", "--shared-dir", "/nonexistent")
	assert.Equal(t, exit.Config, code)
	assert.Contains(t, stderr, "error: settings: shared directory: open /nonexistent: no such file or directory\n")
	assert.Contains(t, stderr, "hint: ")
}

func TestUnknownWords(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"lauch"}, {"run", "now"}, {"--no-such-flag"}, {"version", "-o", "yaml"}} {
		stdout, stderr, code := run(t, nil, args...)
		assert.Equal(t, exit.Usage, code, "%v: %s", args, stderr)
		assert.Empty(t, stdout, "%v", args)
		assert.Equal(t, 1, strings.Count(stderr, "error: "), "%v: %s", args, stderr)
	}
}

// TestOnALaptop: what acts says that it needs Linux, before it asks for a setting; what looks works.
func TestOnALaptop(t *testing.T) {
	t.Parallel()
	log := filepath.Join("..", "..", "testdata", "verdicts", "00-good-tcb.json")
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "`launcher` needs Linux"},
		{[]string{"run"}, "`launcher run` needs Linux"},
		{[]string{"pull", "mpc-node@" + zeros}, "`launcher pull` needs Linux"},
		{[]string{"rtmr3", "--event-log", log}, ""},
		{[]string{"version"}, ""},
		{[]string{"--version"}, ""},
	} {
		var stdout, stderr bytes.Buffer
		code := main.RunOn(t.Context(), "darwin", c.args, &stdout, &stderr)
		if c.want == "" {
			assert.Equal(t, exit.OK, code, "%v: %s", c.args, &stderr)
			assert.NotEmpty(t, stdout.String(), "%v", c.args)
			continue
		}
		assert.Equal(t, exit.Usage, code, "%v", c.args)
		assert.Contains(t, stderr.String(), "error: "+c.want+"\nhint: on this machine `launcher verify ")
		assert.Empty(t, stdout.String(), "%v", c.args)
	}
}

func TestARefusalIsSaidOnce(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, nonTEE(t), "run")
	assert.Equal(t, exit.Config, code)
	assert.Empty(t, stdout, "results only")
	assert.Equal(t, 1, strings.Count(stderr, "error: config: user config: "), "%s", stderr)
	assert.Equal(t, 1, strings.Count(stderr, "hint: "), "%s", stderr)
	assert.NotContains(t, stderr, "level=ERROR", "logged and returned")
}

func TestVersion(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, nil, "version", "-o", "json")
	assert.Equal(t, exit.OK, code)
	assert.Empty(t, stderr)
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(stdout), &got))
	assert.Equal(t, "mpc-image-digest", got["event"])
	assert.EqualValues(t, 1, got["event_version"])
	stdout, _, _ = run(t, nil, "version")
	assert.True(t, strings.HasPrefix(stdout, "launcher "), "%s", stdout)
}

func TestVerifyGoesOnAfterAFailureAndEndsAsRunWould(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := run(t, nonTEE(t), "verify")
	assert.Equal(t, exit.Config, code)
	assert.Contains(t, stdout, "FAIL  user config")
	assert.Contains(t, stdout, "FAIL  engine")
	assert.Contains(t, stderr, "error: run would end with exit code 3\n")
}

func TestCompletionKnowsTheValues(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"run", "--platform", ""}, []string{"TEE", "NONTEE"}},
		{[]string{"--supervise", ""}, []string{"auto", "on", "off"}},
		{[]string{"version", "--output", ""}, []string{"text", "json"}},
		{[]string{"ver"}, []string{"verify", "version"}},
	} {
		stdout, _, code := run(t, nil, append([]string{"__complete"}, c.args...)...)
		assert.Equal(t, exit.OK, code)
		for _, want := range c.want {
			assert.Contains(t, stdout, want+"", "%v", c.args)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		stdout, _, code := run(t, nil, "completion", shell)
		assert.Equal(t, exit.OK, code)
		assert.Contains(t, stdout, "launcher")
	}
}

func TestEverySettingHasAFlagHelpAndARow(t *testing.T) {
	t.Parallel()
	help, _, code := run(t, nil, "run", "--help")
	assert.Equal(t, exit.OK, code)
	for _, row := range main.Settings() {
		assert.Contains(t, help, "--"+row.Flag+" ", "%s", row.Flag)
		assert.Contains(t, help, "[$"+row.Env, "%s", row.Flag)
	}
	assert.Len(t, main.Settings(), 25, "the contract has so many")
}

func TestAnEndedContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(&exit.Error{Code: exit.Terminated, Err: context.Canceled})
	var out, errs bytes.Buffer
	code := main.Run(ctx, []string{"run"}, nonTEE(t), strings.NewReader(""), &out, &errs)
	assert.Equal(t, exit.Terminated, code)
}

// TestPullTo stages an image on a disk, without an engine, from which a node boots without any network.
func TestPullTo(t *testing.T) {
	t.Parallel()
	m, err := launchtest.NewMachine(launchtest.MachineOptions{Images: 1})
	require.NoError(t, err)
	defer m.Close()
	ref := m.Registry.Host() + "/" + launchtest.Repository + ":main@" + m.Digests[0].String()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	layout := filepath.Join(dir, "images")
	stdout, stderr, code := run(t, []string{"DOCKER_HOST=unix:///nonexistent"}, "pull", "--to", "oci:"+layout, ref)
	require.Equal(t, exit.OK, code, "%s", stderr)
	assert.Equal(t, m.Digests[0].String()+"\n", stdout)
	assert.Empty(t, m.Effects.Effects())
	assert.FileExists(t, filepath.Join(layout, "index.json"))
	assert.FileExists(t, filepath.Join(layout, "oci-layout"))

	require.NoError(t, m.Registry.Stop())
	stdout, stderr, code = run(t, nil, "digest", "oci:"+layout)
	require.Equal(t, exit.OK, code, "%s", stderr)
	assert.Equal(t, m.Digests[0].String()+"\n", stdout)
	_, stderr, code = run(t, nil, "digest", "oci:"+layout+"/none")
	assert.Equal(t, exit.Refused, code, "%s", stderr)
	require.NoError(t, m.Configure("[[launcher_config.sources]]\nlayout = \""+layout+"\"", ""))
	environ := append(onMachine(m), "PLATFORM=NONTEE", "LAUNCHER_SUPERVISE=off")
	_, stderr, code = run(t, environ, "run")
	require.Equal(t, exit.OK, code, "%s", stderr)
	report, err := os.ReadFile(m.Shared("launcher/report.json"))
	require.NoError(t, err)
	assert.Contains(t, string(report), `"source": "`+layout+`"`)

	require.NoError(t, m.Registry.Start())
	for to, want := range map[string]exit.Code{"images": exit.Usage, "oci:": exit.Usage, "oci:/proc/none": exit.Config} {
		stdout, _, code := run(t, nil, "pull", "--to", to, ref)
		assert.Equal(t, want, code, to)
		assert.Empty(t, stdout)
	}
}

func TestPull(t *testing.T) {
	t.Parallel()
	m, err := launchtest.NewMachine(launchtest.MachineOptions{Images: 1})
	require.NoError(t, err)
	defer m.Close()
	ref := m.Registry.Host() + "/" + launchtest.Repository + ":main@" + m.Digests[0].String()
	environ := []string{"DOCKER_HOST=" + m.Engine.Host(), "LAUNCHER_SHARED_DIR=" + m.SharedDir}

	stdout, stderr, code := run(t, environ, "pull", "-o", "json", ref)
	require.Equal(t, exit.OK, code, "%s", stderr)
	var got struct {
		Image struct {
			Digest  string `json:"digest"`
			ImageID string `json:"image_id"`
			Layers  int    `json:"layers"`
		} `json:"image"`
		Pull struct {
			Source       string `json:"source"`
			BytesFetched int64  `json:"bytes_fetched"`
		} `json:"pull"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &got), "%s", stdout)
	assert.Equal(t, m.Digests[0].String(), got.Image.Digest)
	assert.Equal(t, 3, got.Image.Layers)
	assert.Equal(t, "registry", got.Pull.Source)
	assert.Positive(t, got.Pull.BytesFetched)
	assert.Equal(t, []string{"load"}, m.Effects.Effects())

	require.NoError(t, m.Registry.Stop()) // what was kept is enough now
	again, stderr, code := run(t, environ, "pull", ref)
	require.Equal(t, exit.OK, code, "%s", stderr)
	assert.Equal(t, got.Image.ImageID+"\n", again, "the engine's image ID and nothing else")
	assert.Equal(t, []string{"load"}, m.Effects.Effects())

	for _, bad := range []string{"", "nearone/mpc-node", "nearone/mpc-node@sha256:00", "a b@" + zeros, "@" + zeros, zeros} {
		stdout, _, code := run(t, environ, "pull", bad)
		assert.Equal(t, exit.Usage, code, "%q", bad)
		assert.Empty(t, stdout)
	}
}
