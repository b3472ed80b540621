package launchtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// ContainerInfo is what an Engine tells of a container.
type ContainerInfo struct {
	ID            string
	Name          string
	Image         string // the image's ID
	ImageRef      string // as it was named at creation
	Entrypoint    []string
	Cmd           []string
	Env           []string
	Labels        map[string]string
	Mounts        []ContainerMount
	SecurityOpt   []string
	Ports         map[string]string // container port such as 11780/tcp → host port
	RestartPolicy string
	Status        string // created, running, paused, restarting, exited
	ExitCode      int
	Starts        int // how often it was started, by whomever
	RestartCount  int // by the engine, since somebody started it
}

// ContainerMount is a mount of a container.
type ContainerMount struct {
	Type        string // bind, volume
	Name        string // of a volume
	Source      string
	Destination string
	Mode        string
	RW          bool
}

// container is a container's state; the engine's lock guards it.
type container struct {
	id, name, image   string
	created           time.Time
	config, host      map[string]any // as they are told, with defaults and what the image adds
	networking        map[string]any
	entrypoint, cmd   []string
	env, securityOpt  []string
	labels            map[string]string
	mounts            []ContainerMount
	anonymous         []string // volumes that end with it
	ports             map[string]string
	policy            restartPolicy
	running, paused   bool
	restarting        bool
	exitCode, pid     int
	failure           string // why it could not be started
	started, finished time.Time
	starts, restarts  int
	stoppedByHand     bool
	backoff           time.Duration
	log               []logLine
	removed           bool
}

type restartPolicy struct {
	Name              string
	MaximumRetryCount int
}

type logLine struct {
	stream byte // 1 stdout, 2 stderr
	at     time.Time
	text   string
}

// live says whether there is a process, or soon will be again.
func (c *container) live() bool { return c.running || c.restarting }

func (c *container) status() string {
	switch {
	case c.paused:
		return "paused"
	case c.restarting:
		return "restarting"
	case c.running:
		return "running"
	case c.starts > 0:
		return "exited"
	}
	return "created"
}

func (c *container) stopped(code int) {
	c.running, c.paused, c.restarting = false, false, false
	c.exitCode, c.pid, c.finished = code, 0, time.Now()
}

func (c *container) info() ContainerInfo {
	return ContainerInfo{
		ID: c.id, Name: c.name, Image: c.image, ImageRef: asString(c.config["Image"]),
		Entrypoint: slices.Clone(c.entrypoint), Cmd: slices.Clone(c.cmd),
		Env: slices.Clone(c.env), Labels: maps.Clone(c.labels), Mounts: slices.Clone(c.mounts), SecurityOpt: slices.Clone(c.securityOpt),
		Ports: maps.Clone(c.ports), RestartPolicy: c.policy.Name, Status: c.status(), ExitCode: c.exitCode,
		Starts: c.starts, RestartCount: c.restarts,
	}
}

// Containers returns the containers in the order of their creation.
func (e *Engine) Containers() []ContainerInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []ContainerInfo
	for _, c := range e.containers {
		list = append(list, c.info())
	}
	return list
}

// Exit ends a running container, named by ID or name, as if its process had ended by itself.
func (e *Engine) Exit(container string, code int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(container)
	if err != nil {
		return err
	}
	if !c.running || c.restarting {
		return fmt.Errorf("container %s is %s", c.name, c.status())
	}
	e.die(c, code, false)
	return nil
}

// Log adds lines to a container's log, as its process writes them.
func (e *Engine) Log(container string, stdout, stderr string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(container)
	if err != nil {
		return err
	}
	for i, text := range []string{stdout, stderr} {
		for line := range strings.Lines(text) {
			c.log = append(c.log, logLine{stream: byte(i + 1), at: time.Now(), text: line})
		}
	}
	e.notify()
	return nil
}

