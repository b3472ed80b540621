package launchtest_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

// withImage returns an engine that has an image, and the image's ID.
func withImage(t *testing.T, o launchtest.EngineOptions) (*engine, string) {
	t.Helper()
	e := newEngine(t, o)
	layers, err := launchtest.RandomLayers(1, 100)
	require.NoError(t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers, Config: v1.Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"A=image", "B=image"},
		Labels: map[string]string{"from": "image", "own": "image"},
	}})
	require.NoError(t, err)
	id, err := e.AddImage(img, "node:1")
	require.NoError(t, err)
	return e, id
}

func (e *engine) create(name, image string, host map[string]any) string {
	e.t.Helper()
	text := e.must(http.MethodPost, "/containers/create?name="+name, map[string]any{"Image": image, "HostConfig": host})
	return object(e.t, text)["Id"].(string)
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

func TestCreatedContainersShowWhatTheyRunWith(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{Exists: func(path string) bool { return path != "/missing" }})
	body := map[string]any{
		"Image": "node:1", "Cmd": []string{"other"}, "Env": []string{"A=own"}, "Labels": map[string]string{"own": "own"},
		"HostConfig": map[string]any{
			"Binds": []string{"/tapp:/tapp:ro", "mpc-data:/data:rw"}, "SecurityOpt": []string{"no-new-privileges:true"}, "NetworkMode": "none",
			"Mounts":        []any{map[string]any{"Type": "bind", "Source": "/run/agent.sock", "Target": "/var/run/dstack.sock"}},
			"PortBindings":  map[string]any{"80/tcp": []any{map[string]string{"HostPort": "8080"}}},
			"RestartPolicy": map[string]any{"Name": "on-failure", "MaximumRetryCount": 3},
		},
	}
	e.must(http.MethodPost, "/containers/create?name=box", body)
	doc := e.get("/containers/box/json")
	state := doc["State"].(map[string]any)
	config, host := doc["Config"].(map[string]any), doc["HostConfig"].(map[string]any)
	assert.Equal(t, id, doc["Image"], "the image's ID")
	assert.Equal(t, "node:1", config["Image"], "as it was named")
	assert.Equal(t, "/box", doc["Name"])
	assert.Equal(t, "/entry", doc["Path"], "the entrypoint is the image's")
	assert.Equal(t, []any{"other"}, doc["Args"], "the command is not")
	assert.ElementsMatch(t, []any{"A=own", "B=image"}, config["Env"], "the environment is merged")
	assert.Equal(t, map[string]any{"from": "image", "own": "own"}, config["Labels"], "labels are merged")
	assert.Equal(t, map[string]any{"Name": "on-failure", "MaximumRetryCount": 3.0}, host["RestartPolicy"])
	assert.Equal(t, []any{"no-new-privileges:true"}, host["SecurityOpt"])
	assert.Equal(t, "created", state["Status"])
	assert.Equal(t, false, state["Running"])
	assert.Equal(t, "0001-01-01T00:00:00Z", state["StartedAt"])
	var mounts []map[string]any
	for _, m := range doc["Mounts"].([]any) {
		mounts = append(mounts, m.(map[string]any))
	}
	require.Len(t, mounts, 3)
	assert.Subset(t, mounts[0], map[string]any{"Type": "bind", "Source": "/tapp", "Destination": "/tapp", "RW": false})
	assert.Subset(t, mounts[1], map[string]any{
		"Type": "volume", "Name": "mpc-data", "Source": "/var/lib/docker/volumes/mpc-data/_data", "Destination": "/data", "RW": true,
	})
	assert.Subset(t, mounts[2], map[string]any{"Type": "bind", "Source": "/run/agent.sock", "Destination": "/var/run/dstack.sock", "RW": true})
	assert.Equal(t, []string{"volume-create mpc-data", "create box"}, e.effects.Effects(), "a named volume that is missing is created")

	for name, c := range map[string]struct {
		target string
		body   map[string]any
		status int
		words  string
	}{
		"taken name": {"box", map[string]any{"Image": "node:1"}, http.StatusConflict,
			`Conflict. The container name "/box" is already in use by container`},
		"bad name":      {"a%20box", map[string]any{"Image": "node:1"}, http.StatusBadRequest, "Invalid container name"},
		"no such image": {"crate", map[string]any{"Image": "nosuch"}, http.StatusNotFound, "No such image: nosuch:latest"},
		"bad policy": {"crate", map[string]any{"Image": "node:1", "HostConfig": restart("sometimes")}, http.StatusBadRequest,
			"invalid restart policy"},
		"missing path": {"crate", map[string]any{"Image": "node:1", "HostConfig": map[string]any{
			"Mounts": []any{map[string]any{"Type": "bind", "Source": "/missing", "Target": "/x"}},
		}}, http.StatusBadRequest, "bind source path does not exist: /missing"},
	} {
		status, text := e.do(http.MethodPost, "/containers/create?name="+c.target, c.body)
		assert.Equal(t, c.status, status, name)
		assert.Contains(t, object(t, text)["message"], c.words, name)
	}
	assert.Len(t, e.Containers(), 1)
}

