package launchtest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/launchtest"
)

// patience bounds every wait for something that has to happen: a hang, not a busy machine, is what
// it ends.
const patience = time.Minute

// scenario is one entry of the conformance table: what is done to an engine, and what is seen.
type scenario struct {
	name string
	do   func(s *subject)
	want string // one observation a line; see expected
}

// personality is what decides how an engine behaves: its version and its image store.
type personality struct {
	version string // the first number of the engine's version: "20", "28"
	store   string // "classic" or "containerd"
}

func (p personality) String() string { return p.version + " " + p.store }

// expected reads what a scenario wants to see on one engine. A line may begin with a condition in
// brackets, all of whose words must hold: a version or a store, or with ! in front of it any other.
func expected(want string, p personality) []string {
	var lines []string
	for line := range strings.Lines(want) {
		line = strings.TrimSpace(line)
		holds := line != ""
		if rest, ok := strings.CutPrefix(line, "["); ok {
			condition, observation, _ := strings.Cut(rest, "]")
			line = strings.TrimSpace(observation)
			for _, word := range strings.Fields(condition) {
				other, negated := strings.CutPrefix(word, "!")
				holds = holds && (other == p.version || other == p.store) != negated
			}
		}
		if holds {
			lines = append(lines, line)
		}
	}
	return lines
}

// conforms runs the whole table on one engine. Names and layers are its own, so that whatever else
// the engine has doesn't matter.
func conforms(t *testing.T, socket string, program []byte) {
	t.Helper()
	for _, c := range conformance() {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			s := newSubject(t, socket)
			s.program = program
			c.do(s)
			assert.Equal(t, expected(c.want, s.personality), s.seen, "%s: what is seen on %s", c.name,
				s.personality)
		})
	}
}

// subject is an engine, double or real, as a scenario uses it.
type subject struct {
	personality
	t       *testing.T
	socket  string
	client  *http.Client
	program []byte // /app/mpc-node of the images
	prefix  string // of the names of everything that is made
	seed    uint64 // of the layers
	known   []string
	seen    []string

	images, containers, volumes, networks []string // to be removed
}

func newSubject(t *testing.T, socket string) *subject {
	t.Helper()
	number := rand.Uint32()
	s := &subject{
		t: t, socket: socket, client: unixhttp.Client(socket, false),
		prefix: fmt.Sprintf("conformance-%08x", number), seed: uint64(number),
	}
	t.Cleanup(s.client.CloseIdleConnections)
	info := s.get("/info")
	s.version, _, _ = strings.Cut(info["ServerVersion"].(string), ".")
	s.store = "classic"
	if strings.Contains(fmt.Sprint(info["DriverStatus"]), "io.containerd.snapshotter.v1") {
		s.store = "containerd"
	}
	s.knows(s.prefix, "PREFIX")
	t.Cleanup(s.clear)
	return s
}

// clear removes what the scenario made.
func (s *subject) clear() {
	for _, c := range s.containers {
		s.ask(http.MethodDelete, "/containers/"+c+"?force=1&v=1", nil)
	}
	for _, image := range s.images {
		s.ask(http.MethodDelete, "/images/"+image+"?force=1", nil)
	}
	for _, v := range s.volumes {
		s.ask(http.MethodDelete, "/volumes/"+v, nil)
	}
	for _, n := range s.networks {
		s.ask(http.MethodDelete, "/networks/"+n, nil)
	}
}

func (s *subject) name(name string) string { return s.prefix + "-" + name }

// knows makes observations say name where text stands.
func (s *subject) knows(text, name string) { s.known = append(s.known, text, name) }

// see adds an observation, in which all that differs from one run to the next has a name.
func (s *subject) see(format string, args ...any) {
	s.t.Helper()
	s.seen = append(s.seen, strings.NewReplacer(s.known...).Replace(strings.TrimSpace(fmt.Sprintf(format, args...))))
}

