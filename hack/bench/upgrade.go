package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"tee-launcher/pkg/launchtest"
)

// The ways to a new version, as the table calls them.
const (
	stagedUpgrade = "launcher, staged"
	plainUpgrade  = "launcher, not staged"
	composeWay    = "docker pull, compose up"
)

// workload is the name of the contract.
const workload = "mpc-node"

// node is a machine that runs version 1 and is to run version 2.
type node struct {
	*bench
	dir, shared string
	agent       *launchtest.Agent
	registry    *launchtest.Registry
	versions    []name.Digest
	figures     *figures
}

// figures are of launchers that staged.
type figures struct {
	peak, after []float64 // MiB
	emit        []float64 // seconds from the start of the process to the emit of the next boot
}

// twoVersions returns a small node image and one that has all that is compared on top of it.
func (b *bench) twoVersions(ctx context.Context) (first, second v1.Image, err error) {
	layers, _, err := b.systemLayers(ctx)
	if err != nil {
		return nil, nil, err
	}
	if first, err = launchtest.NodeImage(ctx, "go"); err != nil {
		return nil, nil, err
	}
	second, err = mutate.AppendLayers(first, layers...)
	return first, second, err
}

// upgrade compares how long a node is away: from the signal that ends version 1 to the start of version 2.
func (b *bench) upgrade(ctx context.Context) error {
	if !b.private {
		b.notes = append(b.notes, "upgrade: the engine is somebody's, and the workload's names are the contract's")
		return nil
	}
	first, second, err := b.twoVersions(ctx)
	if err != nil {
		return err
	}
	var of figures
	var rows []row
	for _, l := range []link{
		{"25 MB/s in all", launchtest.RegistryOptions{TotalRate: 25_000_000}},
		{"open", launchtest.RegistryOptions{}},
	} {
		ways := []string{stagedUpgrade, plainUpgrade, composeWay}
		for _, way := range ways {
			rows = append(rows, row{link: l.name, tool: way})
		}
		for round := range b.rounds {
			for n := range ways {
				way := ways[(n+round)%len(ways)]
				took, err := b.away(ctx, l, way, &of, first, second)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", l.name, way, err)
				}
				i := slices.IndexFunc(rows, func(r row) bool { return r.link == l.name && r.tool == way })
				rows[i].runs = append(rows[i].runs, usage{Seconds: took.Seconds()})
				fmt.Fprintf(b.stderr, "round %d: %s, %s: %.2f s\n", round+1, l.name, way, took.Seconds())
			}
		}
	}
	fmt.Fprintf(b.stdout, "\nUpgrade: from SIGTERM of version 1 to the start of version 2, of which all layers are new (over %d MB). "+
		"The machine's own reboot in between is left out.\n\n", unpacked/b.scale/1e6)
	w := tabwriter.NewWriter(b.stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "| link\t| way\t| seconds\t| from – to\t|\n|---\t|---\t|---\t|---\t|\n")
	for _, r := range rows {
		s := r.seconds()
		fmt.Fprintf(w, "| %s\t| %s\t| %.2f\t| %.2f – %.2f\t|\n", r.link, r.tool, median(s), slices.Min(s), slices.Max(s))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(b.stdout, "\nStaged, from the start of the process to the emit: %.2f s, %.2f at most. Memory while it stages: %.0f MiB at most; afterwards: %.0f.\n",
		median(of.emit), slices.Max(of.emit), slices.Max(of.peak), slices.Max(of.after))
	return nil
}

// away boots version 1 on a machine without images, goes one way to version 2 and returns how long it was away.
func (b *bench) away(ctx context.Context, l link, way string, of *figures, first, second v1.Image) (_ time.Duration, err error) {
	n, err := b.newNode(ctx, l, first, second)
	if err != nil {
		return 0, err
	}
	n.figures = of
	defer func() { err = errors.Join(err, n.close()) }()
	if err := b.rest(ctx); err != nil {
		return 0, err
	}
	if way == composeWay {
		return n.byCompose(ctx)
	}
	return n.byLauncher(ctx, way == stagedUpgrade)
}

