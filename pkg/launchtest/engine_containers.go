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
	Cmd           []string
	Env           []string
	Labels        map[string]string
	Mounts        []ContainerMount
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
	entrypoint, cmd   []string
	env               []string
	labels            map[string]string
	networks          map[string]map[string]any
	mounts            []ContainerMount
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
		ID: c.id, Name: c.name, Image: c.image, Cmd: slices.Clone(c.cmd), Env: slices.Clone(c.env),
		Labels: maps.Clone(c.labels),
		Mounts: slices.Clone(c.mounts), Ports: maps.Clone(c.ports), RestartPolicy: c.policy.Name,
		Status:   c.status(),
		ExitCode: c.exitCode, Starts: c.starts, RestartCount: c.restarts,
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

// Alter changes a field of the HostConfig of a container, named by ID or name, as nothing but a new
// container can on a real engine.
func (e *Engine) Alter(container, field string, value any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(container)
	if err != nil {
		return err
	}
	c.host[field] = value
	e.notify()
	return nil
}

// Adds has the HostConfig of every container that is made from now on show a value that nobody asked
// for.
func (e *Engine) Adds(field string, value any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.adds = map[string]any{field: value}
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
			c.log = append(c.log, logLine{byte(i + 1), line})
		}
	}
	e.notify()
	return nil
}

// find knows IDs and names. The lock is held.
func (e *Engine) find(ref string) (*container, error) {
	for _, c := range e.containers {
		if c.id == ref || c.name == ref {
			return c, nil
		}
	}
	return nil, refusal(http.StatusNotFound, "No such container: %s", ref)
}