// ask sends a request with body as it is, or as JSON if it is no reader, and returns status and
// answer.
func (s *subject) ask(method, target string, body any) (int, string) {
	s.t.Helper()
	content, ok := body.(io.Reader)
	if !ok && body != nil {
		text, err := json.Marshal(body)
		require.NoError(s.t, err)
		content = bytes.NewReader(text)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+target, content)
	require.NoError(s.t, err)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := s.client.Do(request)
	require.NoError(s.t, err, "%s %s", method, target)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(s.t, err, "%s %s", method, target)
	return response.StatusCode, string(text)
}

// must is ask for requests that succeed.
func (s *subject) must(method, target string, body any) string {
	s.t.Helper()
	status, text := s.ask(method, target, body)
	require.Less(s.t, status, 300, "%s %s: %s", method, target, text)
	return text
}

func (s *subject) get(target string) map[string]any {
	s.t.Helper()
	return object(s.t, s.must(http.MethodGet, target, nil))
}

// sees asks, and what is seen is the status.
func (s *subject) sees(what, method, target string, body any) {
	s.t.Helper()
	status, _ := s.ask(method, target, body)
	s.see("%s: %d", what, status)
}

// sample makes an image of this scenario's own: random layers, and a workload on top of them if
// there is a program.
func (s *subject) sample(o launchtest.ImageOptions, sizes ...int) sample {
	s.t.Helper()
	layers, err := launchtest.RandomLayers(s.seed, sizes...)
	require.NoError(s.t, err)
	s.seed += uint64(len(sizes))
	o.Layers = append(o.Layers, layers...)
	if o.Config.Cmd == nil {
		o.Config.Cmd = []string{"/app/mpc-node", "start-with-config-file", "/config/runs"}
	}
	if o.Config.Labels == nil {
		o.Config.Labels = map[string]string{}
	}
	o.Config.Labels["conformance"] = s.prefix
	made := newSample(s.t, o)
	made.repository = "registry.example:5000/" + s.prefix
	s.images = append(s.images, made.man(), made.cfg())
	s.knows(made.man(), "MANIFEST")
	s.knows(made.cfg(), "CONFIG")
	s.knows(strings.TrimPrefix(made.man(), "sha256:"), "MANIFEST-HEX")
	return made
}

// load loads a tar, and what is seen is what its answer says.
func (s *subject) load(what string, entries []entry, query string) string {
	s.t.Helper()
	status, text := s.ask(http.MethodPost, "/images/load"+query,
		bytes.NewReader(archive(s.t, entries)))
	require.Equal(s.t, http.StatusOK, status, "every load answers 200: %s", text)
	said := []string{}
	say := func(word string, is bool) {
		if is && !slices.Contains(said, word) {
			said = append(said, word)
		}
	}
	for line := range strings.Lines(text) {
		doc := object(s.t, line)
		stream, _ := doc["stream"].(string)
		say("loaded", strings.HasPrefix(stream, "Loaded image"))
		say("unpacking failed", strings.HasPrefix(stream, "Error unpacking image"))
		say("error", doc["error"] != nil || doc["errorDetail"] != nil)
	}
	s.see("%s: %s", what, strings.Join(said, ", "))
	return text
}

// inspects sees what an engine says of an image.
func (s *subject) inspects(what, ref string) {
	s.t.Helper()
	status, text := s.ask(http.MethodGet, "/images/"+ref+"/json", nil)
	if status != http.StatusOK {
		s.see("%s: %d", what, status)
		return
	}
	var image struct {
		ID     string `json:"Id"`
		RootFS struct{ Layers []string }
	}
	require.NoError(s.t, json.Unmarshal([]byte(text), &image))
	s.see("%s: %s with %d layers", what, image.ID, len(image.RootFS.Layers))
}

