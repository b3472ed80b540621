package launchtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
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
	// APIVersion is the highest version of the API that is spoken, and with it the engine that is played: "1.41" (which
	// is also what empty means) is 20.10, "1.45" is 26, "1.51" is 28.5, "1.52" is 29.
	APIVersion string
	// Root is the engine's data root as it tells it; /var/lib/docker if empty. Nothing is written there.
	Root string
	// OnStart says what a container that is started does: run on, or end at once with an exit code. Nil: it runs.
	// It is called without locks held and may use the Engine.
	OnStart func(ContainerInfo) (exitCode int, running bool)
	// OnStop returns the exit code with which a container ends that is told to stop; 137 means that it had to be
	// killed. Nil: 0.
	OnStop func(ContainerInfo) (exitCode int)
	// Exists says whether a path that is to be bind-mounted exists on the engine's host. Nil: every path does.
	Exists func(path string) bool
	// Recorder receives the effects. Nil: they are not recorded.
	Recorder *Recorder
}

// Engine is a double of the Docker engine: an HTTP server on a unix socket that keeps images, containers, volumes and
// networks as dockerd does, one of two image stores included, and runs nothing.
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
	volumes    map[string]*volume
	networks   []*network
	events     []map[string]any
	faults     []*EngineFault
	requests   []string
	unexpected []string
	loads      int
	loadBytes  int64
	serial     int
}

// NewEngine starts an engine that listens on socket.
func NewEngine(socket string, o EngineOptions) (*Engine, error) {
	api, err := parseAPI(o.APIVersion, engineAPI{1, 41})
	if err != nil {
		return nil, err
	}
	e := &Engine{
		socket: socket, o: o, api: api, lowest: lowestAPI(api), release: releaseOf(api), recorder: o.Recorder,
		changed: make(chan struct{}), volumes: map[string]*volume{},
	}
	if e.o.Root == "" {
		e.o.Root = "/var/lib/docker"
	}
	if o.Containerd {
		e.images = newContainerdStore(e)
	} else {
		e.images = newClassicStore(e)
	}
	for _, n := range [][2]string{{"bridge", "bridge"}, {"host", "host"}, {"none", "null"}} {
		e.networks = append(e.networks, &network{id: e.newID(), name: n[0], driver: n[1], created: time.Now(), predefined: true})
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

// Stop takes the daemon down: open connections end, its socket is gone. In an orderly stop the containers are told to
// stop first; otherwise daemon and containers are killed, as by a power loss. What is stored stays.
func (e *Engine) Stop(orderly bool) error {
	e.mu.Lock()
	server := e.server
	if server == nil {
		e.mu.Unlock()
		return nil
	}
	e.server = nil
	e.stop()
	running := slices.DeleteFunc(slices.Clone(e.containers), func(c *container) bool { return !c.running })
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

// Unexpected returns the requests that this double does not know, among them every attempt to reach a registry.
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

// Call does a request as somebody else on the machine would: no fault touches it, it is not counted, and what it
// changes is not recorded. A body that isn't nil is sent as JSON; an answer of 300 and above is an error.
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
	answer := &heldAnswer{header: http.Header{}, status: http.StatusOK}
	request := &engineRequest{
		ctx: context.Background(), session: context.Background(), foreign: true,
		method: method, path: u.Path, query: u.Query(), api: e.api, body: bytes.NewReader(body),
	}
	if err := e.handle(answer, request); err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, target, err)
	}
	return answer.body, nil
}

// engineRequest is one request, without what HTTP adds.
type engineRequest struct {
	ctx     context.Context
	method  string
	path    string // without the version
	query   url.Values
	api     engineAPI
	body    io.Reader
	foreign bool            // done by Call
	session context.Context // of the daemon that does it
	load    LoadFault
	loadCut int64
}

func (r *engineRequest) flag(name string) bool {
	v := r.query.Get(name)
	return v != "" && v != "0" && v != "no" && v != "false" && v != "none"
}