func (b *bench) newNode(ctx context.Context, l link, images ...v1.Image) (_ *node, err error) {
	n := &node{bench: b}
	if n.dir, err = os.MkdirTemp("", "bench"); err != nil { // short, for the socket
		return nil, err
	}
	if err := n.docker(ctx, "volume", "create", "shared-volume"); err != nil {
		return nil, err
	}
	n.shared = b.says(ctx, "docker", "volume", "inspect", "--format", "{{.Mountpoint}}", "shared-volume")
	if n.agent, err = launchtest.NewAgent(filepath.Join(n.dir, "dstack.sock"), launchtest.AgentOptions{}); err != nil {
		return nil, err
	}
	if n.registry, err = launchtest.NewRegistry(l.o); err != nil {
		return nil, err
	}
	for _, img := range images {
		ref, err := n.registry.Push("bench/mpc-node", img)
		if err != nil {
			return nil, err
		}
		n.versions = append(n.versions, ref)
	}
	config := fmt.Sprintf("[launcher_config]\nimage_reference = %q\nport_mappings = []\n[mpc_node_config]\nhome_dir = \"/data\"\n",
		n.registry.Host()+"/bench/mpc-node:main")
	return n, os.WriteFile(filepath.Join(n.dir, "user_config"), []byte(config), 0o600)
}

// close leaves an engine without anything.
func (n *node) close() error {
	ctx := context.Background()
	script := `docker ps -aq | xargs -r docker rm -f; docker volume rm shared-volume mpc-data; docker image prune -af; docker network prune -f`
	out, err := n.command(ctx, "bash", "-c", script).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "mpc-data") {
		return fmt.Errorf("%w: %s", err, out)
	}
	return errors.Join(n.agent.Close(), n.registry.Close(), os.RemoveAll(n.dir))
}

func (n *node) docker(ctx context.Context, args ...string) error {
	if _, err := n.command(ctx, "docker", args...).Output(); err != nil {
		return said(err)
	}
	return nil
}

// approve writes the list.
func (n *node) approve(newest ...name.Digest) error {
	var digests []string
	for _, d := range newest {
		digests = append(digests, d.DigestStr())
	}
	data, err := json.Marshal(map[string]any{"approved_hashes": digests})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.shared, "image-digest.bin"), data, 0o600)
}

// boot starts a launcher and waits until it supervises.
func (n *node) boot(ctx context.Context, args ...string) (*exec.Cmd, error) {
	cmd := n.command(ctx, n.launcher, args...)
	cmd.Env = append(slices.Clone(n.env), "PLATFORM=TEE", "DOCKER_CONTENT_TRUST=1", "DEFAULT_IMAGE_DIGEST="+n.versions[0].DigestStr(),
		"LAUNCHER_CONFIG="+filepath.Join(n.dir, "user_config"), "LAUNCHER_SHARED_DIR="+n.shared,
		"LAUNCHER_DSTACK_SOCKET="+filepath.Join(n.dir, "dstack.sock"), "LAUNCHER_COMPOSE="+os.Getenv("LAUNCHER_E2E_COMPOSE"))
	var log bytes.Buffer
	cmd.Stderr = &log
	began := time.Now().Truncate(time.Millisecond)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err := n.until(ctx, func(r report) bool {
		return !r.StartedAt.Before(began) && slices.ContainsFunc(r.Steps, func(s step) bool { return s.Name == "supervise" && s.Status == "running" })
	})
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("%w: %s", err, log.Bytes()[max(0, log.Len()-2000):])
	}
	return cmd, nil
}

type step struct {
	Name, Status string
	StartedAt    *time.Time `json:"started_at"`
	DurationMS   int64      `json:"duration_ms"`
}

// report is what the launch report says.
type report struct {
	StartedAt time.Time `json:"started_at"`
	Steps     []step
	Staged    *struct{ State string }
}

