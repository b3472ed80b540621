package launchtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// EngineOptions configures an Engine.
type EngineOptions struct {
	// Containerd gives the engine the containerd image store instead of the classic one.
	Containerd bool
	// APIVersion is the highest version of the API that is spoken, and with it the engine that is
	// played: "1.41" (which is also what empty means) is 20.10, "1.45" is 26, "1.51" is 28.5, "1.52"
	// is 29.
	APIVersion string
	// Root is the engine's data root as it tells it; /var/lib/docker if empty. Nothing is written
	// there.
	Root string
	// Pigz says that the host has it. Engines unpack gzip with it then, and it takes what follows the
	// end for nothing.
	Pigz bool
	// Shared is a directory that is the volume "shared-volume" from the beginning. A container that
	// isn't shown, the launcher's own, has it, so that nothing can remove it. Empty: there is no such
	// volume.
	Shared string
	// OnStart says what a container that is started does: run on, or end at once with an exit code.
	// Nil: it runs. It is called without locks held and may use the Engine.
	OnStart func(ContainerInfo) (exitCode int, running bool)
	// OnStop returns the exit code with which a container ends that is told to stop; 137 means that it
	// had to be killed. Nil: 0.
	OnStop func(ContainerInfo) (exitCode int)
	// Exists says whether a path that is to be bind-mounted exists on the engine's host. Nil: every
	// path does.
	Exists func(path string) bool
	// Recorder receives the effects. Nil: they are not recorded.
	Recorder *Recorder
}

// Engine is a double of the Docker engine: an HTTP server on a unix socket that keeps images,
// containers, volumes and networks as dockerd does, one of two image stores included, and runs
// nothing.
type Engine struct {
	socket   string
	o        EngineOptions
	api      engineAPI // highest
	lowest   engineAPI
	release  string
	recorder *Recorder

	mu         sync.Mutex
	changed    chan struct{}   // closed and replaced on every change
	server     *http.Server    // nil while the daemon is down
	session    context.Context // ends when the daemon stops
	stop       context.CancelFunc
	serving    sync.WaitGroup
	images     imageStore
	containers []*container
	adds       map[string]any // to every HostConfig
	volumes    map[string]*volume
	networks   map[string]map[string]any
	events     []engineEvent
	faults     []*EngineFault
	watch      func(string) EngineFault
	requests   []string
	unexpected []string
	loads      int
	loadBytes  int64
	serial     int
}

// NewEngine starts an engine that listens on socket.
func NewEngine(socket string, o EngineOptions) (*Engine, error) {
	if o.APIVersion == "" {
		o.APIVersion = "1.41"
	}
	if o.Root == "" {
		o.Root = "/var/lib/docker"
	}
	api, err := parseAPI(o.APIVersion)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		socket: socket, o: o, api: api, lowest: lowestAPI(api), release: releaseOf(api),
		recorder: o.Recorder,
		changed:  make(chan struct{}), volumes: map[string]*volume{},
		networks: map[string]map[string]any{},
	}
	if o.Shared != "" {
		e.volumes[sharedVolume] = &volume{}
	}
	if o.Containerd {
		e.images = newContainerdStore(e)
	} else {
		e.images = newClassicStore(e)
	}
	for _, name := range []string{"bridge", "host", "none"} {
		e.networks[name] = map[string]any{"Name": name, "Id": e.newID()}
	}
	if err := e.Start(); err != nil {
		return nil, err
	}
	return e, nil
}

// Host returns the engine's address as DOCKER_HOST has it.
func (e *Engine) Host() string { return "unix://" + e.socket }

// Start brings up a daemon that was stopped. Containers are started as their restart policies say.
func (e *Engine) Start() error {
	e.mu.Lock()
	if e.server != nil {
		e.mu.Unlock()
		return errors.New("the engine runs already")
	}
	listener, err := listenAfresh(e.socket)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(e.serve)}
	e.session, e.stop = context.WithCancel(context.Background())
	e.server = server
	var started []*container
	for _, c := range e.toRestart() {
		if e.startable(c) == nil {
			e.begin(nil, c, "autostart")
			started = append(started, c)
		}
	}
	e.mu.Unlock()

	e.serving.Go(func() { _ = server.Serve(listener) })
	for _, c := range started {
		e.settle(c)
	}
	return nil
}