func (r *engineRequest) decode(v any) error {
	if err := json.NewDecoder(r.body).Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return refusal(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	return nil
}

// filters reads the two forms that clients send: lists of values, and sets as objects.
func (r *engineRequest) filters(known ...string) (map[string][]string, error) {
	text := r.query.Get("filters")
	if text == "" {
		return nil, nil
	}
	found := map[string][]string{}
	if json.Unmarshal([]byte(text), &found) != nil {
		found = map[string][]string{}
		var sets map[string]map[string]bool
		if err := json.Unmarshal([]byte(text), &sets); err != nil {
			return nil, refusal(http.StatusBadRequest, "invalid filters: %v", err)
		}
		for name, set := range sets {
			for value := range set {
				found[name] = append(found[name], value)
			}
		}
	}
	for name := range found {
		if !slices.Contains(known, name) {
			return nil, refusal(http.StatusBadRequest, "Invalid filter '%s'", name)
		}
	}
	return found, nil
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

// heldAnswer keeps an answer instead of sending it.
type heldAnswer struct {
	header http.Header
	status int
	body   []byte
}

func (a *heldAnswer) Header() http.Header         { return a.header }
func (a *heldAnswer) WriteHeader(status int)      { a.status = status }
func (a *heldAnswer) Write(b []byte) (int, error) { a.body = append(a.body, b...); return len(b), nil }

func (a *heldAnswer) send(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

func (e *Engine) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", e.api.String())
	w.Header().Set("Docker-Experimental", "false")
	w.Header().Set("Ostype", "linux")
	w.Header().Set("Server", "Docker/"+e.release+" (linux)")
	request := &engineRequest{ctx: r.Context(), method: r.Method, path: r.URL.Path, query: r.URL.Query(), api: e.api, body: r.Body}
	err := e.enter(request, r.URL.RawQuery)
	if err == nil {
		err = e.disturb(w, request)
	}
	answerError(w, err)
}

func answerError(w http.ResponseWriter, err error) {
	if err == nil {
		return
	}
	status := http.StatusInternalServerError
	message := err.Error()
	var refused *engineRefusal
	if errors.As(err, &refused) {
		status, message = refused.status, refused.message
	}
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	writeJSON(w, status, map[string]string{"message": message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// enter takes the version off the path and counts the request.
func (e *Engine) enter(r *engineRequest, rawQuery string) error {
	if first, rest, _ := strings.Cut(strings.TrimPrefix(r.path, "/"), "/"); strings.HasPrefix(first, "v") {
		if api, err := parseAPI(first[1:], engineAPI{}); err == nil {
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
	if r.api.less(e.lowest) {
		return refusal(http.StatusBadRequest, "client version %s is too old. Minimum supported API version is %s, "+
			"please upgrade your client to a newer version", r.api, e.lowest)
	}
	if e.api.less(r.api) {
		return refusal(http.StatusBadRequest, "client version %s is too new. Maximum supported API version is %s", r.api, e.api)
	}
	return nil
}

var errUnknown = errors.New("the engine double does not know this request")

// handle does what a request asks for.
func (e *Engine) handle(w http.ResponseWriter, r *engineRequest) error {
	err := e.route(w, r)
	if errors.Is(err, errUnknown) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.unexpected = append(e.unexpected, r.method+" "+r.path)
		return refusal(http.StatusNotFound, "page not found")
	}
	return err
}

func (e *Engine) route(w http.ResponseWriter, r *engineRequest) error {
	parts := strings.Split(strings.Trim(r.path, "/"), "/")
	switch parts[0] {
	case "_ping":
		return e.ping(w, r)
	case "version":
		return e.getVersion(w)
	case "info":
		return e.getInfo(w)
	case "events":
		return e.getEvents(w, r)
	case "images":
		return e.serveImages(w, r, parts[1:])
	case "containers":
		return e.serveContainers(w, r, parts[1:])
	case "volumes":
		return e.serveVolumes(w, r, parts[1:])
	case "networks":
		return e.serveNetworks(w, r, parts[1:])
	}
	return errUnknown
}

func (e *Engine) ping(w http.ResponseWriter, r *engineRequest) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.method != http.MethodHead {
		_, _ = io.WriteString(w, "OK")
	}
	return nil
}

func (e *Engine) getVersion(w http.ResponseWriter) error {
	details := map[string]string{"ApiVersion": e.api.String(), "MinAPIVersion": e.lowest.String(), "Arch": runtime.GOARCH, "Os": "linux"}
	writeJSON(w, http.StatusOK, map[string]any{
		"Platform": map[string]string{"Name": ""}, "Version": e.release, "ApiVersion": e.api.String(), "MinAPIVersion": e.lowest.String(),
		"Os": "linux", "Arch": runtime.GOARCH, "KernelVersion": "6.1.0", "GoVersion": runtime.Version(), "GitCommit": "0000000",
		"Components": []any{map[string]any{"Name": "Engine", "Version": e.release, "Details": details}},
	})
	return nil
}

func (e *Engine) getInfo(w http.ResponseWriter) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	driver, status := "overlay2", [][]string{{"Backing Filesystem", "extfs"}, {"Supports d_type", "true"}}
	if e.o.Containerd {
		driver, status = "overlayfs", [][]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	}
	architecture, ok := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if !ok {
		architecture = runtime.GOARCH
	}
	count := map[string]int{}
	for _, c := range e.containers {
		switch {
		case c.paused:
			count["paused"]++
		case c.live():
			count["running"]++
		default:
			count["stopped"]++
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"ID": "DOUBLE", "Name": "engine-double", "ServerVersion": e.release, "Driver": driver, "DriverStatus": status,
		"DockerRootDir": e.o.Root, "OSType": "linux", "Architecture": architecture, "OperatingSystem": "Linux", "KernelVersion": "6.1.0",
		"NCPU": runtime.NumCPU(), "MemTotal": int64(8 << 30), "SecurityOptions": []string{"name=seccomp,profile=default"},
		"Containers": len(e.containers), "ContainersRunning": count["running"], "ContainersPaused": count["paused"],
		"ContainersStopped": count["stopped"], "Images": e.images.count(), "LiveRestoreEnabled": false, "Warnings": nil,
	})
	return nil
}

// Age makes all that has happened so far older, as if so much time had passed since.
func (e *Engine) Age(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, event := range e.events {
		at := time.Unix(0, event["timeNano"].(int64)).Add(-d)
		older := maps.Clone(event) // whoever was sent the other one may still hold it
		older["time"], older["timeNano"] = at.Unix(), at.UnixNano()
		e.events[i] = older
	}
	for _, c := range e.containers {
		for _, at := range []*time.Time{&c.created, &c.started, &c.finished} {
			if !at.IsZero() {
				*at = at.Add(-d)
			}
		}
	}
}

// getEvents sends the events since the given time, and goes on until the client or the daemon ends or that time comes.
func (e *Engine) getEvents(w http.ResponseWriter, r *engineRequest) error {
	filters, err := r.filters("type", "event", "container", "label", "image", "volume", "network", "scope", "daemon")
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
	if !until.IsZero() && until.Before(since) {
		return refusal(http.StatusBadRequest, "`since` time (%s) cannot be after `until` time (%s)", r.query.Get("since"), r.query.Get("until"))
	}
	var end <-chan time.Time
	if !until.IsZero() {
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
		sent = slices.IndexFunc(e.events, func(event map[string]any) bool { return event["timeNano"].(int64) >= since.UnixNano() })
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
			if (until.IsZero() || event["timeNano"].(int64) <= until.UnixNano()) && eventMatches(event, filters) {
				if json.NewEncoder(w).Encode(event) != nil {
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

func eventTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		return time.Unix(0, int64(seconds*1e9)), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, refusal(http.StatusBadRequest, "invalid time %q", text)
	}
	return t, nil
}

func eventMatches(event map[string]any, filters map[string][]string) bool {
	actor := event["Actor"].(map[string]any)
	attributes := actor["Attributes"].(map[string]string)
	for name, values := range filters {
		ok := false
		for _, value := range values {
			switch name {
			case "type":
				ok = ok || event["Type"] == value
			case "event":
				ok = ok || event["Action"] == value
			case "label":
				key, want, valued := strings.Cut(value, "=")
				got, there := attributes[key]
				ok = ok || there && (!valued || got == want)
			case "container", "image", "volume", "network":
				id := actor["ID"].(string)
				ok = ok || event["Type"] == name && (attributes["name"] == value || len(value) >= 12 && strings.HasPrefix(id, value))
			default:
				ok = true
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

// emit adds an event. The lock is held.
func (e *Engine) emit(kind, action, id string, attributes map[string]string) {
	now := time.Now()
	if attributes == nil {
		attributes = map[string]string{}
	}
	event := map[string]any{
		"Type": kind, "Action": action, "Actor": map[string]any{"ID": id, "Attributes": attributes}, "scope": "local",
		"time": now.Unix(), "timeNano": now.UnixNano(),
	}
	if kind == "container" || kind == "image" {
		event["status"], event["id"] = action, id
		if from := attributes["image"]; from != "" {
			event["from"] = from
		}
	}
	e.events = append(e.events, event)
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

// newID returns 64 hex digits, the same in every run of a test that does the same. The lock is held or not needed yet.
func (e *Engine) newID() string {
	e.serial++
	return digestOf([]byte(fmt.Sprintf("engine double %d", e.serial)))[len("sha256:"):]
}

func (e *Engine) volumePath(name string) string {
	return filepath.Join(e.o.Root, "volumes", name, "_data")
}

func flush(w http.ResponseWriter) {
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}

// engineAPI is a version of the engine's API.
type engineAPI struct{ major, minor int }

func parseAPI(text string, byDefault engineAPI) (engineAPI, error) {
	if text == "" {
		return byDefault, nil
	}
	major, minor, ok := strings.Cut(text, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	if !ok || errA != nil || errB != nil {
		return engineAPI{}, fmt.Errorf("%q is not a version of the API", text)
	}
	return engineAPI{a, b}, nil
}

func (v engineAPI) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v engineAPI) less(w engineAPI) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

func (v engineAPI) atLeast(minor int) bool { return !v.less(engineAPI{1, minor}) }

// lowestAPI returns the lowest version that an engine still speaks.
func lowestAPI(highest engineAPI) engineAPI {
	switch {
	case highest.atLeast(54):
		return engineAPI{1, 40}
	case highest.atLeast(52):
		return engineAPI{1, 44}
	case highest.atLeast(44):
		return engineAPI{1, 24}
	}
	return engineAPI{1, 12}
}

func releaseOf(api engineAPI) string {
	releases := []struct {
		minor   int
		release string
	}{
		{54, "29.3.0"}, {52, "29.0.0"}, {51, "28.5.2"}, {50, "28.2.2"}, {48, "28.0.4"}, {47, "27.5.1"},
		{45, "26.1.5"}, {44, "25.0.5"}, {43, "24.0.9"}, {42, "23.0.6"},
	}
	for _, r := range releases {
		if api.atLeast(r.minor) {
			return r.release
		}
	}
	return "20.10.24"
}
