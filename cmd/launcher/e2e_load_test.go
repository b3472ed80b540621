//go:build e2e

package main_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

const mega = 1 << 20

// puller runs `launcher pull` against an engine.
type puller struct {
	t      *testing.T
	binary string
	shared string
	engine *ownEngine
}

func newPuller(t *testing.T, e *ownEngine) *puller {
	t.Helper()
	p := &puller{t: t, binary: filepath.Join(t.TempDir(), "launcher"), shared: t.TempDir(), engine: e}
	out, err := exec.Command("go", "build", "-o", p.binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return p
}

func (p *puller) start(ref name.Digest) (*exec.Cmd, *bytes.Buffer) {
	p.t.Helper()
	cmd := exec.Command(p.binary, "pull", ref.String())
	cmd.Env = []string{"DOCKER_HOST=" + p.engine.host(), "LAUNCHER_SHARED_DIR=" + p.shared, "HOME=/nonexistent"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(p.t, cmd.Start())
	return cmd, &stderr
}

// pull runs it to its end.
func (p *puller) pull(ref name.Digest) (exit.Code, string) {
	p.t.Helper()
	cmd, stderr := p.start(ref)
	_ = cmd.Wait() // the exit code says it
	return exit.Code(cmd.ProcessState.ExitCode()), stderr.String()
}

// images counts the engine's images, the nameless ones included.
func (p *puller) images() int {
	p.t.Helper()
	var list []json.RawMessage
	(&machine{t: p.t, host: p.engine.host()}).call("GET", "/images/json?all=1", nil, &list)
	return len(list)
}

func pushLayers(t *testing.T, r *launchtest.Registry, layers ...[]byte) name.Digest {
	t.Helper()
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(t, err)
	ref, err := r.Push("nearone/mpc-node", img)
	require.NoError(t, err)
	return ref
}

// TestE2EAnEngineThatRestartsInTheMiddleOfALoad: what it had by then is not fetched again, and nothing of the attempt stays.
func TestE2EAnEngineThatRestartsInTheMiddleOfALoad(t *testing.T) {
	e := newOwnEngine(t, false)
	p := newPuller(t, e)
	const size = 12 * mega
	r, err := launchtest.NewRegistry(launchtest.RegistryOptions{TotalRate: 6 * mega})
	require.NoError(t, err)
	defer r.Close()
	layers, err := launchtest.RandomLayers(1, size, size, size)
	require.NoError(t, err)
	ref := pushLayers(t, r, layers...)

	cmd, stderr := p.start(ref)
	// Until an image of the first layer is there, and the next one is on its way.
	require.Eventually(t, func() bool { return p.images() > 0 }, time.Minute, 10*time.Millisecond, "%s", stderr)
	time.Sleep(500 * time.Millisecond) // a containerd store shows an image before it has unpacked it and says so
	e.cut()
	time.Sleep(500 * time.Millisecond)
	e.start()
	_ = cmd.Wait()
	assert.Zero(t, cmd.ProcessState.ExitCode(), "%s", stderr)
	assert.Equal(t, 1, p.images(), "an image of our own making stays")
	// Beside what was under way when the plug was pulled.
	assert.Less(t, r.BlobBytes(), int64(3*size+2*size+mega), "the first layer was fetched again")

	before := len(r.Requests())
	code, _ := p.pull(ref)
	assert.Equal(t, exit.OK, code)
	assert.Len(t, r.Requests(), before, "the image is there, and its manifest is kept")
}

func TestE2EAFullDisk(t *testing.T) {
	e := newOwnEngine(t, false)
	p := newPuller(t, e)
	e.stop()
	data := filepath.Join(e.dir, "data")
	require.NoError(t, os.MkdirAll(data, 0o755))
	require.NoError(t, unix.Mount("tmpfs", data, "tmpfs", 0, "size=80m"))
	t.Cleanup(func() {
		e.cut()
		assert.NoError(t, unix.Unmount(data, unix.MNT_DETACH))
	})
	e.start()
	r, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	require.NoError(t, err)
	defer r.Close()
	free := func() int64 {
		var fs unix.Statfs_t
		require.NoError(t, unix.Statfs(data, &fs))
		return int64(fs.Bavail) * fs.Bsize
	}
	before := free()

	t.Run("that is seen before", func(t *testing.T) {
		if e.driver == "overlayfs" {
			return // a containerd store: where it keeps its images isn't told, and unknown is never a refusal
		}
		layers, err := launchtest.RandomLayers(1, 50*mega)
		require.NoError(t, err)
		ref := pushLayers(t, r, layers...)
		fetched := r.BlobBytes()
		code, stderr := p.pull(ref)
		assert.Equal(t, exit.Engine, code, "%s", stderr)
		assert.Contains(t, stderr, "has too little room: the image needs at least 104 MB, ")
		assert.Less(t, r.BlobBytes()-fetched, int64(10_000), "layers were fetched")
	})
	t.Run("that shows only when it is full", func(t *testing.T) {
		zeros, err := launchtest.FileLayer(launchtest.File{Path: "zeros", Data: make([]byte, 120*mega)})
		require.NoError(t, err)
		random, err := launchtest.RandomLayer(2, 9*mega)
		require.NoError(t, err)
		code, stderr := p.pull(pushLayers(t, r, random, zeros))
		assert.Equal(t, exit.Engine, code, "%s", stderr)
		assert.Contains(t, stderr, "no space left on device", "the engine's own words")
		assert.Contains(t, stderr, "hint: free space")
		assert.Zero(t, p.images())
		assert.InDelta(t, before, free(), 2*mega, "something is left on the disk")
	})
}
