package inspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tee-launcher/pkg/docker/internal/api"
)

// Container is a container as the engine describes it.
type Container struct {
	ID            string
	Name          string // without the leading slash
	Image         string // the ID of its image, "sha256:…"
	Created       time.Time
	Labels        map[string]string
	Status        string // created, running, paused, restarting, removing, exited, dead
	ExitCode      int
	OOMKilled     bool      // it ended because its memory was used up
	StartedAt     time.Time // zero if it never ran
	FinishedAt    time.Time
	Program       []string // what is executed: entrypoint and command
	StopSignal    string   // the signal that asks it to end, as its image spells it; empty: SIGTERM
	RestartPolicy string   // "no", "always", "unless-stopped", "on-failure"; the API's empty word is "no"
	HostPorts     []uint16 // TCP ports of the host that it publishes while it runs, as it was created
	Mounts        []Mount
	// Settings are all fields of the answer's Config and HostConfig, by names such as "HostConfig.PidMode" and as JSON
	// decodes, those too that nobody here knows yet.
	Settings map[string]any
	Networks map[string]Endpoint // by the name of the network
}

// Endpoint is a container's place in a network, as it was asked for.
type Endpoint struct {
	Aliases    []string
	Links      []string
	IPAMConfig map[string]any
	DriverOpts map[string]string
}

// Mount is a place in a container where something of the host shows.
type Mount struct {
	Type        string // bind, volume, tmpfs, …
	Name        string // of a volume
	Source      string // path on the host
	Destination string // path in the container
	RW          bool
	Driver      string // of a volume
	Propagation string // of a bind
}

// HostPath returns where the engine finds what the container, which is our own, sees at path: behind the deepest mount above it, by any of
// the names that path and mount go by, or at path itself where there is none, as in the zero value, which stands for a process outside every
// container.
func (c Container) HostPath(path string) string {
	host, deepest := path, -1
	for _, way := range spellings(path) {
		for _, m := range c.Mounts {
			for _, at := range spellings(m.Destination) {
				at = strings.TrimSuffix(at, "/")
				rest, below := strings.CutPrefix(way+"/", at+"/")
				if depth := strings.Count(at, "/"); below && m.Source != "" && depth > deepest {
					host, deepest = filepath.Join(m.Source, rest), depth
				}
			}
		}
	}
	return host
}

// Live reports whether processes of the container run or may run without anybody starting it.
func (c Container) Live() bool {
	switch c.Status {
	case "created", "exited", "dead":
		return false
	}
	return true // running, paused, restarting, removing, and whatever comes that we don't know
}

// NeverStarted reports whether no process of the container ever ran.
func (c Container) NeverStarted() bool { return c.Status == "created" && c.StartedAt.IsZero() }

// ShortID is the ID as people know it.
func (c Container) ShortID() string {
	if len(c.ID) > 12 {
		return c.ID[:12]
	}
	return c.ID
}

// Containers returns all containers of the engine, live or not. Beside an error they are those that it
// could tell of.
func (e *Engine) Containers(ctx context.Context) ([]Container, error) {
	var ids []struct{ ID string }
	if err := e.get(ctx, "listing containers", "/containers/json", url.Values{"all": {"1"}}, &ids); err != nil {
		return nil, err
	}
	containers := make([]Container, 0, len(ids))
	var errs []error
	for _, id := range ids {
		c, err := e.Container(ctx, id.ID)
		switch {
		case NotFound(err): // gone since the list was made
		case ctx.Err() != nil:
			return containers, err
		case err != nil: // of this one
			errs = append(errs, err)
		default:
			containers = append(containers, c)
		}
	}
	return containers, errors.Join(errs...)
}

// Published is a TCP port of the host that the engine forwards to a running container.
type Published struct {
	Port      uint16
	Container string // its name, "?" if it has none
	Labels    map[string]string
}

// Published returns the host ports that the engine publishes.
func (e *Engine) Published(ctx context.Context) ([]Published, error) {
	var containers []struct {
		Names  []string
		Labels map[string]string
		Ports  []struct {
			PublicPort uint16
			Type       string
		}
	}
	if err := e.get(ctx, "listing published ports", "/containers/json", nil, &containers); err != nil {
		return nil, err
	}
	var published []Published
	for _, c := range containers {
		name := "?"
		if len(c.Names) > 0 {
			name = strings.TrimPrefix(c.Names[0], "/")
		}
		for _, p := range c.Ports {
			if p.PublicPort != 0 && p.Type == "tcp" {
				published = append(published, Published{p.PublicPort, name, c.Labels})
			}
		}
	}
	return published, nil
}

