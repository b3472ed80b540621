// Package docker acts on a Docker engine: it streams a verified image in, and handles the workload's containers.
//
// It guarantees that an ImageID stands for an image whose manifest and config were proved in this process and whose every layer the
// engine holds under the diffID that the config names; that a layer's bytes are proved as they are sent, and a load that fails its
// proof is broken off, never ended; and that no byte is written to a file on the way. What the engine says of a load isn't believed, it
// is checked. It relies on the engine for what the engine unpacked earlier: that a layer is what its diffID says.
// It touches no image and no container unless its caller names it or it made it itself. It doesn't decide which.
package docker

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"time"

	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/docker/internal/api"
)

// These are the reading half's, under the name that people look for.
type (
	// ImageID is the engine's ID of a proved image.
	ImageID = inspect.ImageID
	// Container is a container as the engine describes it.
	Container = inspect.Container
	// Error is an engine that couldn't be reached or refused. It ends in exit code 7.
	Error = api.Error
)

// Engine acts on one engine, and reads it.
type Engine struct {
	*inspect.Engine
	// LoadSize is how many bytes make a load of their own, so that the engine unpacks them while the rest comes; 0: 8 MiB.
	LoadSize int64
	// Sleep pauses between two loads; nil: a timer, or the context's end.
	Sleep func(context.Context, time.Duration) error
	// AfterFunc makes the timer that ends a load in which the engine has stopped; nil: time.AfterFunc.
	AfterFunc func(time.Duration, func()) Timer

	client *api.Client
}

// Timer is a *time.Timer, as far as a load needs one.
type Timer interface {
	Reset(time.Duration) bool
	Stop() bool
}

// New returns the engine at host, "unix://" and an absolute path. Nothing is contacted.
func New(host string) (*Engine, error) {
	reader, err := inspect.New(host)
	if err != nil {
		return nil, err
	}
	client, err := api.New(host)
	if err != nil {
		return nil, err
	}
	return &Engine{Engine: reader, client: client}, nil
}

