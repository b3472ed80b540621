// Command demo boots a small real image with the launcher and shows what came of it. `make demo` runs it.
//
//	hack/with-engine go run ./hack/demo -launcher bin/launcher
//
// Engine, Compose, launcher and image are real; the registry and the guest agent are the doubles of package launchtest, which extend a
// register as the real agent does. It fails if anything isn't as it should be: one image event, nothing fetched or emitted by a second run.
// What it leaves behind on the engine is hack/with-engine's to remove.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

// patience bounds one run of the launcher: everything is on this machine, and small.
const patience = 2 * time.Minute

func main() {
	launcher := flag.String("launcher", "bin/launcher", "the launcher to run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *launcher, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// demo is a CVM that has just booted, as far as the launcher can tell.
type demo struct {
	launcher       string
	env            []string
	shared         string // the shared volume, as the launcher sees it
	stdout, stderr io.Writer
}

func run(ctx context.Context, launcher string, stdout, stderr io.Writer) (err error) {
	host, compose := os.Getenv("LAUNCHER_E2E_DOCKER_HOST"), os.Getenv("LAUNCHER_E2E_COMPOSE")
	if host == "" || compose == "" {
		return errors.New("no engine to run on: start this with hack/with-engine, as `make demo` does")
	}
	dir, err := os.MkdirTemp("", "launcher-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	registry, err := launchtest.NewRegistry(launchtest.RegistryOptions{})
	if err != nil {
		return err
	}
	defer registry.Close()
	socket := filepath.Join(dir, "dstack.sock")
	agent, err := launchtest.NewAgent(socket, launchtest.AgentOptions{})
	if err != nil {
		return err
	}
	defer agent.Close()

	node, err := launchtest.NodeImage(ctx, "")
	if err != nil {
		return err
	}
	image, err := registry.Push("nearone/mpc-node", node, "demo")
	if err != nil {
		return err
	}
	approved, err := digest.Parse(image.DigestStr())
	if err != nil {
		return err
	}
	shared, err := sharedVolume(ctx)
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "user_config")
	text := fmt.Sprintf(`[launcher_config]
image_reference = "%s:demo"
port_mappings = [{ host = %d, container = 8080 }]

[mpc_node_config]
home_dir = "/data"
listen = 8080
`, image.Context(), port)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	settings := []string{
		"PLATFORM=TEE", "DOCKER_CONTENT_TRUST=1", "DEFAULT_IMAGE_DIGEST=" + approved.String(), "LAUNCHER_CONFIG=" + config,
		"LAUNCHER_SHARED_DIR=" + shared, "LAUNCHER_DSTACK_SOCKET=" + socket, "DOCKER_HOST=" + host, "LAUNCHER_COMPOSE=" + compose,
	}
	if launcher, err = filepath.Abs(launcher); err != nil {
		return err
	}
	d := demo{launcher: launcher, env: append([]string{"PATH=" + os.Getenv("PATH")}, settings...), shared: shared, stdout: stdout, stderr: stderr}

	d.title("user config")
	fmt.Fprint(stdout, text)
	d.title("first run")
	fmt.Fprintf(stdout, "$ %s \\\n    launcher\n", strings.Join(settings, " \\\n    "))
	first, err := d.boot(ctx)
	if err != nil {
		return fmt.Errorf("first run: %w", err)
	}
	// One that stays to look after the workload is killed: the workload runs on, and the next run takes it over.
	if err := first.end(syscall.SIGKILL); err != nil {
		return fmt.Errorf("first run: %w", err)
	}
	requests := len(registry.Requests())

	d.title("second run, in the same boot")
	second, err := d.boot(ctx)
	if err != nil {
		return fmt.Errorf("second run: %w", err)
	}
	defer func() { err = errors.Join(err, second.end(syscall.SIGTERM)) }()

	d.title("the first run's report, %s", state.Name+"/report.json in the shared volume")
	fmt.Fprintf(stdout, "%s\n", bytes.TrimSpace(first.document))
	for _, command := range []string{"docker logs mpc-node", "docker ps"} {
		d.title("%s", command)
		if err := d.show(ctx, command); err != nil {
			return err
		}
	}
	d.title("RTMR3")
	log, err := (&rtmr.Agent{Socket: socket}).Log(ctx)
	if err != nil {
		return err
	}
	d.events(log)
	measured, err := log.Accepted()
	if err != nil {
		return err
	}
	if measured != approved {
		return fmt.Errorf("the log is about %s, not %s", measured, approved)
	}
	fmt.Fprintln(stdout, "a verifier accepts it: the log replays to the register and holds one image event, for the image that runs")

	d.title("what the second run did")
	d.steps(second.report)
	return d.idle(first.report, second.report, len(registry.Requests())-requests, agent)
}

// boot is one run of the launcher, up to the start of the workload.
type boot struct {
	report   launch.Report
	document []byte // the report as it was written
	process  *os.Process
	ended    <-chan error
}

// boot runs the launcher until its report says that the workload is started, or until it ends.
func (d *demo) boot(ctx context.Context) (*boot, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.Command(d.launcher)
	cmd.Env, cmd.Stdout, cmd.Stderr = d.env, d.stdout, d.stderr
	before := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	b := &boot{process: cmd.Process, ended: ended}
	for {
		select {
		case err := <-ended:
			ended <- err
			if err != nil {
				return nil, err
			}
			if !b.read(d.shared, before) {
				return nil, errors.New("ended without a report that says it started the workload")
			}
			return b, nil
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), b.end(syscall.SIGTERM))
		case <-time.After(100 * time.Millisecond):
			if b.read(d.shared, before) {
				return b, nil
			}
		}
	}
}

