package compose_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

var update = flag.Bool("update", false, "write the golden files anew")

func tee() compose.Workload {
	return compose.Workload{
		Reference: "nearone/mpc-node:main", Digest: digest.Digest(bytes.Repeat([]byte{0xab}, 32)),
		Ports: []compose.Port{{Host: 11780, Container: 11780}, {Host: 24567, Container: 24566}},
		Agent: "/var/run/dstack.sock", Supervised: true,
	}
}

func nontee() compose.Workload {
	w := tee()
	w.Agent, w.Supervised, w.Ports = "", false, nil
	return w
}

// TestRenderGolden: the files are what a deployed workload was created from. A change recreates
// every container there is.
func TestRenderGolden(t *testing.T) {
	t.Parallel()
	for name, w := range map[string]compose.Workload{"tee.yaml": tee(), "nontee.yaml": nontee()} {
		got, err := w.Render("sha256:" + strings.Repeat("cd", 32))
		require.NoError(t, err)
		path := filepath.Join("..", "..", "testdata", "compose", name)
		if *update {
			require.NoError(t, os.WriteFile(path, got, 0o644))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got), name)
	}
}

// TestNoTextBecomesStructure: whatever stands in a text, the document keeps its shape and its other
// values.
func TestNoTextBecomesStructure(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"a: b", "x\n    privileged: true", "${HOME}", "$HOME", "$$", "'\"", "- x", "# c", "&a *a", "!!binary aGk=", "no", "1e3", "\x00", "{}", "|", "🦀",
	} {
		w := tee()
		w.Reference, w.Agent = text, "/"+text
		data, err := w.Render("sha256:" + strings.Repeat("cd", 32))
		require.NoError(t, err)
		var got, want map[string]any
		require.NoError(t, yaml.Unmarshal(data, &got), "%q", text)
		reference, err := tee().Render("sha256:" + strings.Repeat("cd", 32))
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(reference, &want))
		escaped := strings.ReplaceAll(text, "$", "$$")
		service := want["services"].(map[string]any)["mpc-node"].(map[string]any)
		service["labels"].(map[string]any)["tee-launcher.reference"] = escaped
		service["volumes"].([]any)[3].(map[string]any)["source"] = "/" + escaped
		assert.Equal(t, want, got, "%q", text)
	}
}

