package launchtest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// waitContainer answers at once that it waits, and at the end how the container ended.
func (e *Engine) waitContainer(w http.ResponseWriter, r *engineRequest, ref string) error {
	condition := r.query.Get("condition")
	e.mu.Lock()
	c, err := e.find(ref)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	starts, finished := c.starts, c.finished
	e.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush(w)
	for {
		e.mu.Lock()
		done := !c.live()
		switch condition {
		case "next-exit":
			done = c.finished != finished || c.removed
		case "removed":
			done = c.removed
		default:
			done = done || c.starts != starts && c.finished != finished
		}
		code, changed, session := c.exitCode, e.changed, e.session
		e.mu.Unlock()
		if done {
			answer := map[string]any{"StatusCode": code}
			if !e.api.atLeast(42) {
				answer["Error"] = nil
			}
			_ = json.NewEncoder(w).Encode(answer)
			return nil
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return nil
		case <-session.Done():
			return nil
		}
	}
}

// containerLogs sends the log in Docker's frames: the stream, the length, the text.
func (e *Engine) containerLogs(w http.ResponseWriter, r *engineRequest, ref string) error {
	streams := map[byte]bool{1: r.flag("stdout"), 2: r.flag("stderr")}
	if !streams[1] && !streams[2] {
		return refusal(http.StatusBadRequest, "Bad parameters: you must choose at least one stream")
	}
	since, err := eventTime(r.query.Get("since"))
	if err != nil {
		return err
	}
	e.mu.Lock()
	c, err := e.find(ref)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	skip := 0
	if tail, err := strconv.Atoi(r.query.Get("tail")); err == nil && tail >= 0 {
		skip = max(0, len(c.log)-tail)
	}
	tty, _ := c.config["Tty"].(bool)
	e.mu.Unlock()
	switch {
	case !r.api.atLeast(42):
		w.Header()["Content-Type"] = nil
	case tty:
		w.Header().Set("Content-Type", "application/vnd.docker.raw-stream")
	default:
		w.Header().Set("Content-Type", "application/vnd.docker.multiplexed-stream")
	}
	w.WriteHeader(http.StatusOK)
	for {
		e.mu.Lock()
		fresh := slices.Clone(c.log[skip:])
		skip = len(c.log)
		live, changed, session := c.live(), e.changed, e.session
		e.mu.Unlock()
		for _, line := range fresh {
			if !streams[line.stream] || line.at.Before(since) {
				continue
			}
			text := line.text
			if r.flag("timestamps") {
				text = line.at.UTC().Format(time.RFC3339Nano) + " " + text
			}
			if !tty {
				var header [8]byte
				header[0] = line.stream
				binary.BigEndian.PutUint32(header[4:], uint32(len(text)))
				_, _ = w.Write(header[:])
			}
			_, _ = io.WriteString(w, text)
		}
		flush(w)
		if !r.flag("follow") || !live {
			return nil
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return nil
		case <-session.Done():
			return nil
		}
	}
}