func TestLifeOfAContainer(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{OnStop: func(launchtest.ContainerInfo) int { return 143 }})
	c := e.create("box", id, nil)
	steps := []struct {
		method, target string
		status         int
		then           string // the container's status
	}{
		{http.MethodPost, "/containers/box/stop", 304, "created"},
		{http.MethodPost, "/containers/box/kill", 409, "created"},
		{http.MethodPost, "/containers/box/start", 204, "running"},
		{http.MethodPost, "/containers/" + c[:12] + "/start", 304, "running"},
		{http.MethodDelete, "/containers/box", 409, "running"},
		{http.MethodPost, "/containers/box/pause", 204, "paused"},
		{http.MethodPost, "/containers/box/start", 409, "paused"},
		{http.MethodPost, "/containers/box/unpause", 204, "running"},
		{http.MethodPost, "/containers/box/kill?signal=HUP", 204, "running"},
		{http.MethodPost, "/containers/box/stop?t=1", 204, "exited"},
		{http.MethodPost, "/containers/box/start", 204, "running"},
		{http.MethodPost, "/containers/box/rename?name=box", 400, "running"},
		{http.MethodPost, "/containers/box/rename?name=boxes", 204, "running"},
		{http.MethodPost, "/containers/boxes/rename?name=box", 204, "running"},
		{http.MethodPost, "/containers/box/kill", 204, "exited"},
		{http.MethodPost, "/containers/nosuch/start", 404, "exited"},
		{http.MethodPost, "/containers/box/exec", 404, "exited"},
	}
	for _, s := range steps {
		status, text := e.do(s.method, s.target, nil)
		assert.Equal(t, s.status, status, "%s %s: %s", s.method, s.target, text)
		assert.Equal(t, s.then, e.Containers()[0].Status, "%s %s", s.method, s.target)
	}
	assert.Equal(t, 137, e.container("box").ExitCode, "it was killed")
	e.must(http.MethodPost, "/containers/box/update", restart("no"))
	e.must(http.MethodDelete, "/containers/box", nil)
	assert.Equal(t, []string{
		"create box", "start box", "pause box", "unpause box", "kill box", "stop box", "start box", "rename box boxes", "rename boxes box",
		"kill box", "update box restart=no", "remove box",
	}, e.effects.Effects(), "only what had an effect is recorded")
	assert.Equal(t, []string{"POST /containers/box/exec"}, e.Unexpected())
}

func TestTemporaryNamesAreRecordedWithoutTheID(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{})
	e.create("0123456789ab_box", id, nil)
	e.must(http.MethodPost, "/containers/0123456789ab_box/rename?name=box", nil)
	assert.Equal(t, []string{"create <id>_box", "rename <id>_box box"}, e.effects.Effects())
}

func TestStartFailsAtTheNetworkAndAtPorts(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{})
	ports := map[string]any{"PortBindings": map[string]any{"80/tcp": []any{map[string]string{"HostPort": "8080"}}}}
	e.create("first", id, ports)
	e.create("second", id, ports)
	e.create("lost", id, map[string]any{"NetworkMode": "nosuch"})
	e.must(http.MethodPost, "/containers/first/start", nil)
	status, text := e.do(http.MethodPost, "/containers/second/start", nil)
	assert.Equal(t, http.StatusInternalServerError, status)
	assert.Contains(t, text, "Bind for 0.0.0.0:8080 failed: port is already allocated")
	status, text = e.do(http.MethodPost, "/containers/lost/start", nil)
	assert.Equal(t, http.StatusNotFound, status)
	assert.Contains(t, text, "network nosuch not found")
	state := e.get("/containers/second/json")["State"].(map[string]any)
	assert.Equal(t, "created", state["Status"], "it was never started")
	assert.EqualValues(t, 128, state["ExitCode"])
	assert.Contains(t, state["Error"], "port is already allocated")
	e.must(http.MethodPost, "/containers/first/stop", nil)
	e.must(http.MethodPost, "/containers/second/start", nil)
}