func (e *Engine) sleep(ctx context.Context, d time.Duration) error {
	if e.Sleep != nil {
		return e.Sleep(ctx, d)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

func (e *Engine) afterFunc(d time.Duration, f func()) Timer {
	if e.AfterFunc != nil {
		return e.AfterFunc(d, f)
	}
	return time.AfterFunc(d, f)
}

func (e *Engine) loadSize() int64 {
	if e.LoadSize != 0 {
		return e.LoadSize
	}
	return loadSize
}

// ForbidRestart sets a container's restart policy to "no", so that the engine never starts it by itself.
func (e *Engine) ForbidRestart(ctx context.Context, id string) error {
	type policy struct{ Name string }
	return e.post(ctx, "setting the restart policy of container "+id, containerPath(id, "update"), nil,
		struct{ RestartPolicy policy }{policy{"no"}}, 0)
}

// Rename gives a container another name.
func (e *Engine) Rename(ctx context.Context, id, name string) error {
	return e.post(ctx, "renaming container "+id, containerPath(id, "rename"), url.Values{"name": {name}}, nil, 0)
}

// Stop asks a container to end and kills it after grace. That it doesn't run is no error.
func (e *Engine) Stop(ctx context.Context, id string, grace time.Duration) error {
	seconds := strconv.Itoa(int(grace.Seconds()))
	return e.post(ctx, "stopping container "+id, containerPath(id, "stop"), url.Values{"t": {seconds}}, nil, grace+time.Minute)
}

// Start starts a container by its ID. That it runs already is no error.
func (e *Engine) Start(ctx context.Context, id string) error {
	return e.post(ctx, "starting container "+Container{ID: id}.ShortID(), containerPath(id, "start"), nil, nil, 2*time.Minute)
}

// Remove removes a container that doesn't run. Its volumes stay. That it is gone already is no error.
func (e *Engine) Remove(ctx context.Context, id string) error {
	err := e.client.Call(ctx, api.Request{
		Op: "removing container " + id, Method: http.MethodDelete, Path: containerPath(id, ""), Timeout: 2 * time.Minute,
	}, nil)
	if api.NotFound(err) {
		return nil
	}
	return err
}

// Discard removes a container that was never started, by ID or name, and the volumes without a name that it has all the
// same. Those with a name stay. That it is gone already is no error.
func (e *Engine) Discard(ctx context.Context, container string) error {
	err := e.client.Call(ctx, api.Request{
		Op: "removing container " + container, Method: http.MethodDelete, Path: containerPath(container, ""),
		Query: url.Values{"v": {"1"}}, Timeout: 2 * time.Minute,
	}, nil)
	if api.NotFound(err) {
		return nil
	}
	return err
}

// Hold makes a container of the given name and image that is never started and mounts the volumes, so that neither they
// nor the image can be pruned while it is there. Volumes that are missing are made, never without a reference. Declared are
// those of the image's config.
func (e *Engine) Hold(
	ctx context.Context, name string, image ImageID, volumes []string, declared map[string]struct{},
) (id string, err error) {
	body := neverStarted(image.String(), declared)
	for i, volume := range volumes {
		body.HostConfig.Mounts = append(body.HostConfig.Mounts, mount{"volume", volume, "/held/" + strconv.Itoa(i)})
	}
	return e.create(ctx, name, body)
}

// HoldImage makes a container of the given name and image that is never started and has no mounts but
// memory over the image's volumes: else those would be made, and its files copied into them. While
// it is there the image can't be pruned. The labels are set whatever the image's are.
func (e *Engine) HoldImage(
	ctx context.Context, name string, image ImageID, volumes map[string]struct{}, labels map[string]string,
) error {
	if image.IsZero() {
		return errors.New("holding an image: none was proved")
	}
	body := neverStarted(image.String(), volumes)
	maps.Copy(body.Labels, labels)
	_, err := e.create(ctx, name, body)
	return err
}

// RemoveImage removes the image with that ID and its one name. Where a container has it, or where it
// has another name too, the engine leaves it: it is somebody's. That, and that it is gone already, is
// no error.
func (e *Engine) RemoveImage(ctx context.Context, id string) error {
	err := e.client.Call(ctx, api.Request{
		Op: "removing image " + id, Method: http.MethodDelete, Path: "/images/" + id, Timeout: 2 * time.Minute,
	}, nil)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == http.StatusConflict || api.NotFound(err) {
		return nil
	}
	return err
}

// containerBody is what a container of our own is made with.
type containerBody struct {
	Image      string
	Entrypoint []string
	Labels     map[string]string
	HostConfig struct {
		Mounts      []mount           `json:",omitempty"`
		Tmpfs       map[string]string `json:",omitempty"`
		NetworkMode string
	}
}

type mount struct{ Type, Source, Target string }

// neverStarted describes a container of an image that isn't meant to run and couldn't. The volumes that the image declares
// are covered: else each such container would make them, without a name, and have the image's files copied into them.
func neverStarted(image string, declared map[string]struct{}) containerBody {
	body := containerBody{
		Image: image, Entrypoint: []string{"/never-started"},
		// A container inherits its image's labels. By these, one could pass for a project's.
		Labels: map[string]string{"com.docker.compose.project": "", "com.docker.compose.service": ""},
	}
	body.HostConfig.NetworkMode = "none"
	body.HostConfig.Tmpfs = map[string]string{}
	for place := range declared {
		if path.IsAbs(place) && path.Clean(place) != "/" { // no tmpfs can be anywhere else
			body.HostConfig.Tmpfs[place] = ""
		}
	}
	return body
}

func (e *Engine) create(
	ctx context.Context, name string, body containerBody,
) (id string, err error) {
	var answer struct{ ID string }
	err = e.client.Call(ctx, api.Request{
		Op: "creating container " + name, Method: http.MethodPost, Path: "/containers/create",
		Query: url.Values{"name": {name}}, Body: body,
	}, &answer)
	return answer.ID, err
}

func (e *Engine) post(ctx context.Context, op, path string, query url.Values, body any, timeout time.Duration) error {
	return e.client.Call(ctx, api.Request{Op: op, Method: http.MethodPost, Path: path, Query: query, Body: body, Timeout: timeout}, nil)
}

func containerPath(id, action string) string {
	path := "/containers/" + id
	if action != "" {
		path += "/" + action
	}
	return path
}