func (e *Engine) createContainer(r *engineRequest) (any, error) {
	var body map[string]any
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	name := r.query.Get("name")
	if !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`).MatchString(name) {
		return nil, refusal(http.StatusBadRequest, "Invalid container name (%s)", name)
	}
	image, err := e.images.resolve(asString(body["Image"]))
	if err != nil {
		return nil, err
	}
	base, err := e.images.config(image)
	if err != nil {
		return nil, err
	}
	if other, err := e.find(name); err == nil {
		return nil, refusal(http.StatusConflict,
			`Conflict. The container name "/%s" is already in use by container "%s". `+
				"You have to remove (or rename) that container to be able to reuse that name.", name, other.id)
	}
	host, _ := body["HostConfig"].(map[string]any)
	delete(body, "HostConfig")
	var networking struct {
		NetworkingConfig struct{ EndpointsConfig map[string]map[string]any }
	}
	if err := remarshal(body, &networking); err != nil {
		return nil, refusal(http.StatusBadRequest, "%v", err)
	}
	delete(body, "NetworkingConfig")
	c := &container{id: e.newID(), name: name, created: time.Now(), image: image, host: hostDefaults(),
		config: configDefaults()}
	maps.Copy(c.host, host)
	maps.Copy(c.host, e.adds)
	maps.Copy(c.config, body)
	c.connect(networking.NetworkingConfig.EndpointsConfig)
	if err := c.configure(base.Config); err != nil {
		return nil, err
	}
	if err := e.mount(c); err != nil {
		return nil, err
	}
	inMemory, _ := c.host["Tmpfs"].(map[string]any)
	for _, declared := range slices.Sorted(maps.Keys(base.Config.Volumes)) {
		place := path.Clean(declared)
		if _, covered := inMemory[declared]; covered {
			continue
		}
		if !slices.ContainsFunc(c.mounts, func(m ContainerMount) bool { return m.Destination == place }) {
			name := e.newID()
			c.mounts = append(c.mounts, ContainerMount{Type: "volume", Name: name, Source: e.volumePath(name),
				Destination: place, RW: true})
		}
	}
	for _, m := range c.mounts {
		if m.Type == "volume" {
			e.addVolume(r, m.Name, nil)
		}
	}
	e.containers = append(e.containers, c)
	e.containerEvent(c, "create", nil)
	e.record(r, "create %s", c.shownName())
	return created{"Id": c.id, "Warnings": []string{}}, nil
}

// configDefaults are the fields that every config shows.
func configDefaults() map[string]any {
	return map[string]any{
		"Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false,
		"AttachStderr": false, "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": nil,
		"Cmd": nil, "Image": "", "Volumes": nil, "WorkingDir": "", "Entrypoint": nil, "OnBuild": nil,
		"Labels": nil,
	}
}

// hostDefaults are the fields that every host config shows, with what an engine fills in that nobody
// asked for.
func hostDefaults() map[string]any {
	host := map[string]any{
		"NetworkMode": "default", "IpcMode": "private", "CgroupnsMode": "host", "Runtime": "runc",
		"ShmSize": 64 << 20, "ConsoleSize": []int{0, 0},
		"LogConfig": map[string]any{"Type": "json-file", "Config": map[string]any{}},
		"MaskedPaths": []string{
			"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		},
		"ReadonlyPaths": []string{
			"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
		},
	}
	for empty, fields := range map[any][]string{
		nil: {"Binds", "PortBindings", "VolumesFrom", "CapAdd", "CapDrop", "Dns", "DnsOptions", "DnsSearch",
			"ExtraHosts", "GroupAdd", "Links", "SecurityOpt", "BlkioWeightDevice", "BlkioDeviceReadBps",
			"BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps", "Devices",
			"DeviceCgroupRules", "DeviceRequests", "MemorySwappiness", "PidsLimit", "Ulimits"},
		"": {"ContainerIDFile", "VolumeDriver", "Cgroup", "PidMode", "UTSMode", "UsernsMode", "Isolation",
			"CgroupParent", "CpusetCpus", "CpusetMems"},
		false: {"AutoRemove", "Privileged", "PublishAllPorts", "ReadonlyRootfs", "OomKillDisable"},
		0: {"OomScoreAdj", "CpuShares", "Memory", "NanoCpus", "BlkioWeight", "CpuPeriod", "CpuQuota",
			"CpuRealtimePeriod", "CpuRealtimeRuntime", "KernelMemory", "KernelMemoryTCP",
			"MemoryReservation", "MemorySwap", "CpuCount", "CpuPercent", "IOMaximumIOps",
			"IOMaximumBandwidth"},
	} {
		for _, field := range fields {
			host[field] = empty
		}
	}
	return host
}

// connect notes in which networks the container will be: those that were asked for, or that of its
// mode.
func (c *container) connect(asked map[string]map[string]any) {
	c.networks = map[string]map[string]any{}
	if len(asked) == 0 {
		name := asString(c.host["NetworkMode"])
		if name == "default" {
			name = "bridge"
		}
		asked = map[string]map[string]any{name: nil}
	}
	for name, endpoint := range asked {
		c.networks[name] = map[string]any{"IPAMConfig": nil, "Links": nil, "Aliases": nil,
			"DriverOpts": nil, "NetworkID": "", "EndpointID": "", "MacAddress": ""}
		maps.Copy(c.networks[name], endpoint)
	}
}

// configure merges what the image says into what was asked for, and reads the parts that the double
// acts on.
func (c *container) configure(image v1.Config) error {
	var asked struct {
		Entrypoint, Cmd, Env []string
		Labels               map[string]string
	}
	var host struct {
		RestartPolicy restartPolicy
		PortBindings  map[string][]struct{ HostPort string }
	}
	if err := errors.Join(remarshal(c.config, &asked), remarshal(c.host, &host)); err != nil {
		return refusal(http.StatusBadRequest, "%v", err)
	}
	c.entrypoint, c.cmd, c.env = asked.Entrypoint, asked.Cmd, asked.Env
	if c.entrypoint == nil {
		if len(c.cmd) == 0 {
			c.cmd = image.Cmd
		}
		c.entrypoint = image.Entrypoint
	}
	if slices.Equal(c.entrypoint, []string{""}) {
		c.entrypoint = nil
	}
	if len(c.entrypoint)+len(c.cmd) == 0 {
		return refusal(http.StatusBadRequest, "No command specified")
	}
	if len(c.env) == 0 {
		c.env = image.Env
	} else {
		for _, setting := range image.Env {
			key, _, _ := strings.Cut(setting, "=")
			same := func(own string) bool { name, _, _ := strings.Cut(own, "="); return name == key }
			if !slices.ContainsFunc(c.env, same) {
				c.env = append(c.env, setting)
			}
		}
	}
	c.labels = map[string]string{}
	maps.Copy(c.labels, image.Labels)
	maps.Copy(c.labels, asked.Labels)
	if err := c.setPolicy(host.RestartPolicy); err != nil {
		return err
	}
	c.ports = map[string]string{}
	for port, bindings := range host.PortBindings {
		for _, b := range bindings {
			c.ports[port] = b.HostPort
		}
	}
	c.config["Entrypoint"], c.config["Cmd"], c.config["Env"], c.config["Labels"] = c.entrypoint, c.cmd,
		c.env, c.labels
	for key, value := range map[string]string{"WorkingDir": image.WorkingDir, "User": image.User,
		"StopSignal": image.StopSignal} {
		if asString(c.config[key]) == "" && value != "" {
			c.config[key] = value
		}
	}
	if len(image.Volumes) > 0 {
		c.config["Volumes"] = image.Volumes
	}
	if dir := asString(c.config["WorkingDir"]); dir != "" {
		c.config["WorkingDir"] = path.Clean(dir)
	}
	if asString(c.config["Hostname"]) == "" {
		c.config["Hostname"] = c.id[:12]
	}
	if c.config["Healthcheck"] == nil && image.Healthcheck != nil {
		c.config["Healthcheck"] = image.Healthcheck
	}
	return nil
}

func (c *container) setPolicy(p restartPolicy) error {
	if !slices.Contains([]string{"", "no", "always", "unless-stopped", "on-failure"}, p.Name) {
		return refusal(http.StatusBadRequest, "invalid restart policy '%s'", p.Name)
	}
	c.policy = p
	return nil
}

// mount resolves binds and mounts.
func (e *Engine) mount(c *container) error {
	var host struct {
		Binds  []string
		Mounts []struct {
			Type, Source, Target string
			ReadOnly             bool
		}
	}
	if err := remarshal(c.host, &host); err != nil {
		return refusal(http.StatusBadRequest, "%v", err)
	}
	for _, bind := range host.Binds {
		fields := strings.Split(bind+":", ":")
		m := ContainerMount{Type: "bind", Source: fields[0], Destination: fields[1], Mode: fields[2],
			RW: fields[2] != "ro"}
		if !strings.HasPrefix(m.Source, "/") {
			m.Type, m.Name = "volume", m.Source
		}
		c.mounts = append(c.mounts, m)
	}
	for _, asked := range host.Mounts {
		m := ContainerMount{Type: asked.Type, Source: asked.Source, Destination: asked.Target,
			RW: !asked.ReadOnly}
		if asked.Type == "volume" {
			m.Name, m.Mode = asked.Source, "z"
		} else if e.o.Exists != nil && !e.o.Exists(asked.Source) {
			return refusal(http.StatusBadRequest,
				`invalid mount config for type "bind": bind source path does not exist: %s`, asked.Source)
		}
		c.mounts = append(c.mounts, m)
	}
	for i, m := range c.mounts {
		if m.Type == "volume" {
			c.mounts[i].Source = e.volumePath(m.Name)
		}
	}
	return nil
}

// shownName is the container's name for records. Compose's temporary names begin with the ID of the
// container that is replaced, which says nothing to a test.
func (c *container) shownName() string {
	return regexp.MustCompile(`^[0-9a-f]{12}_`).ReplaceAllString(c.name, "<id>_")
}

func (e *Engine) containerEvent(c *container, action string, more map[string]string) {
	attributes := map[string]string{"name": c.name, "image": asString(c.config["Image"])}
	maps.Copy(attributes, c.labels)
	maps.Copy(attributes, more)
	e.emit("container", action, c.id, attributes)
}

func (e *Engine) startContainer(r *engineRequest, c *container) error {
	return e.startByHand(r, c, "start")
}

func (e *Engine) startByHand(r *engineRequest, c *container, effect string) error {
	e.mu.Lock()
	err := e.startable(c)
	if err == nil {
		c.restarts, c.stoppedByHand, c.backoff = 0, false, 0
		e.begin(r, c, effect)
	}
	e.mu.Unlock()
	if err == nil {
		e.settle(c)
	}
	return err
}

// startable also proves what dockerd looks at only when it starts a container: its network and its
// ports.
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

func (e *Engine) connectable(c *container) error {
	if mode := asString(c.host["NetworkMode"]); mode != "default" && e.networks[mode] == nil {
		return refusal(http.StatusNotFound, "network %s not found", mode)
	}
	for _, other := range e.containers {
		for _, port := range c.ports {
			if other != c && other.running &&
				slices.Contains(slices.Collect(maps.Values(other.ports)), port) {
				return refusal(http.StatusInternalServerError,
					"driver failed programming external connectivity on endpoint %s (%s): "+
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

// settle asks the test what a container that was just started does. Without locks, so that the test
// can look around.
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
func (e *Engine) launch(c *container) {
	e.mu.Lock()
	ok := e.server != nil && !c.removed && e.startable(c) == nil
	if ok {
		e.begin(nil, c, "autostart")
	} else {
		c.restarting = false
	}
	e.notify()
	e.mu.Unlock()
	if ok {
		e.settle(c)
	}
}

// die ends a container's process. Unless somebody stopped it, the restart policy decides what comes
// next. The lock is held.
func (e *Engine) die(c *container, code int, byHand bool) {
	ran := time.Since(c.started)
	c.stopped(code)
	e.containerEvent(c, "die", map[string]string{"exitCode": strconv.Itoa(code)})
	if byHand || !c.comesBack() {
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
			e.launch(c)
		}
	})
}

// comesBack says whether the restart policy wants a container started that has ended.
func (c *container) comesBack() bool {
	switch c.policy.Name {
	case "always":
		return true
	case "unless-stopped":
		return !c.stoppedByHand
	case "on-failure":
		retries := c.policy.MaximumRetryCount
		return c.exitCode != 0 && (retries == 0 || c.restarts < retries)
	}
	return false
}

// toRestart returns the containers that a daemon starts when it comes up. With on-failure that is
// every container whose last exit code was not 0, even one that somebody stopped. The lock is held.
func (e *Engine) toRestart() []*container {
	return slices.DeleteFunc(slices.Clone(e.containers), func(c *container) bool {
		return c.starts == 0 || c.running || !c.comesBack()
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

// signalled ends a live container that got signals.
func (e *Engine) signalled(c *container, code int, signals ...string) bool {
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
	for _, signal := range signals {
		e.containerEvent(c, "kill", map[string]string{"signal": signal})
	}
	e.die(c, code, true)
	return true
}

// told ends a live container that is told to stop, and killed if it doesn't want to.
func (e *Engine) told(c *container) bool {
	e.mu.Lock()
	live := c.live()
	e.mu.Unlock()
	if !live {
		return false
	}
	code, signals := e.stopCode(c), []string{"15"}
	if code == 137 {
		signals = append(signals, "9")
	}
	return e.signalled(c, code, signals...)
}

func (e *Engine) stopContainer(r *engineRequest, c *container) error {
	if !e.told(c) {
		return refusal(http.StatusNotModified, "already stopped")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containerEvent(c, "stop", nil)
	e.record(r, "stop %s", c.shownName())
	return nil
}

func (e *Engine) restartContainer(r *engineRequest, c *container) error {
	e.told(c)
	return e.startByHand(r, c, "restart")
}

func (e *Engine) killContainer(r *engineRequest, c *container) error {
	e.mu.Lock()
	live := c.live()
	e.mu.Unlock()
	if !live {
		return refusal(http.StatusConflict, "Cannot kill container: %s: Container %s is not running",
			r.name, c.id)
	}
	name := strings.TrimPrefix(r.query.Get("signal"), "SIG")
	signal, err := strconv.Atoi(name)
	if name == "" {
		signal = int(unix.SIGKILL)
	} else if err != nil {
		signal = int(unix.SignalNum("SIG" + name))
	}
	switch unix.Signal(signal) {
	case unix.SIGKILL:
		e.signalled(c, 137, "9")
	case unix.SIGTERM, unix.SIGINT, unix.SIGQUIT:
		e.signalled(c, e.stopCode(c), strconv.Itoa(signal))
	default: // one that ends nothing
		e.mu.Lock()
		e.containerEvent(c, "kill", map[string]string{"signal": strconv.Itoa(signal)})
		e.mu.Unlock()
	}
	e.record(r, "kill %s", c.shownName())
	return nil
}

func (e *Engine) pauseContainer(r *engineRequest) (any, error) {
	c, err := e.find(r.name)
	switch {
	case err != nil:
		return nil, err
	case !c.running:
		return nil, refusal(http.StatusConflict, "Container %s is not running", c.id)
	case c.paused:
		return nil, refusal(http.StatusConflict, "Container %s is already paused", c.id)
	}
	c.paused = true
	e.containerEvent(c, "pause", nil)
	e.record(r, "pause %s", c.shownName())
	return nil, nil
}

func (e *Engine) unpauseContainer(r *engineRequest) (any, error) {
	c, err := e.find(r.name)
	if err != nil {
		return nil, err
	}
	c.paused = false
	e.containerEvent(c, "unpause", nil)
	e.record(r, "unpause %s", c.shownName())
	return nil, nil
}

func (e *Engine) renameContainer(r *engineRequest) (any, error) {
	c, err := e.find(r.name)
	if err != nil {
		return nil, err
	}
	before := c.shownName()
	c.name = r.query.Get("name")
	e.containerEvent(c, "rename", map[string]string{"oldName": "/" + before})
	e.record(r, "rename %s %s", before, c.shownName())
	return nil, nil
}

func (e *Engine) updateContainer(r *engineRequest) (any, error) {
	c, err := e.find(r.name)
	if err != nil {
		return nil, err
	}
	var body struct{ RestartPolicy restartPolicy }
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if err := c.setPolicy(body.RestartPolicy); err != nil {
		return nil, err
	}
	e.containerEvent(c, "update", nil)
	e.record(r, "update %s restart=%s", c.shownName(), body.RestartPolicy.Name)
	return map[string]any{"Warnings": nil}, nil
}

func (e *Engine) removeContainer(r *engineRequest) (any, error) {
	c, err := e.find(r.name)
	if err != nil {
		return nil, err
	}
	if c.live() && !r.flag("force") {
		return nil, refusal(http.StatusConflict,
			"cannot remove container %q: container is %s: stop the container before removing or force remove",
			r.name, c.status())
	}
	if c.running {
		e.containerEvent(c, "kill", map[string]string{"signal": "9"})
		e.die(c, 137, true)
	}
	c.stopped(c.exitCode)
	c.removed = true
	e.containers = slices.DeleteFunc(e.containers, func(other *container) bool { return other == c })
	e.containerEvent(c, "destroy", nil)
	e.record(r, "remove %s", c.shownName())
	if r.flag("v") { // those without a name alone
		for _, m := range c.mounts {
			if m.Type == "volume" && len(m.Name) == 64 && e.volumeUsers(m.Name) == nil {
				delete(e.volumes, m.Name)
				e.record(r, "volume-remove %s", m.Name)
			}
		}
	}
	return nil, nil
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
