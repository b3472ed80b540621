package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// toolchain is the release of Go that builds what is in the image. Another release makes another image, so a new one is a
// line in CHANGELOG. Go fetches it where it isn't installed, and checks it against its checksum database.
const toolchain = "go1.26.8"

// binaries is what the image is made of.
type binaries struct {
	launcher, compose []byte
	roots             []byte // CA roots, PEM
}

// build compiles launcher and Compose, and prints the CA roots.
func build(ctx context.Context, o options, stderr io.Writer) (binaries, error) {
	dir, err := os.MkdirTemp("", "launcher-image-")
	if err != nil {
		return binaries{}, err
	}
	defer os.RemoveAll(dir)
	g, err := newGo(ctx, stderr)
	if err != nil {
		return binaries{}, err
	}
	tools := filepath.Join(o.Root, "hack", "tools")
	version, err := g.run(ctx, tools, nil, "list", "-m", "-f", "{{.Version}}", "github.com/docker/compose/v5")
	if err != nil {
		return binaries{}, err
	}
	var b binaries
	for _, program := range []struct {
		into             *[]byte
		module, pkg      string
		name, linkerSets string
	}{
		{&b.launcher, o.Root, "./cmd/launcher", "launcher", "-X main.version=" + o.Version + " -X main.commit=" + o.Commit},
		{&b.compose, tools, "github.com/docker/compose/v5/cmd", "docker-compose",
			"-X github.com/docker/compose/v5/internal.Version=" + strings.TrimSpace(string(version))},
	} {
		path := filepath.Join(dir, program.name)
		target := []string{"GOOS=linux", "GOARCH=" + o.Arch, "GOAMD64=v1", "GOARM64=v8.0", "CGO_ENABLED=0"}
		_, err := g.run(ctx, program.module, target, "build", "-trimpath", "-buildvcs=false", "-pgo=off",
			"-ldflags", "-s -w "+program.linkerSets, "-o", path, program.pkg)
		if err != nil {
			return binaries{}, err
		}
		if *program.into, err = os.ReadFile(path); err != nil {
			return binaries{}, err
		}
	}
	b.roots, err = g.run(ctx, filepath.Join(tools, "roots"), []string{"CGO_ENABLED=0"}, "run", "-trimpath", "-buildvcs=false", ".")
	return b, err
}

// goTool is the go command in an environment made from nothing: neither GOFLAGS, nor an experiment, nor a workspace, nor
// what somebody wrote with `go env -w` decides what is built.
type goTool struct {
	env    []string
	stderr io.Writer
}

func newGo(ctx context.Context, stderr io.Writer) (*goTool, error) {
	// Where modules come from and where caches are is this machine's matter; what they hold is checked against go.sum.
	out, err := exec.CommandContext(ctx, "go", "env", "-json", "GOPROXY", "GONOPROXY", "GOPRIVATE", "GOINSECURE", "GOSUMDB", "GONOSUMDB",
		"GOMODCACHE", "GOCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	settings := map[string]string{}
	if err := json.Unmarshal(out, &settings); err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	g := &goTool{stderr: stderr, env: []string{"GOENV=off", "GOWORK=off", "GOFLAGS=-mod=readonly", "GOTOOLCHAIN=" + toolchain}}
	for name, value := range settings {
		g.env = append(g.env, name+"="+value)
	}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if value, ok := os.LookupEnv(name); ok {
			g.env = append(g.env, name+"="+value)
		}
	}
	version, err := g.run(ctx, ".", nil, "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	if v := strings.TrimSpace(string(version)); v != toolchain {
		return nil, fmt.Errorf("the image is built by %s, and this is %s", toolchain, v)
	}
	return g, nil
}

// run runs the go command in a directory and returns what it printed.
func (g *goTool) run(ctx context.Context, dir string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(g.env[:len(g.env):len(g.env)], env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, g.stderr
	if err := cmd.Run(); err != nil {
		return nil, errors.Join(fmt.Errorf("go %s: %w", args[0], err), context.Cause(ctx))
	}
	return out.Bytes(), nil
}
