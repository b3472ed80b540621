package launchtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/launchtest"
)

// What the engine double does as an engine is the conformance table's; here are its hooks and
// faults, and what a test can't do to a real engine: stop it, and kill it.

// engine is an engine double with a client that speaks to its socket.
type engine struct {
	*launchtest.Engine
	t       *testing.T
	client  *http.Client
	effects *launchtest.Recorder
}

func newEngine(t *testing.T, o launchtest.EngineOptions) *engine {
	t.Helper()
	o.Recorder = &launchtest.Recorder{}
	double, socket := newDouble(t, o)
	return &engine{Engine: double, t: t, client: unixhttp.Client(socket, false), effects: o.Recorder}
}

// withImage returns an engine that has an image, and the image's ID.
func withImage(t *testing.T, o launchtest.EngineOptions) (*engine, string) {
	t.Helper()
	e := newEngine(t, o)
	layers, err := launchtest.RandomLayers(1, 100)
	require.NoError(t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers, Config: v1.Config{
		Cmd: []string{"serve"}, Labels: map[string]string{"from": "image"},
	}})
	require.NoError(t, err)
	id, err := e.AddImage(img, "node:1")
	require.NoError(t, err)
	return e, id
}

// send sends a request with body as it is, or as JSON if it is no reader.
func (e *engine) send(ctx context.Context, method, target string,
	body any) (*http.Response, error) {
	content, ok := body.(io.Reader)
	if !ok && body != nil {
		content = bytes.NewReader(marshal(e.t, body))
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+target, content)
	require.NoError(e.t, err)
	return e.client.Do(request)
}

func (e *engine) do(method, target string, body any) (int, string) {
	e.t.Helper()
	response, err := e.send(e.t.Context(), method, target, body)
	require.NoError(e.t, err, "%s %s", method, target)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(e.t, err, "%s %s", method, target)
	return response.StatusCode, string(text)
}

// must is do for requests that succeed.
func (e *engine) must(method, target string, body any) string {
	e.t.Helper()
	status, text := e.do(method, target, body)
	require.Less(e.t, status, 300, "%s %s: %s", method, target, text)
	return text
}

func (e *engine) get(target string) map[string]any {
	e.t.Helper()
	return object(e.t, e.must(http.MethodGet, target, nil))
}

func (e *engine) create(name, image, policy string) {
	e.t.Helper()
	e.must(http.MethodPost, "/containers/create?name="+name,
		map[string]any{"Image": image, "HostConfig": restart(policy)})
}

func restart(policy string) map[string]any {
	return map[string]any{"RestartPolicy": map[string]any{"Name": policy}}
}

func (e *engine) container(name string) launchtest.ContainerInfo {
	e.t.Helper()
	for _, c := range e.Containers() {
		if c.Name == name {
			return c
		}
	}
	require.Fail(e.t, "no such container", name)
	return launchtest.ContainerInfo{}
}

// begins sends a request that isn't answered, waits until the engine has it, and returns a way to
// give it up.
func (e *engine) begins(method, target string, body any) (giveUp func() error) {
	e.t.Helper()
	before := len(e.Requests())
	ctx, cancel := context.WithCancel(e.t.Context())
	e.t.Cleanup(cancel)
	result := make(chan error, 1)
	go func() {
		response, err := e.send(ctx, method, target, body)
		if err == nil {
			err = response.Body.Close()
		}
		result <- err
	}()
	require.Eventually(e.t, func() bool { return len(e.Requests()) > before }, patience,
		time.Millisecond)
	return func() error {
		cancel()
		return <-result
	}
}

func upload(t *testing.T) io.Reader {
	t.Helper()
	layers, err := launchtest.RandomLayers(1, 3000, 2000)
	require.NoError(t, err)
	return bytes.NewReader(archive(t, newSample(t, launchtest.ImageOptions{Layers: layers}).hybrid(t)))
}