func TestOnStartDecides(t *testing.T) {
	t.Parallel()
	var starts atomic.Int32
	var e *engine
	e, id := withImage(t, launchtest.EngineOptions{OnStart: func(c launchtest.ContainerInfo) (int, bool) {
		assert.Equal(t, "running", c.Status)
		assert.Len(t, e.Containers(), 1, "the hook may look around")
		return 3, starts.Add(1) > 2
	}})
	e.create("box", id, restart("no"))
	e.must(http.MethodPost, "/containers/box/start", nil)
	assert.Equal(t, "exited", e.container("box").Status)
	assert.Equal(t, 3, e.container("box").ExitCode)

	e.must(http.MethodPost, "/containers/box/update", restart("on-failure"))
	e.must(http.MethodPost, "/containers/box/start", nil)
	state := e.get("/containers/box/json")["State"].(map[string]any)
	assert.Equal(t, []any{"restarting", true, true}, []any{state["Status"], state["Running"], state["Restarting"]}, "as dockerd shows it")
	assert.Eventually(t, func() bool { return e.container("box").Status == "running" }, 5*time.Second, 5*time.Millisecond)
	assert.Equal(t, 1, e.container("box").RestartCount)
	assert.Equal(t, 3, e.container("box").Starts)
	require.NoError(t, e.Exit("box", 0))
	assert.Equal(t, "exited", e.container("box").Status, "0 is no failure")
	require.Error(t, e.Exit("box", 0), "it has ended")
	assert.Equal(t, []string{"create box", "start box", "update box restart=on-failure", "start box", "autostart box"}, e.effects.Effects())
}

func TestStoppingARestartingContainer(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{OnStart: func(launchtest.ContainerInfo) (int, bool) { return 1, false }})
	e.create("box", id, restart("always"))
	e.must(http.MethodPost, "/containers/box/start", nil)
	status, _ := e.do(http.MethodDelete, "/containers/box", nil)
	assert.Equal(t, http.StatusConflict, status)
	e.must(http.MethodPost, "/containers/box/stop", nil)
	time.Sleep(150 * time.Millisecond)
	assert.Equal(t, "exited", e.container("box").Status, "it isn't started again")
	assert.Equal(t, 1, e.container("box").Starts)
}

// TestWhatTheDaemonRestarts: on-failure starts what did not end with 0, even what somebody stopped; no starts nothing.
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
		e.create("never-started", id, restart(c.policy))
		e.create("box", id, restart(c.policy))
		e.must(http.MethodPost, "/containers/box/start", nil)
		if c.stopped {
			e.must(http.MethodPost, "/containers/box/stop", nil)
		}
		require.NoError(t, e.Restart(c.orderly))
		want := map[bool]string{true: "running", false: "exited"}[c.after]
		assert.Equal(t, want, e.container("box").Status, "%+v", c)
		assert.Equal(t, "created", e.container("never-started").Status, "%+v", c)
		assert.Equal(t, c.after, strings.Contains(strings.Join(e.effects.Effects(), "\n"), "autostart box"), "%+v", c)
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

