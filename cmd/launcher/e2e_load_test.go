//go:build e2e

package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
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
	return &puller{t: t, binary: built(t), shared: t.TempDir(), engine: e}
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

// remove removes the engine's images and returns their IDs.
func (p *puller) remove() []string { return removeImages(p.t, p.engine) }

// pushLayers returns the image of these layers, and the blobs that they are.
func pushLayers(
	t *testing.T, r *launchtest.Registry, layers ...[]byte,
) (name.Digest, []v1.Descriptor) {
	t.Helper()
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(t, err)
	ref, err := r.Push("nearone/mpc-node", img)
	require.NoError(t, err)
	manifest, err := img.Manifest()
	require.NoError(t, err)
	return ref, manifest.Layers
}

// TestE2EAnEngineThatRestartsInTheMiddleOfALoad: what it had by then is not fetched again, and nothing of the attempt stays.
func TestE2EAnEngineThatRestartsInTheMiddleOfALoad(t *testing.T) {
	t.Parallel()
	e := newOwnEngine(t, false)
	p := newPuller(t, e)
	const size = 12 * mega
	r, err := launchtest.NewRegistry(launchtest.RegistryOptions{TotalRate: 6 * mega})
	require.NoError(t, err)
	defer r.Close()
	layers, err := launchtest.RandomLayers(1, size, size, size)
	require.NoError(t, err)
	ref, blobs := pushLayers(t, r, layers...)

	// The last layer stays on its way until the engine has an image of the first one, and says so.
	r.Fail(launchtest.RegistryFault{
		Kind: launchtest.FaultStall, On: launchtest.RequestBlob, Digest: blobs[2].Digest, Times: -1,
	})
	events := e.watch(t.Context(), url.Values{"filters": {`{"type":["image"],"event":["load"]}`}})
	defer events.Close()
	cmd, stderr := p.start(ref)
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		_, _ = bufio.NewReader(events).ReadByte()
	}()
	eventually(t, "the engine has a part of the image", func() bool { return closed(loaded) })
	e.cut()
	r.Heal()
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
	t.Parallel()
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
		ref, _ := pushLayers(t, r, layers...)
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
		ref, _ := pushLayers(t, r, random, zeros)
		code, stderr := p.pull(ref)
		assert.Equal(t, exit.Engine, code, "%s", stderr)
		assert.Contains(t, stderr, "no space left on device", "the engine's own words")
		assert.Contains(t, stderr, "hint: free space")
		assert.Zero(t, p.images())
		eventually(t, "nothing is left on the disk", func() bool { return free() > before-2*mega })
	})
}