func TestEngineRefusesOldClients(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{Containerd: true, APIVersion: "1.52"})
	status, text := e.do(http.MethodGet, "/v1.41/info", nil)
	assert.Equal(t, http.StatusBadRequest, status)
	assert.Contains(t, text, "Minimum supported API version is 1.44",
		"29.0 no longer speaks what 20.10 speaks")
}

func TestEngineRemembersWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{})
	status, _ := e.do(http.MethodPost, "/v1.41/images/create?fromImage=node", nil)
	assert.Equal(t, http.StatusNotFound, status, "a pull")
	assert.Equal(t, []string{"POST /images/create"}, e.Unexpected())
	assert.Equal(t, []string{"POST /images/create?fromImage=node"}, e.Requests(),
		"requests are kept without the version")
}

func TestEngineCountsAndRecords(t *testing.T) {
	t.Parallel()
	for _, containerd := range []bool{false, true} {
		e, id := withImage(t, launchtest.EngineOptions{Containerd: containerd, APIVersion: "1.51"})
		assert.Equal(t, []string{"node:1"}, e.Images()[0].Names)
		assert.Len(t, e.Images()[0].Layers, 1)
		assert.Empty(t, e.effects.Effects(), "somebody else's load is not recorded")
		assert.Zero(t, e.Loads(), "nor counted")

		body := upload(t)
		size := int64(body.(*bytes.Reader).Len())
		e.must(http.MethodPost, "/images/load", body)
		assert.Equal(t, 1, e.Loads())
		assert.Equal(t, size, e.LoadedBytes())
		e.create("0123456789ab_box", id, "no")
		e.must(http.MethodPost, "/containers/0123456789ab_box/rename?name=box", nil)
		e.must(http.MethodPost, "/containers/box/start", nil)
		e.do(http.MethodPost, "/containers/box/start", nil)
		e.must(http.MethodPost, "/containers/box/kill", nil)
		e.must(http.MethodPost, "/containers/box/update", restart("always"))
		e.must(http.MethodDelete, "/containers/box", nil)
		e.must(http.MethodDelete, "/images/"+id, nil)
		assert.Equal(t, []string{
			"load", "create <id>_box", "rename <id>_box box", "start box", "kill box",
			"update box restart=always", "remove box",
			"delete-image " + id,
		}, e.effects.Effects(), "only what had an effect is recorded")
		assert.Empty(t, e.Unexpected())
	}
}

func TestCallIsSomebodyElse(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{})
	e.Fail(launchtest.EngineFault{Match: "POST *", Times: -1, Status: 500})
	_, err := e.Call(http.MethodPost, "/containers/create?name=box", map[string]any{"Image": id})
	require.NoError(t, err, "no fault touches it")
	_, err = e.Call(http.MethodPost, "/containers/box/start", nil)
	require.NoError(t, err)
	assert.Equal(t, "running", e.container("box").Status)
	_, err = e.Call(http.MethodPost, "/containers/nosuch/start", nil)
	require.Error(t, err)
	assert.Empty(t, e.effects.Effects())
	assert.Empty(t, e.Requests())
}

func TestNilRecorderRecordsNothing(t *testing.T) {
	t.Parallel()
	var r *launchtest.Recorder
	r.Record("x")
	assert.Empty(t, r.Effects())
}

func TestOnStartDecides(t *testing.T) {
	t.Parallel()
	var starts atomic.Int32
	var e *engine
	e, id := withImage(t, launchtest.EngineOptions{OnStart: func(c launchtest.ContainerInfo) (int,
		bool) {
		assert.Equal(t, "running", c.Status)
		assert.Len(t, e.Containers(), 1, "the hook may look around")
		return 3, starts.Add(1) > 2
	}})
	e.create("box", id, "no")
	e.must(http.MethodPost, "/containers/box/start", nil)
	assert.Equal(t, "exited", e.container("box").Status)
	assert.Equal(t, 3, e.container("box").ExitCode)

	e.must(http.MethodPost, "/containers/box/update", restart("on-failure"))
	e.must(http.MethodPost, "/containers/box/start", nil)
	require.Eventually(t, func() bool { return e.container("box").Status == "running" }, patience,
		time.Millisecond)
	assert.Equal(t, 1, e.container("box").RestartCount)
	assert.Equal(t, 3, e.container("box").Starts)
	require.NoError(t, e.Exit("box", 0))
	assert.Equal(t, "exited", e.container("box").Status, "0 is no failure")
	require.Error(t, e.Exit("box", 0), "it has ended")
	assert.Equal(t, []string{"create box", "start box", "update box restart=on-failure", "start box",
		"autostart box"}, e.effects.Effects())
}

