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
	notices           []byte // what others want to be said of their part in it
}

// target is what a program is built for, on any machine.
func target(goos, arch string) []string {
	return []string{"GOOS=" + goos, "GOARCH=" + arch, "GOAMD64=v1", "GOARM64=v8.0", "CGO_ENABLED=0"}
}

// program is a command, the module that it is built in, and what the linker sets in it.
type program struct{ module, pkg, sets string }

func launcher(o options) program {
	return program{o.Root, "./cmd/launcher", "-X main.version=" + o.Version + " -X main.commit=" + o.Commit}
}

// build compiles a program into a file.
func (g *goTool) build(ctx context.Context, p program, target []string, path string) error {
	_, err := g.run(ctx, p.module, target, "build", "-trimpath", "-buildvcs=false", "-pgo=off",
		"-ldflags", "-s -w "+p.sets, "-o", path, p.pkg)
	return err
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
	target := target("linux", o.Arch)
	std, err := g.standard(ctx)
	if err != nil {
		return binaries{}, err
	}
	modules := []module{std}
	for _, built := range []struct {
		into *[]byte
		program
	}{
		{&b.launcher, launcher(o)},
		{&b.compose, program{tools, "github.com/docker/compose/v5/cmd",
			"-X github.com/docker/compose/v5/internal.Version=" + strings.TrimSpace(string(version))}},
	} {
		path := filepath.Join(dir, "program")
		if err := g.build(ctx, built.program, target, path); err != nil {
			return binaries{}, err
		}
		if *built.into, err = os.ReadFile(path); err != nil {
			return binaries{}, err
		}
		linked, err := g.linked(ctx, built.module, target, built.pkg)
		if err != nil {
			return binaries{}, err
		}
		modules = append(modules, linked...)
	}
	roots := filepath.Join(tools, "roots")
	b.roots, err = g.run(ctx, roots, []string{"CGO_ENABLED=0"}, "run", "-trimpath", "-buildvcs=false", ".")
	if err != nil {
		return binaries{}, err
	}
	linked, err := g.linked(ctx, roots, target, ".")
	if err != nil {
		return binaries{}, err
	}
	b.notices, err = notices(append(modules, linked...))
	return b, err
}

// release compiles the launcher for the machines that people have, into dir, where the notices go
// with it.
func release(ctx context.Context, o options, dir string, notices []byte, stderr io.Writer) error {
	g, err := newGo(ctx, stderr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, system := range [][2]string{
		{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"},
	} {
		target := target(system[0], system[1])
		linked, err := g.linked(ctx, o.Root, target, launcher(o).pkg)
		if err != nil {
			return err
		}
		for _, m := range linked {
			if !bytes.Contains(notices, []byte("\n"+m.name()+" ")) {
				return fmt.Errorf("%s is linked on %s, and not in the notices", m.name(), system[0])
			}
		}
		name := filepath.Join(dir, "launcher-"+system[0]+"-"+system[1])
		if err := g.build(ctx, launcher(o), target, name); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "NOTICES"), notices, 0o644)
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
