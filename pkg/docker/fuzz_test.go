package docker_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/launchtest/growth"
)

// FuzzLoadAnswer: an answer that says anywhere that something went wrong is never taken for success, and whatever comes is read
// without harm.
func FuzzLoadAnswer(f *testing.F) {
	for _, seed := range answers() {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err := docker.ReadAnswer(bytes.NewReader(data), func(string, int64) {})
		if err != nil {
			assert.Equal(t, exit.Engine, exit.Of(err), "%v", err)
			assert.NotContains(t, err.Error(), "\n")
			return
		}
		for lines := json.NewDecoder(bytes.NewReader(data)); ; {
			var line map[string]any
			if err := lines.Decode(&line); errors.Is(err, io.EOF) {
				return
			} else {
				require.NoError(t, err, "taken for success")
			}
			text, _ := line["error"].(string)
			assert.Empty(t, text, "taken for success")
		}
	})
}

func answers() []string {
	return []string{
		"",
		`{"stream":"Loaded image: docker.io/nearone/mpc-node:sha256-00\n"}` + "\n",
		`{"status":"Loading layer","progressDetail":{"current":5,"total":10},"id":"0123456789ab"}` + "\n" + `{"stream":"Loaded image ID: sha256:00\n"}`,
		`{"errorDetail":{"message":"no space left on device"},"error":"no space left on device"}`,
		`{"error":"invalid diffID","errorDetail":{"message":"invalid diffID"}}`,
		`{"stream":"Loaded image: x\n"}` + `{"stream":"Error unpacking image x: wrong diff id\n"}`,
		`{"stream":"Loaded`,
		`null`, `[]`, `{"progressDetail":null}`, `{"progressDetail":{"current":-1}}`,
	}
}

func TestAnswersAreJudged(t *testing.T) {
	t.Parallel()
	for i, fine := range []bool{true, true, true, false, false, false, false, true, false, true, true} {
		err := docker.ReadAnswer(strings.NewReader(answers()[i]), func(string, int64) {})
		assert.Equal(t, fine, err == nil, "%s: %v", answers()[i], err)
	}
}

// TestGrowth: whatever the engine says during a load costs little more than its size, and what
// doesn't end is given up.
func TestGrowth(t *testing.T) {
	read := func(data []byte) {
		_ = docker.ReadAnswer(bytes.NewReader(data), func(string, int64) {})
	}
	growth.Check(t, 64<<20, growth.JSON("%s"), read)
	growth.Check(t, 64<<20, growth.JSON(`{"stream":%s}`), read)
	growth.Check(t, 64<<20, func(size int) map[string]string {
		return map[string]string{
			"lines":         growth.Fill(size, "", "{}\n", ""),
			"a line of all": growth.Fill(size, `{"stream":"`, "x", ""),
		}
	}, read)
	long := `{"stream":"` + strings.Repeat("x", growth.Large) + `"}`
	err := docker.ReadAnswer(strings.NewReader(long), func(string, int64) {})
	assert.ErrorContains(t, err, "1048576 in one line")
	long = strings.Repeat(`{"stream":"`+strings.Repeat("x", growth.Large/2)+`"}`, 4)
	assert.NoError(t, docker.ReadAnswer(strings.NewReader(long), func(string, int64) {}))
	long = strings.Repeat(`{"stream":"`+strings.Repeat("x", growth.Large/2)+`"}`, 129)
	assert.ErrorContains(t, docker.ReadAnswer(strings.NewReader(long), func(string, int64) {}), "67108864 bytes")
}

// FuzzInspect: there is an ImageID only for an answer that has the right ID and the right layers.
func FuzzInspect(f *testing.F) {
	v := verified(f)
	want := v.ConfigDigest().String()
	layers := []string{v.Layers()[0].DiffID.String(), v.Layers()[1].DiffID.String()}
	good, err := json.Marshal(map[string]any{"Id": want, "RootFS": map[string]any{"Layers": layers}})
	require.NoError(f, err)
	for _, seed := range []string{
		string(good), `{}`, `null`, `[]`, `{"Id":"` + want + `"}`, `{"Id":"` + want + `","RootFS":null}`,
		`{"Id":"` + want + `","RootFS":{"Layers":["` + layers[0] + `"]}}`, strings.Replace(string(good), `"Id"`, `"id"`, 1),
		strings.Replace(string(good), layers[0], layers[1], 1), string(good) + string(good), `{"message":"no such image"}`,
	} {
		f.Add([]byte(seed))
	}
	var answer atomic.Pointer[[]byte]
	dir, err := os.MkdirTemp("", "inspect")
	require.NoError(f, err)
	f.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	require.NoError(f, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(*answer.Load()) })}
	go server.Serve(listener)
	f.Cleanup(func() { server.Close() })
	engine, err := inspect.New("unix://" + filepath.Join(dir, "docker.sock"))
	require.NoError(f, err)

	f.Fuzz(func(t *testing.T, data []byte) {
		answer.Store(&data)
		id, err := engine.Prove(t.Context(), inspect.Info{Store: inspect.Classic, API: "1.41"}, v)
		if err != nil {
			assert.True(t, id.IsZero())
			return
		}
		assert.Equal(t, want, id.String())
		var got struct {
			ID     string
			RootFS struct{ Layers []string }
		}
		require.NoError(t, json.Unmarshal(data, &got))
		assert.Equal(t, want, got.ID)
		assert.Equal(t, layers, got.RootFS.Layers)
	})
}

// verified makes an image's proof from kept bytes alone.
func verified(tb testing.TB) *image.Verified {
	tb.Helper()
	layers, err := launchtest.RandomLayers(1, 100, 200)
	require.NoError(tb, err)
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(tb, err)
	manifest, err := img.RawManifest()
	require.NoError(tb, err)
	config, err := img.RawConfigFile()
	require.NoError(tb, err)
	digest, err := img.Digest()
	require.NoError(tb, err)
	ref, err := name.NewDigest("nearone/mpc-node@" + digest.String())
	require.NoError(tb, err)
	v, err := image.Restore(ref, v1.Platform{}, image.Kept{Manifest: manifest, Config: config})
	require.NoError(tb, err)
	return v
}