// available sees what an engine that tells it says of the manifests of an image: which have all their
// blobs, and which are unpacked.
func (s *subject) available(what, id string) {
	s.t.Helper()
	if s.version == "20" || s.version == "26" || s.store == "classic" {
		return
	}
	var doc struct {
		Manifests []struct {
			Available bool
			ImageData struct{ Size struct{ Unpacked int64 } }
		}
	}
	text := s.must(http.MethodGet, "/images/"+id+"/json?manifests=1", nil)
	require.NoError(s.t, json.Unmarshal([]byte(text), &doc))
	var available, unpacked []bool
	for _, m := range doc.Manifests {
		available = append(available, m.Available)
		unpacked = append(unpacked, m.ImageData.Size.Unpacked > 0)
	}
	s.see("%s: available %v, unpacked %v", what, available, unpacked)
}

// container creates a container of an image that runs on until it is told to end, unless body says
// otherwise.
func (s *subject) container(name, image string, more map[string]any, host map[string]any) string {
	s.t.Helper()
	body := map[string]any{"Image": image, "HostConfig": map[string]any{"NetworkMode": "none"}}
	for key, value := range more {
		body[key] = value
	}
	for key, value := range host {
		body["HostConfig"].(map[string]any)[key] = value
	}
	id := object(s.t, s.must(http.MethodPost, "/containers/create?name="+s.name(name),
		body))["Id"].(string)
	s.containers = append(s.containers, id)
	s.knows(id, "<"+name+">")
	return id
}

// workload loads an image that containers can be run of, and returns its ID.
func (s *subject) workload() string {
	s.t.Helper()
	made := s.sample(launchtest.ImageOptions{Layers: [][]byte{workloadLayer(s.t, s.program)}}, 1000)
	text := s.must(http.MethodPost, "/images/load", bytes.NewReader(archive(s.t, made.hybrid(s.t))))
	require.Contains(s.t, text, "Loaded image")
	return s.id(made)
}

// id is the ID that an image has in this engine's store.
func (s *subject) id(made sample) string {
	if s.store == "containerd" {
		return made.man()
	}
	return made.cfg()
}

// workloadLayer has the program and the configs that say what it does.
func workloadLayer(t *testing.T, program []byte) []byte {
	t.Helper()
	layer, err := launchtest.FileLayer(
		launchtest.File{Path: "app/mpc-node", Data: program, Mode: 0o755},
		launchtest.File{Path: "config/runs", Data: []byte("image_hash = \"x\"\n")},
		launchtest.File{Path: "config/ends-with-0", Data: []byte("image_hash = \"x\"\nexit_code = 0\n")},
		launchtest.File{Path: "config/ends-with-3", Data: []byte("image_hash = \"x\"\nexit_code = 3\n")},
		launchtest.File{Path: "config/stays", Data: []byte("image_hash = \"x\"\nignore_term = true\n")},
	)
	require.NoError(t, err)
	return layer
}

// runs is the body of a container whose program does what that config says.
func runs(config string) map[string]any {
	return map[string]any{"Cmd": []string{"/app/mpc-node", "start-with-config-file", "/config/" +
		config}}
}

// up waits until the program of a container has said that it is up, in its n-th start.
func (s *subject) up(container string, n int) {
	s.t.Helper()
	said := fmt.Sprintf("mpc-node: start %d,", n)
	require.Eventually(s.t, func() bool {
		return strings.Contains(strings.Join(s.log(container, ""),
			""), said)
	}, patience, 5*time.Millisecond)
}

// log returns the log of a container, each line with the number of its stream.
func (s *subject) log(container, query string) []string {
	s.t.Helper()
	return frames(s.t, s.must(http.MethodGet,
		"/containers/"+container+"/logs?stdout=1&stderr=1"+query, nil))
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

// state sees in which state a container is.
func (s *subject) state(what, container string) {
	s.t.Helper()
	state := s.get("/containers/" + container + "/json")["State"].(map[string]any)
	s.see("%s: %s %v", what, state["Status"], state["ExitCode"])
}

// watch returns what happens to a container from now on: each call of the result the next event's
// action and what comes with it.
func (s *subject) watch(container string) func() string {
	s.t.Helper()
	since := eventTime()
	filters := `{"type":["container"],"container":["` + container + `"],` +
		`"event":["start","die","kill","stop","destroy","rename"]}`
	query := url.Values{"filters": {filters}, "since": {since}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet,
		"http://engine/events?"+query.Encode(), nil)
	require.NoError(s.t, err)
	response, err := s.client.Do(request)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { response.Body.Close() })
	lines := bufio.NewScanner(response.Body)
	return func() string {
		s.t.Helper()
		require.True(s.t, lines.Scan(), "the stream of events ended: %v", lines.Err())
		var event struct {
			Action string
			Actor  struct{ Attributes map[string]string }
		}
		require.NoError(s.t, json.Unmarshal(lines.Bytes(), &event))
		return strings.TrimSpace(event.Action + " " + event.Actor.Attributes["signal"] +
			event.Actor.Attributes["exitCode"])
	}
}

