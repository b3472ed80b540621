// Command bench compares the launcher with other tools on this machine, side by side in one run. `make bench` runs it.
//
//	hack/with-engine go run ./hack/bench [-what fetch|load|upgrade|neighbours|all] [-rounds N] [-quick]
//
// fetch is one layer of 500 MB that can't be compressed, to nowhere: package image alone beside `crane pull`, `skopeo copy` to a
// folder and `docker pull`. load is an image of eight layers made of this machine's system folders into the engine, and then one of
// which the last layer is another: all of `launcher pull` beside `docker pull`, `skopeo copy` and `crane pull | docker load`.
//
// upgrade is a node on which version 1 runs and version 2 is due: the launcher with it staged and without, beside `docker pull` and compose. neighbours
// is what other programs have left of the machine while a launcher stages.
//
// The registry is the double of package launchtest, in memory, on 127.0.0.1, on a slow link and on an open one. Each round runs
// every tool once, each time with another one first, and each run begins with an engine without images, with nothing left to
// write to the disk, and half a minute after the last image was removed. The tables show medians. What can't be had here is left out, and said.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case measureCommand:
			exit(measure(os.Args[2:]))
		case drainCommand:
			exit(drain(context.Background(), os.Args[2]))
		}
	}
	what := flag.String("what", "all", "what to compare: fetch, load, upgrade, neighbours or all")
	rounds := flag.Int("rounds", 3, "how often each tool runs")
	quick := flag.Bool("quick", false, "a tenth of the bytes, once: shows that it works, not how fast anything is")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *what, *rounds, *quick, os.Stdout, os.Stderr)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// bench is one run of this program.
type bench struct {
	rounds         int
	scale          int64 // what sizes are divided by
	cache          string
	dir            string // of what the runs leave behind, removed at the end
	env            []string
	engine         string // DOCKER_HOST
	private        bool   // nobody else uses the engine
	self           string // this program
	launcher       string
	crane, skopeo  string // empty: left out
	notes          []string
	stdout, stderr io.Writer
}

func run(ctx context.Context, what string, rounds int, quick bool, stdout, stderr io.Writer) (err error) {
	engine := os.Getenv("LAUNCHER_E2E_DOCKER_HOST")
	if engine == "" {
		return errors.New("no engine to run on: start this with hack/with-engine, as `make bench` does")
	}
	parts := []string{"upgrade", "neighbours", "fetch", "load"}
	if !slices.Contains(append(parts, "all"), what) || rounds < 1 {
		return fmt.Errorf("-what %s -rounds %d: see -help", what, rounds)
	}
	b := &bench{
		rounds: rounds, scale: 1, engine: engine, private: os.Getenv("LAUNCHER_E2E_ENGINE") == "private", stdout: stdout, stderr: stderr,
	}
	if quick {
		b.rounds, b.scale = 1, 10
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.launcher, err = filepath.Abs("bin/launcher"); err != nil {
		return err
	}
	if _, err := os.Stat(b.launcher); err != nil {
		return fmt.Errorf("%w: run `make build` first", err)
	}
	if b.cache, err = filepath.Abs(".cache/bench"); err != nil {
		return err
	}
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return err
	}
	// On a disk, as an engine's images are: /tmp may be memory.
	if b.dir, err = os.MkdirTemp(b.cache, "run-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	// Nobody's credentials and settings.
	b.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "DOCKER_HOST=" + engine, "LAUNCHER_SHARED_DIR=" + b.shared(), "LAUNCHER_PROGRESS=none",
	}
	if path, ok := b.get(ctx, "hack/tool", "crane"); ok {
		b.crane = path
	}
	if _, ok := b.get(ctx, "hack/need", "skopeo"); ok {
		b.skopeo = "skopeo"
	}

	for i, do := range []func(context.Context) error{b.upgrade, b.neighbours, b.fetch, b.load} {
		if what != "all" && what != parts[i] {
			continue
		}
		if err := do(ctx); err != nil {
			return fmt.Errorf("%s: %w", parts[i], err)
		}
	}
	b.machine(ctx)
	return nil
}

// shared and out are the folders that tools write to; each run finds them empty.
func (b *bench) shared() string { return filepath.Join(b.dir, "shared") }
func (b *bench) out() string    { return filepath.Join(b.dir, "out") }

// get has a script of this repository get a tool, and returns what the script says.
func (b *bench) get(ctx context.Context, script, tool string) (string, bool) {
	fmt.Fprintf(b.stderr, "%s %s\n", script, tool)
	out, err := exec.CommandContext(ctx, script, tool).Output()
	if err != nil {
		b.notes = append(b.notes, fmt.Sprintf("%s: %v", tool, said(err)))
	}
	return strings.TrimSpace(string(out)), err == nil
}

// machine prints what the figures depend on.
func (b *bench) machine(ctx context.Context) {
	fmt.Fprintf(b.stdout, "\n- machine: %s, %d cores; Linux %s\n", processor(), runtime.NumCPU(), b.says(ctx, "uname", "-r"))
	fmt.Fprintf(b.stdout, "- engine: %s\n", b.says(ctx, "docker", "version", "--format", "{{.Server.Version}}, client {{.Client.Version}}")+
		b.says(ctx, "docker", "info", "--format", ", storage {{.Driver}}"))
	fmt.Fprintf(b.stdout, "- tools: %s (%s); crane: %s; skopeo: %s\n", b.says(ctx, b.launcher, "version"), runtime.Version(),
		b.says(ctx, b.crane, "version"), b.says(ctx, b.skopeo, "--version"))
	fmt.Fprintf(b.stdout, "- rounds: %d\n", b.rounds)
	for _, note := range b.notes {
		fmt.Fprintf(b.stdout, "- left out: %s\n", note)
	}
}

func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// says returns the first line that a command prints, or "none".
func (b *bench) says(ctx context.Context, name string, args ...string) string {
	out, err := b.command(ctx, name, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil {
		line = ""
	}
	return cmp.Or(line, "none")
}

func (b *bench) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = b.env
	return cmd
}