// proved returns the ID of an image that was proved in an engine double; there is no other way to
// one.
func proved(t *testing.T) inspect.ImageID {
	t.Helper()
	dir, err := os.MkdirTemp("", "compose") // short: a socket's path has to fit into 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	double, err := launchtest.NewEngine(filepath.Join(dir, "docker.sock"), launchtest.EngineOptions{})
	require.NoError(t, err)
	defer double.Close()
	hub, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	defer hub.Close()
	layers, err := launchtest.RandomLayers(1, 100)
	require.NoError(t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(t, err)
	ref, err := hub.Push("nearone/mpc-node", img)
	require.NoError(t, err)
	source := new(registry.Client).Source(ref)
	v, err := source.Resolve(t.Context())
	require.NoError(t, err)
	engine, err := docker.New(double.Host())
	require.NoError(t, err)
	loaded, err := engine.Load(t.Context(), v, source, docker.LoadOptions{})
	require.NoError(t, err)
	return loaded.ID
}

func TestFindTakesNoComposeBelowVersion2(t *testing.T) {
	t.Parallel()
	double := os.Args[0] + " compose-double "
	tool, err := compose.Find(t.Context(), double, "unix:///nonexistent", nil, nil)
	require.NoError(t, err)
	assert.Equal(t, launchtest.ComposeVersion, tool.Version())
	for name, command := range map[string]string{"old": double + "--fail=old", "missing": "/nonexistent/compose", "blank": " "} {
		_, err := compose.Find(t.Context(), command, "unix:///nonexistent", nil, nil)
		require.Error(t, err, name)
		assert.Equal(t, exit.Workload, exit.Of(err), name)
		assert.NotEmpty(t, exit.Hints(err), name)
	}
}

// TestNoComposeOfAnybodys is found, nor does Compose find a program of theirs. PATH is the process's, so
// this test isn't parallel.
func TestNoComposeOfAnybodys(t *testing.T) {
	dir := t.TempDir()
	theirs, ours := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
	for path, version := range map[string]string{theirs: "6.6.6", ours: "2.0.0"} {
		require.NoError(t, os.Mkdir(path, 0o755))
		text := "#!/bin/sh\n[ \"$PATH\" = " + ours + " ] && echo " + version
		require.NoError(t, os.WriteFile(filepath.Join(path, "docker-compose"), []byte(text), 0o755))
	}
	t.Setenv("PATH", theirs+":"+ours+":.")
	for _, command := range []string{"", "docker-compose"} {
		tool, err := compose.Find(t.Context(), command, "unix:///nonexistent", []string{theirs}, nil)
		require.NoError(t, err)
		assert.Equal(t, "2.0.0", tool.Version())
		assert.Equal(t, "docker-compose", tool.String())
		_, err = compose.Find(t.Context(), command, "unix:///nonexistent", []string{dir}, nil)
		assert.ErrorContains(t, err, exec.ErrNotFound.Error())
		assert.Equal(t, exit.Workload, exit.Of(err))
	}
}

// TestAFailedComposeIsReportedOnce: with its command, its exit status and the end of its output, on
// one line.
func TestAFailedComposeIsReportedOnce(t *testing.T) {
	t.Parallel()
	id := proved(t)
	tool, err := compose.Find(t.Context(), os.Args[0]+" compose-double --fail=noise", "unix:///nonexistent", nil, nil)
	require.NoError(t, err)
	err = tool.Create(t.Context(), tee(), id)
	var failure *compose.Error
	require.ErrorAs(t, err, &failure)
	assert.Contains(t, failure.Command, "compose-double --fail=noise --ansi never -p mpc-node -f - up --no-start")
	assert.Contains(t, err.Error(), "exit status 1")
	assert.NotContains(t, err.Error(), "\n")
	assert.Less(t, len(err.Error()), 6000, "the output is trimmed")
	assert.NotContains(t, failure.Summary(), failure.Output)
	assert.Error(t, tool.Create(t.Context(), tee(), inspect.ImageID{}), "no proved image")
}

// TestAComposeThatHangsEndsWithTheContext, and so does what it started.
func TestAComposeThatHangsEndsWithTheContext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, script := filepath.Join(dir, "pipe"), filepath.Join(dir, "compose")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	text := "exec 3>" + pipe + "; echo >&3; sleep 1000 & wait\n"
	require.NoError(t, os.WriteFile(script, []byte(text), 0o600))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("told to stop")
	gone := make(chan error, 1)
	go func() {
		hangs, err := os.Open(pipe)
		if err == nil {
			defer hangs.Close()
			_, err = hangs.Read(make([]byte, 1))
			cancel(why)
		}
		if err == nil {
			_, err = hangs.Read(make([]byte, 1))
		}
		gone <- err
	}()
	_, err := compose.Find(ctx, "sh "+script, "unix:///nonexistent", nil, nil)
	assert.ErrorIs(t, err, why)
	assert.ErrorIs(t, <-gone, io.EOF, "nobody has its pipe any more")
}

// TestComposeInheritsNothing, so that a launcher that is killed leaves nothing open in it, least of
// all its lock.
func TestComposeInheritsNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	held, err := files.OpenDir(dir)
	require.NoError(t, err)
	defer held.Close()
	impatient := func(context.Context, time.Duration) error { return files.ErrLocked }
	require.NoError(t, held.Lock(t.Context(), impatient))
	below, err := held.Sub("launcher")
	require.NoError(t, err)
	defer below.Close()
	list := filepath.Join(dir, "list")
	script := filepath.Join(dir, "compose")
	text := "for f in /proc/$$/fd/*; do readlink $f; done >" + list + "; echo 2.0.0\n"
	require.NoError(t, os.WriteFile(script, []byte(text), 0o600))
	_, err = compose.Find(t.Context(), "sh "+script, "unix:///nonexistent", nil, nil)
	require.NoError(t, err)
	data, err := os.ReadFile(list)
	require.NoError(t, err)
	targets := strings.Fields(string(data))
	assert.Contains(t, targets, list, "it is this shell's list")
	assert.NotContains(t, targets, dir)
	assert.NotContains(t, targets, filepath.Join(dir, "launcher"))
}

// TestMain lets the test binary play Compose.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "compose-double" {
		syscall.Exit(launchtest.ComposeMain(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}
