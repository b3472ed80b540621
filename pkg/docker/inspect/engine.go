// Package inspect reads a Docker engine: what it is, which images and containers it has, and whether an image is the one
// that was proved.
//
// It guarantees that it changes nothing: every request that it makes is a GET. What the engine says of its images
// is checked against the proved manifest, never believed.
package inspect

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tee-launcher/pkg/docker/internal/api"
)

// Error is an engine that couldn't be reached or refused. It ends in exit code 7.
type Error = api.Error

// NotFound reports whether err says that the image, container or volume asked for doesn't exist.
func NotFound(err error) bool { return api.NotFound(err) }

// Engine is a reader of one engine.
type Engine struct {
	// Patience is how long a stream of events may take to begin; 0: 30 s.
	Patience time.Duration

	client *api.Client
}

// New returns a reader of the engine at host, "unix://" and an absolute path. Nothing is contacted.
func New(host string) (*Engine, error) {
	client, err := api.New(host)
	if err != nil {
		return nil, err
	}
	return &Engine{client: client}, nil
}

// Store is how an engine keeps images. It decides what an image's ID is.
type Store string

// The two stores there are.
const (
	Classic    Store = "classic"    // ID = digest of the config
	Containerd Store = "containerd" // ID = digest of the manifest or index
)

// Info is what an engine says of itself.
type Info struct {
	Version      string // "20.10.24"
	API          string // newest API version, "1.41"
	Store        Store
	Root         string // data root, as the engine sees it
	OS           string // "linux"
	Architecture string // as Go spells it, "amd64"
	Runtime      string // what containers run in that don't ask for another, "runc"
	Podman       bool   // it isn't Docker
}

// APIAtLeast reports whether the engine speaks API version 1.minor or a newer one.
func (i Info) APIAtLeast(minor int) bool {
	major, rest, _ := strings.Cut(i.API, ".")
	got, err := strconv.Atoi(rest)
	return err == nil && (major == "1" && got >= minor || major > "1")
}

// TellsUnpacked reports whether the engine says of an image whether it has unpacked it. A classic
// store has no image that it hasn't; one of containerd's may, and says so from API 1.48 on.
func (i Info) TellsUnpacked() bool { return i.Store == Classic || i.APIAtLeast(48) }

// Info asks the engine what it is.
func (e *Engine) Info(ctx context.Context) (Info, error) {
	version, podman, err := e.client.Ping(ctx)
	if err != nil {
		return Info{}, err
	}
	var answer struct {
		ServerVersion, DockerRootDir, OSType, Architecture, DefaultRuntime string
		DriverStatus                                                       [][]string
	}
	err = e.get(ctx, "asking the engine what it is", "/info", nil, &answer)
	if err != nil {
		return Info{}, err
	}
	info := Info{
		Version: answer.ServerVersion, API: version, Store: Classic, Root: answer.DockerRootDir, Podman: podman,
		OS: answer.OSType, Architecture: goArchitecture(answer.Architecture), Runtime: answer.DefaultRuntime,
	}
	for _, status := range answer.DriverStatus {
		if len(status) == 2 && status[0] == "driver-type" && status[1] == "io.containerd.snapshotter.v1" {
			info.Store = Containerd
		}
	}
	return info, nil
}

// goArchitecture turns the kernel's name of a machine, which the engine reports, into Go's, which images carry.
func goArchitecture(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return machine
}

func (e *Engine) get(ctx context.Context, op, path string, query url.Values, out any) error {
	return e.client.Call(ctx, api.Request{Op: op, Method: http.MethodGet, Path: path, Query: query}, out)
}