// TestWhatTheDaemonRestarts: on-failure starts what did not end with 0, even what somebody stopped;
// no starts nothing.
func TestWhatTheDaemonRestarts(t *testing.T) {
	t.Parallel()
	cases := []struct {
		policy         string
		stopCode       int
		stopped        bool // by hand, before the daemon stops
		orderly, after bool // runs after the daemon came back
	}{
		{"no", 0, false, true, false},
		{"no", 137, false, true, false},
		{"no", 137, false, false, false},
		{"on-failure", 0, false, true, false},
		{"on-failure", 137, false, true, true},
		{"on-failure", 0, false, false, true},
		{"on-failure", 137, true, true, true},
		{"on-failure", 0, true, true, false},
		{"unless-stopped", 0, false, true, true},
		{"unless-stopped", 137, true, true, false},
		{"always", 0, true, true, true},
	}
	for _, c := range cases {
		e, id := withImage(t, launchtest.EngineOptions{OnStop: func(launchtest.ContainerInfo) int { return c.stopCode }})
		e.create("never-started", id, c.policy)
		e.create("box", id, c.policy)
		e.must(http.MethodPost, "/containers/box/start", nil)
		if c.stopped {
			e.must(http.MethodPost, "/containers/box/stop", nil)
		}
		require.NoError(t, e.Restart(c.orderly))
		want := map[bool]string{true: "running", false: "exited"}[c.after]
		assert.Equal(t, want, e.container("box").Status, "%+v", c)
		assert.Equal(t, "created", e.container("never-started").Status, "%+v", c)
		assert.Equal(t, c.after,
			strings.Contains(strings.Join(e.effects.Effects(), "\n"), "autostart box"), "%+v", c)
		assert.Equal(t, id, e.get("/images/node:1/json")["Id"], "what is stored stays")
	}
}

func TestStoppedDaemon(t *testing.T) {
	t.Parallel()
	e, _ := withImage(t, launchtest.EngineOptions{})
	response, err := e.send(t.Context(), http.MethodGet, "/events", nil)
	require.NoError(t, err)
	defer response.Body.Close()
	require.NoError(t, e.Stop(true))
	_, _ = io.ReadAll(response.Body) // ends, in whatever way
	_, err = e.send(t.Context(), http.MethodGet, "/_ping", nil)
	require.Error(t, err)
	require.NoError(t, e.Stop(true), "twice is fine")
	require.NoError(t, e.Start())
	require.Error(t, e.Start())
	e.must(http.MethodGet, "/_ping", nil)
}

func TestDaemonThatStopsHasLoadedNothing(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{})
	e.Fail(launchtest.EngineFault{Match: "POST /images/load", Delay: time.Hour})
	giveUp := e.begins(http.MethodPost, "/images/load", upload(t))
	require.NoError(t, e.Restart(true))
	require.Error(t, giveUp())
	assert.Empty(t, e.Images(), "a daemon that stops in the middle of a load has loaded nothing")
}