// listenAfresh listens on a socket, in place of one that a killed daemon left.
func listenAfresh(socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", socket)
}

// Stop takes the daemon down: open connections end, its socket is gone. In an orderly stop the
// containers are told to stop first; otherwise daemon and containers are killed, as by a power
// loss. What is stored stays.
func (e *Engine) Stop(orderly bool) error {
	e.mu.Lock()
	server := e.server
	if server == nil {
		e.mu.Unlock()
		return nil
	}
	e.server = nil
	e.stop()
	running := slices.DeleteFunc(slices.Clone(e.containers),
		func(c *container) bool { return !c.running })
	e.mu.Unlock()

	err := server.Close()
	e.serving.Wait()
	for _, c := range running {
		code := 255 // what dockerd notes when it finds a container dead that it had left alive
		if orderly {
			code = e.stopCode(c)
		}
		e.mu.Lock()
		c.stopped(code)
		e.mu.Unlock()
	}
	e.mu.Lock()
	for _, c := range e.containers {
		c.restarting = false
	}
	e.mu.Unlock()
	if err := os.Remove(e.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Restart is Stop and Start.
func (e *Engine) Restart(orderly bool) error {
	if err := e.Stop(orderly); err != nil {
		return err
	}
	return e.Start()
}

// Close ends the engine.
func (e *Engine) Close() error { return e.Stop(false) }

// Requests returns all requests so far, as "METHOD /path?query" without the version.
func (e *Engine) Requests() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.requests)
}

// Unexpected returns the requests that this double does not know, among them every attempt to reach
// a registry.
func (e *Engine) Unexpected() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.unexpected)
}

// Loads returns how many loads were asked for, whatever became of them.
func (e *Engine) Loads() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.loads
}

// LoadedBytes returns how many bytes were read from the bodies of all loads.
func (e *Engine) LoadedBytes() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.loadBytes
}