func (n *node) until(ctx context.Context, holds func(report) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for look := time.NewTicker(10 * time.Millisecond); ; {
		var r report
		data, err := os.ReadFile(filepath.Join(n.shared, "launcher/report.json"))
		if err == nil && json.Unmarshal(data, &r) == nil && holds(r) {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// startedAt is when the workload's container was started.
func (n *node) startedAt(ctx context.Context) (time.Time, error) {
	return time.Parse(time.RFC3339Nano, n.says(ctx, "docker", "inspect", "--format", "{{.State.StartedAt}}", workload))
}

// byLauncher reboots, with the new version staged or not.
func (n *node) byLauncher(ctx context.Context, staged bool) (time.Duration, error) {
	if err := n.approve(n.versions[0]); err != nil {
		return 0, err
	}
	stage := []string{"--stage=off"}
	if staged {
		stage = []string{"--stage-after=0s", "--stage-delay=0s", "--stage-rate=0"}
	}
	l, err := n.boot(ctx, stage...)
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Process.Kill(); _ = l.Wait() }()
	if err := n.approve(n.versions[1], n.versions[0]); err != nil {
		return 0, err
	}
	if staged {
		if err := n.until(ctx, func(r report) bool { return r.Staged != nil && r.Staged.State == "staged" }); err != nil {
			return 0, fmt.Errorf("staging: %w", err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.Process.Pid))
		if err != nil {
			return 0, err
		}
		n.figures.peak = append(n.figures.peak, mib(status, "VmHWM"))
		n.figures.after = append(n.figures.after, mib(status, "VmRSS"))
	}
	if err := n.rest(ctx); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := l.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	if err := l.Wait(); err != nil {
		return 0, err
	}
	ended := time.Now()
	n.agent.Reboot()
	if err := n.docker(ctx, "image", "prune", "-af"); err != nil { // as dstack does
		return 0, err
	}
	booted := time.Now()
	next, err := n.boot(ctx, stage...)
	if err != nil {
		return 0, err
	}
	defer func() { _ = next.Process.Kill(); _ = next.Wait() }()
	if err := n.until(ctx, func(r report) bool {
		i := slices.IndexFunc(r.Steps, func(s step) bool { return s.Name == "measure" && s.Status == "done" })
		if staged && i >= 0 {
			emitted := r.Steps[i].StartedAt.Add(time.Duration(r.Steps[i].DurationMS) * time.Millisecond)
			n.figures.emit = append(n.figures.emit, emitted.Sub(booted).Seconds())
		}
		return i >= 0
	}); err != nil {
		return 0, err
	}
	at, err := n.startedAt(ctx)
	return ended.Sub(began) + at.Sub(booted), err
}

// mib reads a figure of a process, in MiB.
func mib(status []byte, key string) float64 {
	match := regexp.MustCompile(key + `:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		return 0
	}
	kib, _ := strconv.Atoi(string(match[1]))
	return math.Ceil(float64(kib) / 1024)
}

// byCompose does what upstream's launcher does: a pull by digest, and compose.
func (n *node) byCompose(ctx context.Context) (time.Duration, error) {
	if err := os.WriteFile(filepath.Join(n.shared, "mpc-config.toml"), []byte("[mpc_node_config]\nhome_dir = \"/data\"\n[tee]\nimage_hash = \"\"\n"), 0o600); err != nil {
		return 0, err
	}
	up := func(ref name.Digest) error {
		if err := n.docker(ctx, "pull", "-q", ref.String()); err != nil {
			return err
		}
		file := filepath.Join(n.dir, "compose.yaml")
		text := fmt.Sprintf(`name: mpc-node
services:
  mpc-node:
    image: %s
    container_name: mpc-node
    command: [/app/mpc-node, start-with-config-file, /mnt/shared/mpc-config.toml]
    network_mode: none
    volumes: ["shared-volume:/mnt/shared", "mpc-data:/data"]
volumes: {shared-volume: {name: shared-volume, external: true}, mpc-data: {name: mpc-data}}
`, ref)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		compose := append(strings.Fields(os.Getenv("LAUNCHER_E2E_COMPOSE")), "-f", file, "up", "-d")
		if _, err := n.command(ctx, compose[0], compose[1:]...).Output(); err != nil {
			return said(err)
		}
		return nil
	}
	if err := up(n.versions[0]); err != nil {
		return 0, err
	}
	if err := n.rest(ctx); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := n.docker(ctx, "stop", workload); err != nil {
		return 0, err
	}
	if err := up(n.versions[1]); err != nil {
		return 0, err
	}
	at, err := n.startedAt(ctx)
	return at.Sub(began), err
}

// neighbours says what a program that computes and one that writes have left of their throughput while an image is staged, at the default rate.
func (b *bench) neighbours(ctx context.Context) (err error) {
	if !b.private {
		b.notes = append(b.notes, "neighbours: the engine is somebody's")
		return nil
	}
	first, second, err := b.twoVersions(ctx)
	if err != nil {
		return err
	}
	n, err := b.newNode(ctx, link{}, first, second)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.approve(n.versions[0]); err != nil {
		return err
	}
	window := 20 * time.Second / time.Duration(b.scale)
	kinds := []struct {
		name string
		do   func(context.Context) (float64, error)
	}{{"computes (SHA-256 on one core)", b.computes}, {"writes (1 MiB, fsync)", b.writes}}
	var table []string
	for _, kind := range kinds {
		var alone, beside []float64
		for range b.rounds {
			// Alone, beside a launcher that stages, and so on: a machine isn't as fast all the time.
			if err := n.approve(n.versions[0]); err != nil {
				return err
			}
			l, err := n.boot(ctx, "--stage-after=0s", "--stage-delay=0s")
			if err != nil {
				return err
			}
			kill := func() { _ = l.Process.Kill(); _ = l.Wait() }
			if err := b.rest(ctx); err != nil {
				kill()
				return err
			}
			got, err := within(ctx, window, kind.do)
			alone = append(alone, got)
			kill()
			if err := errors.Join(err, n.approve(n.versions[1], n.versions[0])); err != nil {
				return err
			}
			if l, err = n.boot(ctx, "--stage-after=0s", "--stage-delay=0s"); err != nil {
				return err
			}
			if err = n.until(ctx, func(r report) bool { return r.Staged != nil && r.Staged.State == "fetching" }); err == nil {
				got, err = within(ctx, window, kind.do)
				beside = append(beside, got)
			}
			kill()
			// What came of it goes.
			err = errors.Join(err, n.docker(ctx, "rm", "-f", workload+"-staged", workload+"-staged-pending"), n.docker(ctx, "image", "prune", "-af"))
			if err != nil {
				return err
			}
		}
		share := 100 * median(beside) / median(alone)
		table = append(table, fmt.Sprintf("| %s | %.0f | %.0f | %.0f %% |", kind.name, median(alone), median(beside), share))
	}
	fmt.Fprintf(b.stdout, "\nNeighbours: MB/s of one program on %s cores, alone and beside a launcher that stages at its default rate.\n\n"+
		"| program | alone | while it stages | left |\n|---|---|---|---|\n%s\n", cmp.Or(b.says(ctx, "nproc"), "?"), strings.Join(table, "\n"))
	return nil
}

// within does something for so long.
func within(ctx context.Context, window time.Duration, do func(context.Context) (float64, error)) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	began := time.Now()
	bytes, err := do(ctx)
	return bytes / 1e6 / time.Since(began).Seconds(), err
}

func (b *bench) computes(ctx context.Context) (done float64, _ error) {
	data := make([]byte, 1<<20)
	for ctx.Err() == nil {
		sha256.Sum256(data)
		done += float64(len(data))
	}
	return done, nil
}

func (b *bench) writes(ctx context.Context) (done float64, _ error) {
	f, err := os.Create(filepath.Join(b.dir, "neighbour"))
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	data := make([]byte, 1<<20)
	for i := 0; ctx.Err() == nil; i++ {
		if _, err := f.WriteAt(data, int64(i%64)<<20); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		done += float64(len(data))
	}
	return done, nil
}