// find knows IDs, names and beginnings of IDs. The lock is held.
func (e *Engine) find(ref string) (*container, error) {
	name := strings.TrimPrefix(ref, "/")
	var found []*container
	for _, c := range e.containers {
		if c.id == ref || c.name == name {
			return c, nil
		}
		if ref != "" && strings.HasPrefix(c.id, ref) {
			found = append(found, c)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return nil, refusal(http.StatusNotFound, "No such container: %s", ref)
}

func (e *Engine) serveContainers(w http.ResponseWriter, r *engineRequest, parts []string) error {
	if len(parts) == 1 {
		switch {
		case r.method == http.MethodGet && parts[0] == "json":
			return e.listContainers(w, r)
		case r.method == http.MethodPost && parts[0] == "create":
			return e.createContainer(w, r)
		case r.method == http.MethodDelete:
			return e.removeContainer(w, r, parts[0])
		}
		return errUnknown
	}
	if len(parts) != 2 {
		return errUnknown
	}
	ref := parts[0]
	switch r.method + " " + parts[1] {
	case "GET json":
		return e.inspectContainer(w, ref)
	case "GET logs":
		return e.containerLogs(w, r, ref)
	case "POST wait":
		return e.waitContainer(w, r, ref)
	case "POST start":
		return e.startContainer(w, r, ref)
	}
	act, ok := map[string]func(*engineRequest, *container) error{
		"stop": e.stopContainer, "restart": e.restartContainer, "kill": e.killContainer, "pause": e.pauseContainer, "unpause": e.unpauseContainer,
		"rename": e.renameContainer, "update": e.updateContainer,
	}[parts[1]]
	if !ok || r.method != http.MethodPost {
		return errUnknown
	}
	e.mu.Lock()
	c, err := e.find(ref)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if err := act(r, c); err != nil {
		return err
	}
	if parts[1] == "update" {
		writeJSON(w, http.StatusOK, map[string]any{"Warnings": nil})
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (e *Engine) createContainer(w http.ResponseWriter, r *engineRequest) error {
	var body map[string]any
	if err := r.decode(&body); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	name := strings.TrimPrefix(r.query.Get("name"), "/")
	c := &container{id: e.newID(), name: name, created: time.Now(), config: configDefaults()}
	if name == "" {
		c.name = "nameless_" + shortID(c.id)
	}
	if asString(body["Image"]) == "" {
		return refusal(http.StatusBadRequest, "Config cannot be empty in order to create a container")
	}
	image, err := e.images.resolve(asString(body["Image"]))
	if err != nil {
		return err
	}
	imageConfig, err := e.images.config(image)
	if err != nil {
		return err
	}
	if err := e.freeName(c.name); err != nil {
		return err
	}
	c.image = image
	c.host, _ = body["HostConfig"].(map[string]any)
	c.networking, _ = body["NetworkingConfig"].(map[string]any)
	if c.host == nil {
		c.host = map[string]any{}
	}
	delete(body, "HostConfig")
	delete(body, "NetworkingConfig")
	maps.Copy(c.config, body)
	if err := c.configure(imageConfig.Config); err != nil {
		return err
	}
	if err := e.mount(r, c, imageConfig.Config); err != nil {
		return err
	}
	e.containers = append(e.containers, c)
	e.containerEvent(c, "create", nil)
	e.record(r, "create %s", c.shownName())
	writeJSON(w, http.StatusCreated, map[string]any{"Id": c.id, "Warnings": []string{}})
	return nil
}

func (e *Engine) freeName(name string) error {
	if !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`).MatchString(name) {
		return refusal(http.StatusBadRequest, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	for _, other := range e.containers {
		if other.name == name {
			return refusal(http.StatusConflict, `Conflict. The container name "/%s" is already in use by container "%s". `+
				"You have to remove (or rename) that container to be able to reuse that name.", name, other.id)
		}
	}
	return nil
}

// configDefaults are the fields that every config shows.
func configDefaults() map[string]any {
	return map[string]any{
		"Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false, "AttachStderr": false, "Tty": false,
		"OpenStdin": false, "StdinOnce": false, "Env": nil, "Cmd": nil, "Image": "", "Volumes": nil, "WorkingDir": "", "Entrypoint": nil,
		"OnBuild": nil, "Labels": nil,
	}
}

// configure merges what the image says into what was asked for, and reads the parts that the double acts on.
func (c *container) configure(image v1.Config) error {
	var asked struct {
		Entrypoint, Cmd, Env []string
		Labels               map[string]string
	}
	var host struct {
		RestartPolicy restartPolicy
		SecurityOpt   []string
		PortBindings  map[string][]struct{ HostPort string }
	}
	if err := remarshal(c.config, &asked); err != nil {
		return refusal(http.StatusBadRequest, "%v", err)
	}
	if err := remarshal(c.host, &host); err != nil {
		return refusal(http.StatusBadRequest, "%v", err)
	}
	c.entrypoint, c.cmd, c.env = asked.Entrypoint, asked.Cmd, asked.Env
	if c.entrypoint == nil {
		if len(c.cmd) == 0 {
			c.cmd = image.Cmd
		}
		c.entrypoint = image.Entrypoint
	}
	if len(c.entrypoint)+len(c.cmd) == 0 {
		return refusal(http.StatusBadRequest, "No command specified")
	}
	for _, setting := range image.Env {
		key, _, _ := strings.Cut(setting, "=")
		if !slices.ContainsFunc(c.env, func(own string) bool { return strings.HasPrefix(own, key+"=") || own == key }) {
			c.env = append(c.env, setting)
		}
	}
	c.labels = map[string]string{}
	maps.Copy(c.labels, image.Labels)
	maps.Copy(c.labels, asked.Labels)
	switch host.RestartPolicy.Name {
	case "", "no", "always", "unless-stopped", "on-failure":
	default:
		return refusal(http.StatusBadRequest, "invalid restart policy '%s'", host.RestartPolicy.Name)
	}
	c.policy, c.securityOpt = host.RestartPolicy, host.SecurityOpt
	c.ports = map[string]string{}
	for port, bindings := range host.PortBindings {
		for _, b := range bindings {
			c.ports[port] = b.HostPort
		}
	}
	c.config["Entrypoint"], c.config["Cmd"], c.config["Env"], c.config["Labels"] = c.entrypoint, c.cmd, c.env, c.labels
	for key, value := range map[string]string{"WorkingDir": image.WorkingDir, "User": image.User, "StopSignal": image.StopSignal} {
		if asString(c.config[key]) == "" && value != "" {
			c.config[key] = value
		}
	}
	if asString(c.config["Hostname"]) == "" {
		c.config["Hostname"] = shortID(c.id)
	}
	if asString(c.host["NetworkMode"]) == "" {
		c.host["NetworkMode"] = "default"
	}
	return nil
}

// mount resolves binds and mounts; named volumes that don't exist are created, as dockerd does.
func (e *Engine) mount(r *engineRequest, c *container, image v1.Config) error {
	var host struct {
		Binds  []string
		Mounts []struct {
			Type, Source, Target string
			ReadOnly             bool
			BindOptions          struct{ CreateMountpoint bool }
		}
	}
	if err := remarshal(c.host, &host); err != nil {
		return refusal(http.StatusBadRequest, "%v", err)
	}
	for _, bind := range host.Binds {
		fields := strings.Split(bind, ":")
		if len(fields) < 2 || len(fields) > 3 || !path.IsAbs(fields[1]) {
			return refusal(http.StatusBadRequest, "invalid volume specification: '%s'", bind)
		}
		m := ContainerMount{Type: "bind", Source: path.Clean(fields[0]), Destination: path.Clean(fields[1]), RW: true}
		if len(fields) == 3 {
			m.Mode = fields[2]
			m.RW = !slices.Contains(strings.Split(m.Mode, ","), "ro")
		}
		if !path.IsAbs(fields[0]) {
			m.Type, m.Name, m.Source = "volume", fields[0], e.volumePath(fields[0])
			if m.Mode == "" {
				m.Mode = "z"
			}
		}
		c.mounts = append(c.mounts, m)
	}
	for _, asked := range host.Mounts {
		m := ContainerMount{Type: asked.Type, Source: asked.Source, Destination: path.Clean(asked.Target), RW: !asked.ReadOnly}
		switch asked.Type {
		case "volume":
			m.Name, m.Source, m.Mode = asked.Source, e.volumePath(asked.Source), "z"
		case "bind":
			if e.o.Exists != nil && !e.o.Exists(asked.Source) && !asked.BindOptions.CreateMountpoint {
				return refusal(http.StatusBadRequest, `invalid mount config for type "bind": bind source path does not exist: %s`, asked.Source)
			}
		case "tmpfs":
		default:
			return refusal(http.StatusBadRequest, "mount type unknown")
		}
		c.mounts = append(c.mounts, m)
	}
	for destination := range image.Volumes {
		if !slices.ContainsFunc(c.mounts, func(m ContainerMount) bool { return m.Destination == destination }) {
			name := e.newID()
			c.anonymous = append(c.anonymous, name)
			c.mounts = append(c.mounts, ContainerMount{Type: "volume", Name: name, Source: e.volumePath(name), Destination: destination, RW: true})
		}
	}
	for _, m := range c.mounts {
		if m.Type == "volume" {
			e.addVolume(r, m.Name, nil, slices.Contains(c.anonymous, m.Name))
		}
	}
	return nil
}

// shownName is the container's name for records. Compose's temporary names begin with the ID of the container that is
// replaced, which says nothing to a test.
func (c *container) shownName() string {
	return regexp.MustCompile(`^[0-9a-f]{12}_`).ReplaceAllString(c.name, "<id>_")
}

func (e *Engine) containerEvent(c *container, action string, more map[string]string) {
	attributes := map[string]string{"name": c.name, "image": asString(c.config["Image"])}
	maps.Copy(attributes, c.labels)
	maps.Copy(attributes, more)
	e.emit("container", action, c.id, attributes)
}

func (e *Engine) startContainer(w http.ResponseWriter, r *engineRequest, ref string) error {
	e.mu.Lock()
	c, err := e.find(ref)
	if err == nil {
		err = e.startable(c)
	}
	if err == nil {
		c.restarts, c.stoppedByHand, c.backoff = 0, false, 0
		e.begin(r, c, "start")
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	e.settle(c)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (e *Engine) startable(c *container) error {
	if c.paused {
		return refusal(http.StatusConflict, "cannot start a paused container, try unpause instead")
	}
	if c.running {
		return refusal(http.StatusNotModified, "already running")
	}
	err := e.connectable(c)
	if err != nil {
		c.exitCode, c.failure = 128, err.Error()
	}
	return err
}

// connectable proves what dockerd looks at only when it starts a container: its network and its ports.
func (e *Engine) connectable(c *container) error {
	mode := asString(c.host["NetworkMode"])
	if mode != "default" && !strings.HasPrefix(mode, "container:") && e.findNetwork(mode) == nil {
		return refusal(http.StatusNotFound, "network %s not found", mode)
	}
	for _, other := range e.containers {
		for _, port := range c.ports {
			if other != c && other.running && port != "" && slices.Contains(slices.Collect(maps.Values(other.ports)), port) {
				return refusal(http.StatusInternalServerError, "driver failed programming external connectivity on endpoint %s (%s): "+
					"Bind for 0.0.0.0:%s failed: port is already allocated", c.name, c.id, port)
			}
		}
	}
	return nil
}

// begin marks a container as started. The lock is held.
func (e *Engine) begin(r *engineRequest, c *container, effect string) {
	c.running, c.restarting = true, false
	c.starts++
	c.exitCode, c.failure, c.started, c.pid = 0, "", time.Now(), 4000+e.serial
	e.serial++
	e.containerEvent(c, "start", nil)
	e.record(r, "%s %s", effect, c.shownName())
}

// settle asks the test what a container that was just started does. Without locks, so that the test can look around.
func (e *Engine) settle(c *container) {
	if e.o.OnStart == nil {
		return
	}
	e.mu.Lock()
	info, started := c.info(), c.starts
	e.mu.Unlock()
	code, running := e.o.OnStart(info)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !running && c.running && c.starts == started && !c.restarting {
		e.die(c, code, false)
	}
}

// launch starts a container as the engine does by itself.
func (e *Engine) launch(c *container, effect string) {
	e.mu.Lock()
	ok := e.server != nil && !c.removed && e.startable(c) == nil
	if ok {
		e.begin(nil, c, effect)
	} else {
		c.restarting = false
	}
	e.notify()
	e.mu.Unlock()
	if ok {
		e.settle(c)
	}
}

// die ends a container's process. Unless somebody stopped it, the restart policy decides what comes next. The lock is held.
func (e *Engine) die(c *container, code int, byHand bool) {
	ran := time.Since(c.started)
	c.stopped(code)
	e.containerEvent(c, "die", map[string]string{"exitCode": strconv.Itoa(code)})
	if byHand || !c.policy.restarts(code, c.restarts, false) {
		return
	}
	if c.backoff *= 2; c.backoff == 0 || ran > 10*time.Second {
		c.backoff = 100 * time.Millisecond
	}
	c.restarts++
	c.restarting = true
	session, turn := e.session, c.restarts
	time.AfterFunc(min(c.backoff, time.Minute), func() {
		e.mu.Lock()
		still := c.restarting && c.restarts == turn && session.Err() == nil
		e.mu.Unlock()
		if still {
			e.launch(c, "autostart")
		}
	})
}

// restarts says whether the policy wants a container started that ended with code.
func (p restartPolicy) restarts(code, count int, stoppedByHand bool) bool {
	switch p.Name {
	case "always":
		return true
	case "unless-stopped":
		return !stoppedByHand
	case "on-failure":
		return code != 0 && (p.MaximumRetryCount == 0 || count < p.MaximumRetryCount)
	}
	return false
}

// toRestart returns the containers that a daemon starts when it comes up. With on-failure that is every container whose
// last exit code was not 0, even one that somebody stopped. The lock is held.
func (e *Engine) toRestart() []*container {
	return slices.DeleteFunc(slices.Clone(e.containers), func(c *container) bool {
		return c.starts == 0 || c.running || !c.policy.restarts(c.exitCode, c.restarts, c.stoppedByHand)
	})
}

// stopCode asks the test how a container ends that is told to stop. Without the lock.
func (e *Engine) stopCode(c *container) int {
	if e.o.OnStop == nil {
		return 0
	}
	e.mu.Lock()
	info := c.info()
	e.mu.Unlock()
	return e.o.OnStop(info)
}

// signalled ends a live container that got a signal.
func (e *Engine) signalled(c *container, signal string, code int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !c.live() {
		return false
	}
	c.stoppedByHand = true
	if c.restarting {
		c.stopped(c.exitCode) // there is no process; it just isn't started again
		e.notify()
		return true
	}
	e.containerEvent(c, "kill", map[string]string{"signal": signal})
	if signal != "9" && code == 137 {
		e.containerEvent(c, "kill", map[string]string{"signal": "9"})
	}
	e.die(c, code, true)
	return true
}

func (e *Engine) stopContainer(r *engineRequest, c *container) error {
	e.mu.Lock()
	live := c.live()
	e.mu.Unlock()
	if !live || !e.signalled(c, "15", e.stopCode(c)) {
		return refusal(http.StatusNotModified, "already stopped")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containerEvent(c, "stop", nil)
	e.record(r, "stop %s", c.shownName())
	return nil
}

func (e *Engine) restartContainer(r *engineRequest, c *container) error {
	e.signalled(c, "15", e.stopCode(c))
	e.mu.Lock()
	err := e.startable(c)
	if err == nil {
		c.restarts, c.stoppedByHand, c.backoff = 0, false, 0
		e.begin(r, c, "restart")
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	e.settle(c)
	return nil
}

func (e *Engine) killContainer(r *engineRequest, c *container) error {
	e.mu.Lock()
	live := c.live()
	e.mu.Unlock()
	if !live {
		ref := strings.Split(strings.TrimPrefix(r.path, "/containers/"), "/")[0]
		return refusal(http.StatusConflict, "Cannot kill container: %s: Container %s is not running", ref, c.id)
	}
	code := 0
	switch signal := strings.TrimPrefix(strings.ToUpper(r.query.Get("signal")), "SIG"); signal {
	case "", "KILL", "9":
		code = 137
		e.signalled(c, "9", code)
	case "TERM", "15", "INT", "2", "QUIT", "3":
		e.signalled(c, "15", e.stopCode(c))
	default: // one that ends nothing; events carry its number
		if _, err := strconv.Atoi(signal); err != nil {
			signal = strconv.Itoa(int(unix.SignalNum("SIG" + signal)))
		}
		e.mu.Lock()
		e.containerEvent(c, "kill", map[string]string{"signal": signal})
		e.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.record(r, "kill %s", c.shownName())
	return nil
}

func (e *Engine) pauseContainer(r *engineRequest, c *container) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !c.running:
		return refusal(http.StatusConflict, "Container %s is not running", c.id)
	case c.paused:
		return refusal(http.StatusConflict, "Container %s is already paused", c.id)
	}
	c.paused = true
	e.containerEvent(c, "pause", nil)
	e.record(r, "pause %s", c.shownName())
	return nil
}

func (e *Engine) unpauseContainer(r *engineRequest, c *container) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !c.paused {
		return refusal(http.StatusInternalServerError, "Container %s is not paused", c.id)
	}
	c.paused = false
	e.containerEvent(c, "unpause", nil)
	e.record(r, "unpause %s", c.shownName())
	return nil
}

func (e *Engine) renameContainer(r *engineRequest, c *container) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	name := strings.TrimPrefix(r.query.Get("name"), "/")
	switch {
	case name == "":
		return refusal(http.StatusBadRequest, "Neither old nor new names may be empty")
	case name == c.name:
		return refusal(http.StatusBadRequest, "Renaming a container with the same name as its current name")
	}
	if err := e.freeName(name); err != nil {
		var refused *engineRefusal
		if errors.As(err, &refused) {
			return refusal(refused.status, "Error when allocating new name: %s", refused.message)
		}
		return err
	}
	before := c.shownName()
	c.name = name
	e.containerEvent(c, "rename", map[string]string{"oldName": "/" + before})
	e.record(r, "rename %s %s", before, c.shownName())
	return nil
}

func (e *Engine) updateContainer(r *engineRequest, c *container) error {
	var body struct{ RestartPolicy restartPolicy }
	if err := r.decode(&body); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch body.RestartPolicy.Name {
	case "":
	case "no", "always", "unless-stopped", "on-failure":
		c.policy = body.RestartPolicy
	default:
		return refusal(http.StatusBadRequest, "invalid restart policy '%s'", body.RestartPolicy.Name)
	}
	e.containerEvent(c, "update", nil)
	e.record(r, "update %s restart=%s", c.shownName(), body.RestartPolicy.Name)
	return nil
}

func (e *Engine) removeContainer(w http.ResponseWriter, r *engineRequest, ref string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if c.live() && !r.flag("force") {
		switch {
		case e.api.atLeast(48):
			return refusal(http.StatusConflict, "cannot remove container %q: container is %s: stop the container before removing or force remove",
				ref, c.status())
		case c.paused:
			return refusal(http.StatusConflict, "You cannot remove a paused container %s. Unpause and then stop the container before "+
				"attempting removal or force remove", c.id)
		}
		return refusal(http.StatusConflict, "You cannot remove a %s container %s. Stop the container before attempting removal or force remove",
			c.status(), c.id)
	}
	if c.running {
		e.containerEvent(c, "kill", map[string]string{"signal": "9"})
		e.die(c, 137, true)
	}
	c.stopped(c.exitCode)
	c.removed = true
	e.containers = slices.DeleteFunc(e.containers, func(other *container) bool { return other == c })
	if r.flag("v") {
		for _, name := range c.anonymous {
			delete(e.volumes, name)
		}
	}
	e.containerEvent(c, "destroy", nil)
	e.record(r, "remove %s", c.shownName())
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func asString(v any) string {
	s, _ := v.(string)
	return s
}

// remarshal reads the parts of a document that dst has fields for.
func remarshal(doc map[string]any, dst any) error {
	text, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, dst)
}