// Container returns the container with that ID or name.
func (e *Engine) Container(ctx context.Context, id string) (Container, error) {
	var answer struct {
		ID, Name, Image, Path string
		Args                  []string
		Created               time.Time
		State                 struct {
			Status                string
			ExitCode              int
			OOMKilled             bool
			StartedAt, FinishedAt time.Time
		}
		Config, HostConfig json.RawMessage
		Mounts             []Mount
		NetworkSettings    struct{ Networks map[string]Endpoint }
	}
	op := "inspecting container " + id
	err := e.get(ctx, op, "/containers/"+url.PathEscape(id)+"/json", nil, &answer)
	if err != nil {
		return Container{}, err
	}
	var config struct {
		Labels     map[string]string
		StopSignal string
	}
	var host struct {
		RestartPolicy struct{ Name string }
		PortBindings  map[string][]struct{ HostPort string }
	}
	settings := map[string]any{}
	for part, known := range map[string]struct {
		text json.RawMessage
		into any
	}{"Config.": {answer.Config, &config}, "HostConfig.": {answer.HostConfig, &host}} {
		var all map[string]any
		if err := errors.Join(json.Unmarshal(known.text, known.into), json.Unmarshal(known.text, &all)); err != nil {
			return Container{}, &Error{Op: op, Err: fmt.Errorf("answer: %w", err)}
		}
		for field, value := range all {
			settings[part+field] = value
		}
	}
	c := Container{
		ID: answer.ID, Name: strings.TrimPrefix(answer.Name, "/"), Image: answer.Image, Created: answer.Created,
		Labels: config.Labels, Status: answer.State.Status, ExitCode: answer.State.ExitCode, OOMKilled: answer.State.OOMKilled,
		StartedAt: answer.State.StartedAt, FinishedAt: answer.State.FinishedAt,
		Program: append([]string{answer.Path}, answer.Args...), StopSignal: config.StopSignal,
		RestartPolicy: host.RestartPolicy.Name, Mounts: answer.Mounts, Settings: settings,
		Networks: answer.NetworkSettings.Networks,
	}
	for port, bindings := range host.PortBindings {
		for _, b := range bindings {
			host, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err == nil && host != 0 && strings.HasSuffix(port, "/tcp") {
				c.HostPorts = append(c.HostPorts, uint16(host))
			}
		}
	}
	if c.RestartPolicy == "" {
		c.RestartPolicy = "no"
	}
	return c, nil
}

// Logs returns the end of what a container wrote to stdout and stderr: at most lines lines and limit bytes.
func (e *Engine) Logs(ctx context.Context, id string, lines int, limit int64) ([]byte, error) {
	op := "reading the log of container " + id
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	body, err := e.client.Stream(ctx, api.Request{
		Op: op, Method: http.MethodGet, Path: "/containers/" + url.PathEscape(id) + "/logs",
		Query: url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {strconv.Itoa(lines)}},
	}, nil, "")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	log, err := demultiplex(body, limit)
	if err != nil {
		return log, &Error{Op: op, Err: err}
	}
	return log, nil
}

// demultiplex takes the frames of the engine's log stream apart: a byte that names the stream, three zeros, a big-endian
// length, the text. It keeps the last limit bytes.
func demultiplex(r io.Reader, limit int64) ([]byte, error) {
	var tail bytes.Buffer
	for {
		var header [8]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return tail.Bytes(), nil
			}
			return tail.Bytes(), err
		}
		if header[0] > 2 || header[1] != 0 || header[2] != 0 || header[3] != 0 {
			return tail.Bytes(), errors.New("log stream is not framed")
		}
		size := int64(binary.BigEndian.Uint32(header[4:]))
		if skip := size - limit; skip > 0 {
			if _, err := io.CopyN(io.Discard, r, skip); err != nil {
				return tail.Bytes(), err
			}
			size = limit
		}
		if _, err := io.CopyN(&tail, r, size); err != nil {
			return tail.Bytes(), err
		}
		if excess := int64(tail.Len()) - limit; excess > 0 {
			tail.Next(int(excess))
		}
	}
}

// Volume is a volume as the engine describes it.
type Volume struct {
	Name       string
	Mountpoint string // path on the host
	Device     string // what the local driver mounts there, such as another directory of the host; mostly empty
	Driver     string
	Options    []string // names of those that its driver was given, sorted; the values may be secret
}

// Volume returns the volume of that name.
func (e *Engine) Volume(ctx context.Context, name string) (Volume, error) {
	var answer struct {
		Name, Mountpoint, Driver string
		Options                  map[string]string
	}
	err := e.get(ctx, "inspecting volume "+name, "/volumes/"+url.PathEscape(name), nil, &answer)
	device := answer.Options["device"]
	switch answer.Options["type"] { // of what the kernel has once, whose device is any word
	case "sysfs":
		device = "/sys"
	case "proc":
		device = "/proc"
	case "devtmpfs":
		device = "/dev"
	}
	return Volume{
		Name: answer.Name, Mountpoint: answer.Mountpoint, Device: device,
		Driver: answer.Driver, Options: slices.Sorted(maps.Keys(answer.Options)),
	}, err
}

// Network is a network as the engine describes it.
type Network struct {
	Driver   string
	Internal bool // it leads nowhere else
}

// Network returns the network of that name.
func (e *Engine) Network(ctx context.Context, name string) (n Network, err error) {
	return n, e.get(ctx, "inspecting network "+name, "/networks/"+url.PathEscape(name), nil, &n)
}