// happens sees the next events up to one that begins with last.
func (s *subject) happens(what string, next func() string, last string) {
	s.t.Helper()
	var events []string
	for len(events) == 0 || !strings.HasPrefix(events[len(events)-1], last) {
		events = append(events, next())
	}
	for i := range len(events) - 1 { // engines tell these two in either order
		if events[i] == "stop" && strings.HasPrefix(events[i+1], "die") {
			events[i], events[i+1] = events[i+1], events[i]
		}
	}
	s.see("%s: %s", what, strings.Join(events, ", "))
}

// breakOff uploads a load whose body breaks off after what is sent, and returns when the engine is
// done with it.
func (s *subject) breakOff(sent []byte) {
	s.t.Helper()
	c, err := net.Dial("unix", s.socket)
	require.NoError(s.t, err)
	defer c.Close()
	require.NoError(s.t, c.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintf(c, "POST /images/load HTTP/1.1\r\nHost: engine\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(sent), sent)
	require.NoError(s.t, err)
	require.NoError(s.t, c.(*net.UnixConn).CloseWrite())
	_, err = io.Copy(io.Discard, c)
	require.NoError(s.t, err, "the engine closes the connection")
}

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var doc map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &doc), text)
	return doc
}

// newDouble starts an engine double in a directory whose name is short, as the path of a socket has
// to be.
func newDouble(t *testing.T,
	o launchtest.EngineOptions) (double *launchtest.Engine, socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine")
	require.NoError(t, err)
	socket = filepath.Join(dir, "docker.sock")
	double, err = launchtest.NewEngine(socket, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, double.Close())
		assert.NoError(t, os.RemoveAll(dir))
	})
	return double, socket
}

// playing are options with which an engine double's containers do what the configs of workloadLayer
// say.
func playing(double func() *launchtest.Engine,
	o launchtest.EngineOptions) launchtest.EngineOptions {
	config := func(c launchtest.ContainerInfo) string { return filepath.Base(c.Cmd[len(c.Cmd)-1]) }
	o.OnStart = func(c launchtest.ContainerInfo) (exitCode int, running bool) {
		_ = double().Log(c.Name, fmt.Sprintf("mpc-node: start %d, image_hash = \"x\"\n", c.Starts), "")
		switch config(c) {
		case "ends-with-0":
			return 0, false
		case "ends-with-3":
			return 3, false
		}
		return 0, true
	}
	o.OnStop = func(c launchtest.ContainerInfo) int {
		if config(c) == "stays" {
			return 137
		}
		return 0
	}
	return o
}

// onlyHere is a query that asks for this machine's platform.
func onlyHere() string {
	return "?platform=" + url.QueryEscape(`{"os":"linux","architecture":"`+runtime.GOARCH+`"}`)
}

func architecture() string { return runtime.GOARCH }

// eventTime is now as every engine reads it.
func eventTime() string {
	now := time.Now()
	return fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond())
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}

func list(t *testing.T, text string) []map[string]any {
	t.Helper()
	var docs []map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &docs), text)
	return docs
}

// comesTo waits until a container has a status.
func (s *subject) comesTo(container, status string) (state map[string]any) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		state = s.get("/containers/" + container + "/json")["State"].(map[string]any)
		return state["Status"] == status
	}, patience, time.Millisecond)
	return state
}