func TestListingContainers(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{})
	e.create("mpc-node", id, nil)
	e.create("mpc-node-2", id, map[string]any{"Binds": []string{"v:/data"}})
	e.must(http.MethodPost, "/containers/mpc-node/start", nil)
	list := func(query string) []string {
		var found []struct {
			Names  []string
			State  string
			Image  string
			Mounts []any
		}
		require.NoError(t, json.Unmarshal([]byte(e.must(http.MethodGet, "/containers/json?"+query, nil)), &found))
		names := []string{}
		for _, c := range found {
			assert.Equal(t, id, c.Image)
			names = append(names, c.Names[0]+" "+c.State)
		}
		return names
	}
	filter := func(text string) string { return "all=1&filters=" + url.QueryEscape(text) }
	assert.Equal(t, []string{"/mpc-node running"}, list(""))
	assert.Equal(t, []string{"/mpc-node-2 created", "/mpc-node running"}, list("all=1"), "the newest first")
	assert.Len(t, list(filter(`{"name":["mpc-node"]}`)), 2, "a name is a pattern")
	assert.Equal(t, []string{"/mpc-node running"}, list(filter(`{"name":["^/mpc-node$"]}`)))
	assert.Equal(t, []string{"/mpc-node-2 created"}, list(filter(`{"status":{"created":true}}`)), "filters have two forms")
	assert.Equal(t, []string{"/mpc-node-2 created"}, list(filter(`{"volume":["v"]}`)))
	assert.Len(t, list(filter(`{"label":["from=image","own"]}`)), 2)
	assert.Empty(t, list(filter(`{"label":["from=image","nosuch"]}`)), "all labels are needed")
	assert.Len(t, list(filter(`{"name":[]}`)), 2)
	for _, bad := range []string{`{"nosuch":["x"]}`, `{"status":["x"]}`, `[]`} {
		status, _ := e.do(http.MethodGet, "/containers/json?"+filter(bad), nil)
		assert.Equal(t, http.StatusBadRequest, status, bad)
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{APIVersion: "1.51"})
	e.create("box", id, nil)
	e.must(http.MethodPost, "/containers/box/start", nil)
	require.NoError(t, e.Log("box", "one\ntwo\n", "oops\n"))
	status, _ := e.do(http.MethodGet, "/containers/box/logs", nil)
	assert.Equal(t, http.StatusBadRequest, status, "a stream has to be chosen")

	read := func(query string) []string {
		return frames(t, e.must(http.MethodGet, "/containers/box/logs?"+query, nil))
	}
	assert.Equal(t, []string{"1 one\n", "1 two\n", "2 oops\n"}, read("stdout=1&stderr=1"))
	assert.Equal(t, []string{"2 oops\n"}, read("stderr=1"))
	assert.Equal(t, []string{"1 two\n", "2 oops\n"}, read("stdout=1&stderr=1&tail=2"))
	assert.Len(t, read("stdout=1&tail=all"), 2)
	assert.Regexp(t, `^1 20\d\d-\S+Z one`, read("stdout=1&timestamps=1")[0])

	response, err := e.send(t.Context(), http.MethodGet, "/containers/box/logs?stdout=1&follow=1&tail=0", nil)
	require.NoError(t, err)
	defer response.Body.Close()
	assert.Equal(t, "application/vnd.docker.multiplexed-stream", response.Header.Get("Content-Type"))
	require.NoError(t, e.Log("box", "three\n", ""))
	require.NoError(t, e.Exit("box", 0))
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err, "the stream ends with the container")
	assert.Equal(t, []string{"1 three\n"}, frames(t, string(text)))
}

// frames takes Docker's multiplexed stream apart.
func frames(t *testing.T, text string) []string {
	t.Helper()
	var list []string
	for len(text) > 0 {
		require.GreaterOrEqual(t, len(text), 8)
		size := int(binary.BigEndian.Uint32([]byte(text[4:8])))
		list = append(list, string('0'+text[0])+" "+text[8:8+size])
		text = text[8+size:]
	}
	return list
}

