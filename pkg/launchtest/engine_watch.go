package launchtest

import (
	"encoding/binary"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// containerLogs sends the end of the log in Docker's frames: the stream, the length, the text.
func (e *Engine) containerLogs(w http.ResponseWriter, r *engineRequest) error {
	streams := map[byte]bool{1: r.flag("stdout"), 2: r.flag("stderr")}
	if !streams[1] && !streams[2] {
		return refusal(http.StatusBadRequest, "Bad parameters: you must choose at least one stream")
	}
	e.mu.Lock()
	c, err := e.find(r.name)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	lines := slices.Clone(c.log)
	e.mu.Unlock()
	if tail, err := strconv.Atoi(r.query.Get("tail")); err == nil {
		lines = lines[max(0, len(lines)-tail):]
	}
	w.WriteHeader(http.StatusOK)
	for _, line := range lines {
		if streams[line.stream] {
			header := [8]byte{0: line.stream}
			binary.BigEndian.PutUint32(header[4:], uint32(len(line.text)))
			_, _ = w.Write(header[:])
			_, _ = io.WriteString(w, line.text)
		}
	}
	return nil
}

func (e *Engine) listContainers(r *engineRequest) (any, error) {
	filters, err := r.filters("label")
	if err != nil {
		return nil, err
	}
	list := []map[string]any{}
	for _, c := range slices.Backward(e.containers) {
		if (c.live() || r.flag("all")) && labelled(c.labels, filters["label"]) {
			list = append(list, map[string]any{
				"Id": c.id, "Names": []string{"/" + c.name}, "Image": c.config["Image"], "ImageID": c.image,
				"Created": c.created.Unix(),
				"Ports":   c.published(), "Labels": c.labels, "State": c.status(), "Mounts": c.mountDocs(),
			})
		}
	}
	return list, nil
}

// published are the ports of the host that lead to a container now.
func (c *container) published() []map[string]any {
	list := []map[string]any{}
	for port, host := range c.ports {
		number, protocol, _ := strings.Cut(port, "/")
		private, _ := strconv.Atoi(number)
		if public, err := strconv.Atoi(host); err == nil && c.running {
			list = append(list, map[string]any{"IP": "0.0.0.0", "PrivatePort": private, "PublicPort": public,
				"Type": protocol})
		}
	}
	return list
}

func (c *container) mountDocs() []map[string]any {
	docs := []map[string]any{}
	for _, m := range c.mounts {
		doc := map[string]any{"Type": m.Type, "Source": m.Source, "Destination": m.Destination,
			"Mode": m.Mode, "RW": m.RW, "Propagation": "rprivate"}
		if m.Type == "volume" {
			doc["Name"], doc["Driver"], doc["Propagation"] = m.Name, "local", ""
		}
		docs = append(docs, doc)
	}
	return docs
}

func (e *Engine) inspectContainer(r *engineRequest) (any, error) {
	c, err := e.find(r.name)
	if err != nil {
		return nil, err
	}
	program := append(slices.Clone(c.entrypoint), c.cmd...)
	host := maps.Clone(c.host)
	host["RestartPolicy"] = map[string]any{"Name": c.policy.Name,
		"MaximumRetryCount": c.policy.MaximumRetryCount}
	return map[string]any{
		"Id": c.id, "Created": stamp(c.created), "Path": program[0], "Args": program[1:],
		"Image": c.image, "Name": "/" + c.name,
		"RestartCount": c.restarts,
		"State": map[string]any{
			"Status": c.status(), "Running": c.live(), "Paused": c.paused, "Restarting": c.restarting,
			"OOMKilled": false, "Dead": false,
			"Pid": c.pid, "ExitCode": c.exitCode, "Error": c.failure, "StartedAt": stamp(c.started),
			"FinishedAt": stamp(c.finished),
		},
		"HostConfig": host, "Mounts": c.mountDocs(), "Config": c.config,
		"NetworkSettings": map[string]any{"Networks": c.networks},
	}, nil
}