// Call does a request as somebody else on the machine would: no fault touches it, it is not
// counted, and what it changes is not recorded. A body that isn't nil is sent as JSON; an answer of
// 300 and above is an error.
func (e *Engine) Call(method, target string, body any) ([]byte, error) {
	var content []byte
	if body != nil {
		var err error
		if content, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	return e.call(method, target, content)
}

func (e *Engine) call(method, target string, body []byte) ([]byte, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	answer := httptest.NewRecorder()
	e.handle(answer, &engineRequest{
		ctx: context.Background(), session: context.Background(), foreign: true,
		method: method, path: u.Path, query: u.Query(), api: e.api, body: bytes.NewReader(body),
	})
	if answer.Code >= 300 {
		return nil, fmt.Errorf("%s %s: %s", method, target, answer.Body)
	}
	return answer.Body.Bytes(), nil
}

// engineRequest is one request, without what HTTP adds.
type engineRequest struct {
	ctx      context.Context
	method   string
	path     string // without the version
	name     string // of the image, container, volume or network that it is about
	query    url.Values
	api      engineAPI
	body     io.Reader
	foreign  bool            // done by Call
	session  context.Context // of the daemon that does it
	load     LoadFault
	loadCut  int64
	loadSays string
}

func (r *engineRequest) flag(name string) bool { return isTrue(r.query.Get(name)) }

func isTrue(text string) bool { return text == "1" || text == "true" }

func (r *engineRequest) decode(v any) error {
	if err := json.NewDecoder(r.body).Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return refusal(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	return nil
}

// filters reads the filters of a request, of which the double knows some.
func (r *engineRequest) filters(known ...string) (map[string][]string, error) {
	found := map[string][]string{}
	if text := r.query.Get("filters"); text != "" {
		if err := json.Unmarshal([]byte(text), &found); err != nil {
			return nil, refusal(http.StatusBadRequest, "invalid filters: %v", err)
		}
	}
	for name := range found {
		if !slices.Contains(known, name) {
			return nil, refusal(http.StatusBadRequest, "Invalid filter '%s'", name)
		}
	}
	return found, nil
}

// labelled reports whether labels are as a filter wants them: each one of it there, and of the
// value that it names.
func labelled(labels map[string]string, filter []string) bool {
	for _, wanted := range filter {
		key, value, valued := strings.Cut(wanted, "=")
		if got, ok := labels[key]; !ok || valued && got != value {
			return false
		}
	}
	return true
}

// engineRefusal is an answer of the engine other than success.
type engineRefusal struct {
	status  int
	message string
}

func (e *engineRefusal) Error() string { return e.message }

func refusal(status int, format string, args ...any) error {
	return &engineRefusal{status: status, message: fmt.Sprintf(format, args...)}
}

func (e *Engine) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", e.api.String())
	w.Header().Set("Ostype", "linux")
	request := &engineRequest{ctx: r.Context(), method: r.Method, path: r.URL.Path,
		query: r.URL.Query(), api: e.api, body: r.Body}
	if err := e.enter(request, r.URL.RawQuery); err != nil {
		answerError(w, err)
		return
	}
	e.disturb(w, request)
}

func answerError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var refused *engineRefusal
	if errors.As(err, &refused) {
		status = refused.status
	}
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	writeJSON(w, status, map[string]string{"message": err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// enter takes the version off the path and counts the request.
func (e *Engine) enter(r *engineRequest, rawQuery string) error {
	if first, rest, _ := strings.Cut(strings.TrimPrefix(r.path, "/"), "/"); strings.HasPrefix(first,
		"v") {
		if api, err := parseAPI(first[1:]); err == nil {
			r.path, r.api = "/"+rest, api
		}
	}
	line := r.method + " " + r.path
	if rawQuery != "" {
		line += "?" + rawQuery
	}
	e.mu.Lock()
	e.requests = append(e.requests, line)
	r.session = e.session
	e.mu.Unlock()
	if r.api < e.lowest {
		return refusal(http.StatusBadRequest,
			"client version %s is too old. Minimum supported API version is %s, "+
				"please upgrade your client to a newer version", r.api, e.lowest)
	}
	if r.api > e.api {
		return refusal(http.StatusBadRequest,
			"client version %s is too new. Maximum supported API version is %s", r.api, e.api)
	}
	return nil
}

// engineCall is what the engine does for a kind of request.
type engineCall struct {
	match string // as in EngineFault; what the star stands for is the request's name
	// answer does it with the lock held, and returns a document or nothing.
	answer func(*engineRequest) (any, error)
	// act does it with the lock not held, because it asks the test what happens; the answer is empty.
	act func(*engineRequest, *container) error
	// stream writes its answer itself, with the lock not held.
	stream func(http.ResponseWriter, *engineRequest) error
}

// created is a document that is answered with 201.
type created map[string]any

func (e *Engine) calls() []engineCall {
	return []engineCall{
		{match: "GET /_ping", stream: e.ping},
		{match: "HEAD /_ping", stream: e.ping},
		{match: "GET /version", answer: e.getVersion},
		{match: "GET /info", answer: e.getInfo},
		{match: "GET /events", stream: e.getEvents},
		{match: "POST /images/load", stream: e.loadImage},
		{match: "POST /images/prune", answer: e.pruneImages},
		{match: "GET /images/json", answer: e.listImages},
		{match: "GET /images/*/json", answer: e.inspectImage},
		{match: "DELETE /images/*", answer: e.removeImage},
		{match: "GET /containers/json", answer: e.listContainers},
		{match: "POST /containers/create", answer: e.createContainer},
		{match: "GET /containers/*/json", answer: e.inspectContainer},
		{match: "GET /containers/*/logs", stream: e.containerLogs},
		{match: "DELETE /containers/*", answer: e.removeContainer},
		{match: "POST /containers/*/start", act: e.startContainer},
		{match: "POST /containers/*/stop", act: e.stopContainer},
		{match: "POST /containers/*/restart", act: e.restartContainer},
		{match: "POST /containers/*/kill", act: e.killContainer},
		{match: "POST /containers/*/pause", answer: e.pauseContainer},
		{match: "POST /containers/*/unpause", answer: e.unpauseContainer},
		{match: "POST /containers/*/rename", answer: e.renameContainer},
		{match: "POST /containers/*/update", answer: e.updateContainer},
		{match: "POST /volumes/create", answer: e.createVolume},
		{match: "POST /volumes/prune", answer: e.pruneVolumes},
		{match: "GET /volumes/*", answer: e.inspectVolume},
		{match: "DELETE /volumes/*", answer: e.removeVolume},
		{match: "POST /networks/create", answer: e.createNetwork},
		{match: "GET /networks/*", answer: e.inspectNetwork},
	}
}

// handle does what a request asks for, and remembers it if nothing here knows it.
func (e *Engine) handle(w http.ResponseWriter, r *engineRequest) {
	for _, c := range e.calls() {
		name, ok := wildcard(c.match, r.method+" "+r.path)
		if !ok {
			continue
		}
		r.name = name
		if err := e.do(w, r, c); err != nil {
			answerError(w, err)
		}
		return
	}
	e.mu.Lock()
	e.unexpected = append(e.unexpected, r.method+" "+r.path)
	e.mu.Unlock()
	answerError(w, refusal(http.StatusNotFound, "page not found"))
}

func (e *Engine) do(w http.ResponseWriter, r *engineRequest, c engineCall) error {
	if c.stream != nil {
		return c.stream(w, r)
	}
	e.mu.Lock()
	if c.act != nil {
		found, err := e.find(r.name)
		e.mu.Unlock()
		if err == nil {
			err = c.act(r, found)
		}
		if err == nil {
			w.WriteHeader(http.StatusNoContent)
		}
		return err
	}
	defer e.mu.Unlock()
	doc, err := c.answer(r)
	if err != nil {
		return err
	}
	switch doc := doc.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case created:
		writeJSON(w, http.StatusCreated, doc)
	default:
		writeJSON(w, http.StatusOK, doc)
	}
	return nil
}

func (e *Engine) ping(w http.ResponseWriter, r *engineRequest) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.method != http.MethodHead {
		_, _ = io.WriteString(w, "OK")
	}
	return nil
}

func (e *Engine) getVersion(*engineRequest) (any, error) {
	return map[string]any{
		"Version": e.release, "ApiVersion": e.api.String(), "MinAPIVersion": e.lowest.String(),
		"Os": "linux", "Arch": runtime.GOARCH,
	}, nil
}

func (e *Engine) getInfo(*engineRequest) (any, error) {
	driver, status := "overlay2",
		[][]string{{"Backing Filesystem", "extfs"}, {"Supports d_type", "true"}}
	if e.o.Containerd {
		driver, status = "overlayfs", [][]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	}
	architecture, ok := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if !ok {
		architecture = runtime.GOARCH
	}
	return map[string]any{
		"ID": "DOUBLE", "Name": "engine-double", "ServerVersion": e.release, "Driver": driver,
		"DriverStatus":  status,
		"DockerRootDir": e.o.Root, "OSType": "linux", "Architecture": architecture,
		"DefaultRuntime":     "runc",
		"SecurityOptions":    []string{"name=seccomp,profile=default"},
		"LiveRestoreEnabled": false,
	}, nil
}

// Age makes all that has happened so far older, as if so much time had passed since.
func (e *Engine) Age(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.events {
		e.events[i].at = e.events[i].at.Add(-d)
	}
	for _, c := range e.containers {
		for _, at := range []*time.Time{&c.created, &c.started, &c.finished} {
			if !at.IsZero() {
				*at = at.Add(-d)
			}
		}
	}
}

// getEvents sends the events since the given time, and goes on until the client or the daemon ends
// or that time comes.
func (e *Engine) getEvents(w http.ResponseWriter, r *engineRequest) error {
	filters, err := r.filters("type", "event", "container")
	if err != nil {
		return err
	}
	since, err := eventTime(r.query.Get("since"))
	if err != nil {
		return err
	}
	until, err := eventTime(r.query.Get("until"))
	if err != nil {
		return err
	}
	var end <-chan time.Time
	if !until.IsZero() {
		if until.Before(since) {
			return refusal(http.StatusBadRequest, "`since` time cannot be after `until` time")
		}
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		end = timer.C
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush(w)

	e.mu.Lock()
	sent := len(e.events)
	if !since.IsZero() {
		sent = slices.IndexFunc(e.events, func(event engineEvent) bool { return !event.at.Before(since) })
		if sent < 0 {
			sent = len(e.events)
		}
	}
	e.mu.Unlock()
	for {
		e.mu.Lock()
		fresh := slices.Clone(e.events[sent:])
		sent = len(e.events)
		changed, session := e.changed, e.session
		e.mu.Unlock()
		for _, event := range fresh {
			if (until.IsZero() || !event.at.After(until)) && event.matches(filters) {
				if json.NewEncoder(w).Encode(event.doc()) != nil {
					return nil
				}
				flush(w)
			}
		}
		select {
		case <-changed:
		case <-end:
			return nil
		case <-r.ctx.Done():
			return nil
		case <-session.Done():
			return nil
		}
	}
}

// eventTime reads seconds and nanoseconds.
func eventTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return time.Time{}, refusal(http.StatusBadRequest, "invalid time %q", text)
	}
	return time.Unix(0, int64(seconds*1e9)), nil
}