func TestEventsAndWait(t *testing.T) {
	t.Parallel()
	e, id := withImage(t, launchtest.EngineOptions{OnStop: func(launchtest.ContainerInfo) int { return 137 }})
	e.create("other", id, nil)
	c := e.create("box", id, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	query := url.QueryEscape(`{"type":["container"],"container":["` + c + `"]}`)
	events, err := e.send(ctx, http.MethodGet, "/events?filters="+query, nil)
	require.NoError(t, err)
	defer events.Body.Close()
	e.must(http.MethodPost, "/containers/other/start", nil)
	e.must(http.MethodPost, "/containers/box/start", nil)
	wait, err := e.send(t.Context(), http.MethodPost, "/containers/box/wait?condition=next-exit", nil)
	require.NoError(t, err, "the header comes at once")
	defer wait.Body.Close()
	require.NoError(t, e.Exit("box", 7))
	text, err := io.ReadAll(wait.Body)
	require.NoError(t, err)
	assert.EqualValues(t, 7, object(t, string(text))["StatusCode"])
	assert.EqualValues(t, 7, object(t, e.must(http.MethodPost, "/containers/box/wait", nil))["StatusCode"], "it has ended already")
	e.must(http.MethodPost, "/containers/box/start", nil)
	e.must(http.MethodPost, "/containers/box/stop", nil)
	e.must(http.MethodDelete, "/containers/box", nil)

	var seen []string
	lines := bufio.NewScanner(events.Body)
	for lines.Scan() {
		doc := object(t, lines.Text())
		attributes := doc["Actor"].(map[string]any)["Attributes"].(map[string]any)
		assert.Equal(t, "box", attributes["name"])
		code, _ := attributes["exitCode"].(string)
		seen = append(seen, strings.TrimSpace(doc["Action"].(string)+" "+code))
		if doc["Action"] == "destroy" {
			break
		}
	}
	assert.Equal(t, []string{"start", "die 7", "start", "kill", "die 137", "stop", "destroy"}, seen)

	query = "since=1&until=" + time.Now().UTC().Format(time.RFC3339Nano) +
		"&filters=" + url.QueryEscape(`{"event":["create"],"type":["container"]}`)
	past := e.must(http.MethodGet, "/events?"+query, nil)
	assert.Equal(t, 2, strings.Count(past, "\n"), "the past is told, too: %s", past)
}

func TestVolumes(t *testing.T) {
	t.Parallel()
	for _, p := range []struct {
		api    string
		query  string
		pruned bool
	}{
		{"1.41", "", true}, // engines before 23 take unused named volumes
		{"1.51", "", false},
		{"1.51", "?filters=" + url.QueryEscape(`{"all":["true"]}`), true},
	} {
		e, id := withImage(t, launchtest.EngineOptions{APIVersion: p.api})
		e.must(http.MethodPost, "/volumes/create", map[string]any{"Name": "mpc-data", "Labels": map[string]string{"k": "v"}})
		e.must(http.MethodPost, "/volumes/create", map[string]any{"Name": "mpc-data"})
		assert.Equal(t, map[string]any{"k": "v"}, e.get("/volumes/mpc-data")["Labels"], "creating it again changes nothing")
		e.create("box", id, map[string]any{"Binds": []string{"mpc-data:/data"}})

		e.must(http.MethodPost, "/volumes/prune"+p.query, nil)
		assert.Equal(t, []string{"mpc-data"}, e.Volumes(), "a container references it, even one that never ran")
		status, text := e.do(http.MethodDelete, "/volumes/mpc-data", nil)
		assert.Equal(t, http.StatusConflict, status)
		assert.Contains(t, text, "volume is in use")

		e.must(http.MethodDelete, "/containers/box?v=1", nil)
		assert.Equal(t, []string{"mpc-data"}, e.Volumes(), "named volumes outlive their container")
		text = e.must(http.MethodPost, "/volumes/prune"+p.query, nil)
		assert.Equal(t, p.pruned, len(e.Volumes()) == 0, text)
		assert.Len(t, object(t, e.must(http.MethodGet, "/volumes", nil))["Volumes"], len(e.Volumes()))
		status, _ = e.do(http.MethodGet, "/volumes/nosuch", nil)
		assert.Equal(t, http.StatusNotFound, status)
	}
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	e := newEngine(t, launchtest.EngineOptions{})
	status, _ := e.do(http.MethodGet, "/networks/n", nil)
	assert.Equal(t, http.StatusNotFound, status)
	e.must(http.MethodPost, "/networks/create", map[string]any{"Name": "n", "Labels": map[string]string{"a": "b"}})
	assert.Equal(t, map[string]any{"a": "b"}, e.get("/networks/n")["Labels"])
	status, _ = e.do(http.MethodPost, "/networks/create", map[string]any{"Name": "n"})
	assert.Equal(t, http.StatusConflict, status)
	status, _ = e.do(http.MethodDelete, "/networks/host", nil)
	assert.Equal(t, http.StatusForbidden, status)
	e.must(http.MethodDelete, "/networks/n", nil)
	assert.Equal(t, []string{"network-create n", "network-remove n"}, e.effects.Effects())
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