// read reads the report and returns whether it is this run's and the workload is started.
func (b *boot) read(shared string, before time.Time) bool {
	var err error
	if b.document, err = os.ReadFile(filepath.Join(shared, state.Name, "report.json")); err != nil {
		return false
	}
	b.report = launch.Report{}
	if json.Unmarshal(b.document, &b.report) != nil || b.report.StartedAt.Before(before) {
		return false
	}
	for _, s := range b.report.Steps {
		if s.Name == "start" {
			return s.Status == "done" || s.Status == "skipped"
		}
	}
	return false
}

// end ends a launcher that is still there.
func (b *boot) end(s syscall.Signal) error {
	select {
	case err := <-b.ended:
		return err
	default:
	}
	if err := b.process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-b.ended:
		return nil
	case <-time.After(20 * time.Second):
		return errors.Join(fmt.Errorf("launcher: still there 20 s after %v", s), b.process.Kill())
	}
}

// idle returns what a second run should not have done.
func (d *demo) idle(first, second launch.Report, requests int, agent *launchtest.Agent) error {
	var fetched int64
	if second.Pull != nil {
		fetched = second.Pull.BytesFetched
	}
	fmt.Fprintf(d.stdout, "requests to the registry: %d, bytes of layers: %d, events emitted in both runs: %d\n", requests, fetched, agent.Emits())
	var errs []error
	if requests != 0 || fetched != 0 {
		errs = append(errs, errors.New("the second run went to the registry"))
	}
	if n := agent.Emits(); n != 1 {
		errs = append(errs, fmt.Errorf("%d events emitted, want 1", n))
	}
	if first.Workload == nil || second.Workload == nil || first.Workload.ContainerID != second.Workload.ContainerID {
		errs = append(errs, errors.New("the second run has another container than the first"))
	}
	if unexpected := agent.Unexpected(); len(unexpected) > 0 {
		errs = append(errs, fmt.Errorf("the agent was asked what nobody should ask: %q", unexpected))
	}
	return errors.Join(errs...)
}

func (d *demo) title(format string, args ...any) {
	fmt.Fprintf(d.stdout, "\n=== "+format+"\n", args...)
}

func (d *demo) show(ctx context.Context, command string) error {
	words := strings.Fields(command)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = d.stdout, d.stderr
	return cmd.Run()
}

func (d *demo) steps(r launch.Report) {
	w := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	for _, s := range r.Steps {
		fmt.Fprintf(w, "%s\t%s\t%d ms\t%s\n", s.Name, s.Status, s.DurationMS, s.Detail)
	}
	w.Flush()
}

func (d *demo) events(log rtmr.Log) {
	w := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	for _, e := range log.Events() {
		payload := fmt.Sprintf("%x", e.Payload)
		if image, ok := e.Image(); ok {
			payload = image.String()
		}
		fmt.Fprintf(w, "%s\t%s\n", e.Name, payload)
	}
	fmt.Fprintf(w, "replayed\t%s\n", log.Replay())
	if reported, ok := log.Reported(); ok {
		fmt.Fprintf(w, "register\t%s\n", reported)
	}
	w.Flush()
}

// sharedVolume makes the workload's volume and returns where it is on this machine: the directory that it was bound to, if
// hack/with-engine made it so, else the engine's own.
func sharedVolume(ctx context.Context) (string, error) {
	var errOutput strings.Builder
	docker := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "docker", args...)
		cmd.Stderr = &errOutput
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOutput.String()))
		}
		return strings.TrimSpace(string(out)), nil
	}
	if _, err := docker("volume", "create", "shared-volume"); err != nil {
		return "", err
	}
	return docker("volume", "inspect", "--format", "{{with .Options}}{{.device}}{{else}}{{.Mountpoint}}{{end}}", "shared-volume")
}

// freePort returns a port that nobody listens on right now.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := listener.Addr().(*net.TCPAddr).Port
	return port, listener.Close()
}