type engineEvent struct {
	kind, action, id string
	attributes       map[string]string
	at               time.Time
}

func (v engineEvent) matches(filters map[string][]string) bool {
	one := func(name string, values ...string) bool {
		wanted := filters[name]
		return len(wanted) == 0 ||
			slices.ContainsFunc(values, func(v string) bool { return slices.Contains(wanted, v) })
	}
	return one("type", v.kind) && one("event", v.action) &&
		one("container", v.id, v.attributes["name"])
}

func (v engineEvent) doc() map[string]any {
	return map[string]any{
		"Type": v.kind, "Action": v.action,
		"Actor": map[string]any{"ID": v.id, "Attributes": v.attributes}, "scope": "local",
		"status": v.action, "id": v.id, "time": v.at.Unix(), "timeNano": v.at.UnixNano(),
	}
}

// emit adds an event. The lock is held.
func (e *Engine) emit(kind, action, id string, attributes map[string]string) {
	e.events = append(e.events, engineEvent{kind, action, id, attributes, time.Now()})
	e.notify()
}

// notify wakes everybody who waits for a change. The lock is held.
func (e *Engine) notify() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// record notes an effect of a request, unless somebody else did it.
func (e *Engine) record(r *engineRequest, format string, args ...any) {
	if r == nil || !r.foreign {
		e.recorder.Record(fmt.Sprintf(format, args...))
	}
}