func (e *Engine) listContainers(w http.ResponseWriter, r *engineRequest) error {
	filters, err := r.filters("name", "label", "status", "id", "volume", "ancestor", "exited", "network", "before", "since", "publish",
		"expose", "health")
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	list := []map[string]any{}
	for _, c := range slices.Backward(e.containers) {
		if !c.live() && !r.flag("all") && len(filters["status"]) == 0 {
			continue
		}
		matches, err := c.matches(filters)
		if err != nil {
			return err
		}
		if matches {
			list = append(list, e.summary(c))
		}
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (c *container) matches(filters map[string][]string) (bool, error) {
	for name, values := range filters {
		if len(values) == 0 {
			continue
		}
		matched := 0
		for _, value := range values {
			ok, err := c.matchesOne(name, value)
			if err != nil {
				return false, err
			}
			if ok {
				matched++
			}
		}
		if matched == 0 || name == "label" && matched < len(values) {
			return false, nil
		}
	}
	return true, nil
}

func (c *container) matchesOne(filter, value string) (bool, error) {
	switch filter {
	case "name":
		pattern, err := regexp.Compile(value)
		if err != nil {
			return false, refusal(http.StatusBadRequest, "%v", err)
		}
		return pattern.MatchString("/"+c.name) || pattern.MatchString(c.name), nil
	case "label":
		key, want, valued := strings.Cut(value, "=")
		got, there := c.labels[key]
		return there && (!valued || got == want), nil
	case "status":
		if !slices.Contains([]string{"created", "running", "paused", "restarting", "exited", "removing", "dead"}, value) {
			return false, refusal(http.StatusBadRequest, "Invalid filter 'status=%s'", value)
		}
		return c.status() == value, nil
	case "id":
		return strings.HasPrefix(c.id, value), nil
	case "volume":
		return slices.ContainsFunc(c.mounts, func(m ContainerMount) bool { return m.Name == value || m.Destination == value }), nil
	case "ancestor":
		return c.image == value || asString(c.config["Image"]) == value, nil
	}
	return false, refusal(http.StatusNotImplemented, "the engine double does not know the filter %s", filter)
}

func (e *Engine) summary(c *container) map[string]any {
	since := time.Since(c.started).Round(time.Second)
	status := map[string]string{
		"created": "Created", "running": "Up " + since.String(), "paused": "Up " + since.String() + " (Paused)",
		"restarting": fmt.Sprintf("Restarting (%d) 1 second ago", c.exitCode), "exited": fmt.Sprintf("Exited (%d) 1 second ago", c.exitCode),
	}[c.status()]
	image := asString(c.config["Image"])
	if id, err := e.images.resolve(image); err != nil || id != c.image {
		image = c.image // the name has moved on
	}
	return map[string]any{
		"Id": c.id, "Names": []string{"/" + c.name}, "Image": image, "ImageID": c.image,
		"Command": strings.Join(append(slices.Clone(c.entrypoint), c.cmd...), " "),
		"Created": c.created.Unix(), "Ports": c.published(), "Labels": c.labels, "State": c.status(), "Status": status,
		"HostConfig": map[string]any{"NetworkMode": c.host["NetworkMode"]}, "NetworkSettings": e.networkSettings(c), "Mounts": c.mountDocs(),
	}
}

// published are the ports of the host that lead to a container now.
func (c *container) published() []map[string]any {
	list := []map[string]any{}
	for port, host := range c.ports {
		number, protocol, _ := strings.Cut(port, "/")
		private, _ := strconv.Atoi(number)
		if public, err := strconv.Atoi(host); err == nil && c.running {
			list = append(list, map[string]any{"IP": "0.0.0.0", "PrivatePort": private, "PublicPort": public, "Type": protocol})
		}
	}
	return list
}

func (c *container) mountDocs() []map[string]any {
	docs := []map[string]any{}
	for _, m := range c.mounts {
		doc := map[string]any{"Type": m.Type, "Source": m.Source, "Destination": m.Destination, "Mode": m.Mode, "RW": m.RW, "Propagation": ""}
		switch m.Type {
		case "volume":
			doc["Name"], doc["Driver"] = m.Name, "local"
		case "bind":
			doc["Propagation"] = "rprivate"
		}
		docs = append(docs, doc)
	}
	return docs
}

func (e *Engine) networkSettings(c *container) map[string]any {
	networks := map[string]any{}
	var asked struct{ EndpointsConfig map[string]map[string]any }
	_ = remarshal(c.networking, &asked)
	if len(asked.EndpointsConfig) == 0 {
		mode := asString(c.host["NetworkMode"])
		if mode == "default" {
			mode = "bridge"
		}
		asked.EndpointsConfig = map[string]map[string]any{mode: {}}
	}
	for name, endpoint := range asked.EndpointsConfig {
		doc := map[string]any{"Aliases": endpoint["Aliases"], "NetworkID": "", "EndpointID": "", "IPAddress": ""}
		if n := e.findNetwork(name); n != nil && c.running {
			doc["NetworkID"] = n.id
		}
		networks[name] = doc
	}
	return map[string]any{"Networks": networks, "Ports": map[string]any{}}
}

func (e *Engine) inspectContainer(w http.ResponseWriter, ref string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	program := append(slices.Clone(c.entrypoint), c.cmd...)
	host := maps.Clone(c.host)
	for key, value := range map[string]any{
		"Binds": nil, "PortBindings": nil, "SecurityOpt": nil, "Privileged": false, "ReadonlyRootfs": false, "AutoRemove": false, "CapAdd": nil,
		"PidMode": "", "IpcMode": "private",
	} {
		if _, ok := host[key]; !ok {
			host[key] = value
		}
	}
	host["RestartPolicy"] = map[string]any{"Name": c.policy.Name, "MaximumRetryCount": c.policy.MaximumRetryCount}
	writeJSON(w, http.StatusOK, map[string]any{
		"Id": c.id, "Created": stamp(c.created), "Path": program[0], "Args": program[1:], "Image": c.image, "Name": "/" + c.name,
		"RestartCount": c.restarts, "Driver": "overlay2", "Platform": "linux", "LogPath": "",
		"State": map[string]any{
			"Status": c.status(), "Running": c.live(), "Paused": c.paused, "Restarting": c.restarting, "OOMKilled": false, "Dead": false,
			"Pid": c.pid, "ExitCode": c.exitCode, "Error": c.failure, "StartedAt": stamp(c.started), "FinishedAt": stamp(c.finished),
		},
		"HostConfig": host, "Mounts": c.mountDocs(), "Config": c.config, "NetworkSettings": e.networkSettings(c),
	})
	return nil
}