func TestLoadFaults(t *testing.T) {
	t.Parallel()
	for fault, want := range map[launchtest.LoadFault]struct {
		has, hasNot string // in the answer
		images      int
	}{
		launchtest.LoadErrorLine:   {`"errorDetail":{"message":`, "Loaded image", 0},
		launchtest.LoadErrorOnly:   {`"error":`, "errorDetail", 0},
		launchtest.LoadErrorDetail: {`"errorDetail":`, `"error":`, 0},
		launchtest.LoadUnpackLine:  {"Error unpacking image", `"error"`, 1},
		launchtest.LoadUnpackFull:  {"no space left on device", `"error"`, 1},
		launchtest.LoadSilent:      {"", "Loaded image", 0},
		launchtest.LoadDiskFull:    {"no space left on device", "Loaded image", 0},
		launchtest.LoadVanishes:    {"Loaded image", `"error"`, 0},
		launchtest.LoadTruncated:   {"Loaded image", `"error"`, 1},
		launchtest.LoadCut:         {"", "", 0},
	} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			for _, containerd := range []bool{false, true} {
				e := newEngine(t, launchtest.EngineOptions{Containerd: containerd, APIVersion: "1.51"})
				e.Fail(launchtest.EngineFault{Match: "POST /images/load", Load: fault, LoadBytes: 2048})
				if fault == launchtest.LoadCut {
					_, err := e.send(t.Context(), http.MethodPost, "/images/load", upload(t))
					require.Error(t, err)
					assert.EqualValues(t, 2048, e.LoadedBytes())
				} else {
					status, text := e.do(http.MethodPost, "/images/load", upload(t))
					assert.Equal(t, http.StatusOK, status)
					assert.Contains(t, text, want.has)
					assert.NotContains(t, text, want.hasNot)
					assert.Equal(t, fault == launchtest.LoadTruncated, text != "" &&
						!strings.HasSuffix(text, "\n"), "the last line")
				}
				require.Len(t, e.Images(), want.images)
				if fault == launchtest.LoadUnpackLine {
					assert.Empty(t, e.Images()[0].Layers, "it is broken")
				}
				assert.Contains(t, e.must(http.MethodPost, "/images/load", upload(t)), "Loaded image",
					"the next load is as it should be")
				assert.Len(t, e.Images()[0].Layers, 2, "and repairs")
			}
		})
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{})
	e.Fail(launchtest.EngineFault{Match: "GET /volumes/*", Skip: 1, Times: 2,
		Status: http.StatusServiceUnavailable, Message: "busy"})
	e.must(http.MethodPost, "/volumes/create", map[string]string{"Name": "v"})
	e.must(http.MethodGet, "/volumes/v", nil)
	for range 2 {
		status, text := e.do(http.MethodGet, "/v1.41/volumes/v", nil)
		assert.Equal(t, http.StatusServiceUnavailable, status)
		assert.JSONEq(t, `{"message":"busy"}`, text)
	}
	e.must(http.MethodGet, "/volumes/v", nil)

	e.Fail(launchtest.EngineFault{Match: "DELETE *", Close: true})
	_, err := e.send(t.Context(), http.MethodDelete, "/volumes/v", nil)
	require.Error(t, err, "the connection is closed")
	assert.Equal(t, []string{"v"}, e.Volumes(), "and nothing was done")
	e.Fail(launchtest.EngineFault{Match: "DELETE *", Close: true, After: true})
	_, err = e.send(t.Context(), http.MethodDelete, "/volumes/v", nil)
	require.Error(t, err, "the answer is lost")
	assert.Empty(t, e.Volumes(), "but the work is done")

	e.Fail(launchtest.EngineFault{Match: "GET /info", Times: -1, Hang: true})
	for range 2 {
		require.ErrorIs(t, e.begins(http.MethodGet, "/info", nil)(), context.Canceled)
	}
	e.Heal()
	assert.Equal(t, "linux", e.get("/info")["OSType"])

	e.Fail(launchtest.EngineFault{Match: "GET /info", Edit: func(body []byte) []byte {
		return bytes.Replace(body, []byte(`"OSType":"linux"`), []byte(`"OSType":"windows"`), 1)
	}})
	assert.Equal(t, "windows", e.get("/info")["OSType"], "a lie")
	assert.Equal(t, "linux", e.get("/info")["OSType"])
	assert.Equal(t, []string{"volume-create v", "volume-remove v"}, e.effects.Effects())
	assert.True(t, json.Valid([]byte(e.must(http.MethodGet, "/version", nil))))
}