// newID returns 64 hex digits, the same in every run of a test that does the same. The lock is held
// or not needed yet.
func (e *Engine) newID() string {
	e.serial++
	return digestOf([]byte(fmt.Sprintf("engine double %d", e.serial)))[len("sha256:"):]
}

func (e *Engine) volumePath(name string) string {
	if e.shared(name) {
		return e.o.Shared
	}
	return filepath.Join(e.o.Root, "volumes", name, "_data")
}

func flush(w http.ResponseWriter) {
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}

// engineAPI is a version of the engine's API, without the 1 that all of them begin with.
type engineAPI int

func parseAPI(text string) (engineAPI, error) {
	var minor engineAPI
	if _, err := fmt.Sscanf(text, "1.%d", &minor); err != nil {
		return 0, fmt.Errorf("%q is not a version of the API: %w", text, err)
	}
	return minor, nil
}

func (v engineAPI) String() string { return fmt.Sprintf("1.%d", int(v)) }

func (v engineAPI) atLeast(minor int) bool { return int(v) >= minor }

// lowestAPI returns the lowest version that an engine still speaks.
func lowestAPI(highest engineAPI) engineAPI {
	switch {
	case highest.atLeast(52):
		return 44
	case highest.atLeast(44):
		return 24
	}
	return 12
}

func releaseOf(api engineAPI) string {
	switch {
	case api.atLeast(52):
		return "29.0.0"
	case api.atLeast(48):
		return "28.5.2"
	case api.atLeast(45):
		return "26.1.5"
	}
	return "20.10.24"
}
