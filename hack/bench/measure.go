package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

const (
	// patience bounds one run of one tool.
	patience = 15 * time.Minute
	// settle is how long the file system is left alone after images were removed: ext4 without a journal is slow to make files where others
	// were deleted a moment ago, which doubles the system time of whatever unpacks next.
	settle = 30 * time.Second
	// label marks the images of this program: they are what it may remove.
	label = "tee-launcher.bench"
	// measureCommand makes this program one that runs and measures another.
	measureCommand = "measure"
)

// tool is one way to get an image.
type tool struct {
	name     string
	argv     func(ref name.Digest) []string
	upgrades bool // also measured where the engine has most of an image
	engine   bool // an engine has to have an image afterwards
	client   bool // the engine does the work: the peak memory of this process says nothing
}

// usage is what a run needed.
type usage struct {
	Seconds float64
	PeakKiB int64 // of the largest process
}

// row is a line of a table.
type row struct {
	link, what, tool string
	runs             []usage
	client           bool
}

// measure runs a command and prints its usage. It is a process of its own because the kernel counts the memory of whoever starts a
// process as that process's own, up to exec, and the one with the registry in it is large.
func measure(argv []string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return err
	}
	u := usage{Seconds: time.Since(begin).Seconds()}
	if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u.PeakKiB = r.Maxrss
	}
	return json.NewEncoder(os.Stdout).Encode(u)
}

func (b *bench) measured(ctx context.Context, argv []string) (usage, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := b.command(ctx, b.self, append([]string{measureCommand}, argv...)...)
	// What it starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.Output()
	if err != nil {
		return usage{}, said(err)
	}
	var u usage
	return u, json.Unmarshal(out, &u)
}

// said adds the end of what a command wrote to its error.
func said(err error) error {
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		lines := strings.Split(strings.TrimSpace(string(e.Stderr)), "\n")
		return fmt.Errorf("%w: %s", err, strings.Join(lines[max(0, len(lines)-4):], "; "))
	}
	return err
}

// compare runs each tool in each round, for refs one after another: the first with an empty engine, the next with what the one
// before left there. whats names them.
func (b *bench) compare(ctx context.Context, link string, tools []tool, whats []string, refs ...name.Digest) ([]row, error) {
	var rows []row
	for i, what := range whats {
		for _, t := range tools {
			if i == 0 || t.upgrades {
				rows = append(rows, row{link: link, what: what, tool: t.name, client: t.client})
			}
		}
	}
	broken := map[string]bool{}
	for round := range b.rounds {
		for n := range tools {
			t := tools[(n+round)%len(tools)]
			for i, ref := range refs {
				if broken[t.name] || i > 0 && !t.upgrades {
					break
				}
				u, err := b.once(ctx, t, ref, i == 0)
				switch {
				case ctx.Err() != nil:
					return nil, context.Cause(ctx)
				case err != nil && t.name == launcherPull, err != nil && t.name == launcherFetch:
					return nil, fmt.Errorf("%s, %s: %w", link, t.name, err)
				case err != nil:
					broken[t.name] = true
					b.notes = append(b.notes, fmt.Sprintf("%s, %s: %v", link, t.name, err))
					continue
				}
				at := slices.IndexFunc(rows, func(r row) bool { return r.what == whats[i] && r.tool == t.name })
				rows[at].runs = append(rows[at].runs, u)
				fmt.Fprintf(b.stderr, "round %d: %s, %s, %s: %.2f s\n", round+1, link, whats[i], t.name, u.Seconds)
			}
		}
	}
	if err := b.empty(ctx); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rows, func(r row) bool { return broken[r.tool] }), nil
}

func (b *bench) once(ctx context.Context, t tool, ref name.Digest, first bool) (usage, error) {
	want := 2
	if first {
		want = 1
		if err := b.empty(ctx); err != nil {
			return usage{}, err
		}
		if err := b.rest(ctx); err != nil {
			return usage{}, err
		}
	}
	syscall.Sync()
	u, err := b.measured(ctx, t.argv(ref))
	if err != nil || !t.engine {
		return u, err
	}
	images, err := b.images(ctx, "--filter", "label="+label)
	if err == nil && len(images) < want {
		err = fmt.Errorf("it ended well, but the engine has %d images, not %d", len(images), want)
	}
	return u, err
}

// empty removes all that earlier runs left behind.
func (b *bench) empty(ctx context.Context) error {
	for _, dir := range []string{b.shared(), b.out()} {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
			return err
		}
	}
	images, err := b.images(ctx, "--filter", "label="+label)
	if err != nil {
		return err
	}
	if len(images) > 0 {
		if _, err := b.command(ctx, "docker", append([]string{"rmi", "-f"}, images...)...).Output(); err != nil {
			return said(err)
		}
	}
	if !b.private {
		return nil
	}
	// Layers of an image that somebody left behind would be a head start for the next one.
	if images, err = b.images(ctx); err == nil && len(images) > 0 {
		err = fmt.Errorf("the engine still has images: %s", strings.Join(images, ", "))
	}
	return err
}

func (b *bench) rest(ctx context.Context) error {
	syscall.Sync()
	select {
	case <-time.After(settle / time.Duration(b.scale)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *bench) images(ctx context.Context, filter ...string) ([]string, error) {
	out, err := b.command(ctx, "docker", append([]string{"images", "-aq", "--no-trunc"}, filter...)...).Output()
	if err != nil {
		return nil, said(err)
	}
	ids := strings.Fields(string(out))
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// table prints rows in Markdown, with the ratio to each of the baselines.
func (b *bench) table(rows []row, baselines ...string) {
	w := tabwriter.NewWriter(b.stdout, 0, 0, 1, ' ', 0)
	fmt.Fprint(w, "| link\t| what\t| tool\t| seconds\t| from – to\t")
	for _, name := range baselines {
		fmt.Fprintf(w, "| × %s\t", name)
	}
	fmt.Fprintf(w, "| peak MiB\t|\n%s|\n", strings.Repeat("|---\t", 6+len(baselines)))
	for _, r := range rows {
		seconds := r.seconds()
		fmt.Fprintf(w, "| %s\t| %s\t| %s\t| %.2f\t| %.2f – %.2f\t", r.link, r.what, r.tool, median(seconds), slices.Min(seconds), slices.Max(seconds))
		for _, name := range baselines {
			ratio := "–"
			for _, base := range rows {
				if base.link == r.link && base.what == r.what && base.tool == name {
					ratio = fmt.Sprintf("%.2f", median(seconds)/median(base.seconds()))
				}
			}
			fmt.Fprintf(w, "| %s\t", ratio)
		}
		peak := "–"
		if !r.client {
			peak = fmt.Sprintf("%.0f", math.Ceil(r.peak()))
		}
		fmt.Fprintf(w, "| %s\t|\n", peak)
	}
	w.Flush()
}

func (r row) seconds() []float64 {
	var s []float64
	for _, u := range r.runs {
		s = append(s, u.Seconds)
	}
	return s
}

// peak is the highest of all runs, in MiB: it is compared with a limit.
func (r row) peak() float64 {
	var peak int64
	for _, u := range r.runs {
		peak = max(peak, u.PeakKiB)
	}
	return float64(peak) / 1024
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
