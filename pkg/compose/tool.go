package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/child"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/waiting"
)

const (
	versionTimeout = 30 * time.Second
	createTimeout  = 5 * time.Minute
	// maxOutput bounds what is kept of Compose's output, from its end: what went wrong.
	maxOutput = 512
	// maxComplaint is how much of what a command says is shown that isn't Compose, or no longer.
	maxComplaint = 200
	// usualPath is where programs are found where PATH is empty.
	usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Tool is a Compose of version 2 or later that was found to answer.
type Tool struct {
	command []string
	version string
	host    string
	path    child.Path
	exec    func(*exec.Cmd) error
}

// Error is a Compose that is missing, too old, or didn't do what it was told. It ends in exit code 9.
type Error struct {
	Command string // as one would type it; empty where none was found
	Output  string // the end of what it printed, trimmed
	Err     error  // its exit status, or why it didn't run
	Hint    string
}

func (e *Error) Error() string {
	if e.Output == "" {
		return e.Summary()
	}
	return e.Summary() + ": " + e.Output
}

// Summary is the error without what Compose printed.
func (e *Error) Summary() string {
	if e.Command == "" {
		return fmt.Sprintf("compose: %v", e.Err)
	}
	return fmt.Sprintf("compose: `%s`: %v", e.Command, e.Err)
}

// Unwrap returns what Compose ended with.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode is Workload.
func (e *Error) ExitCode() exit.Code { return exit.Workload }

// Hints says what helps where that is known.
func (e *Error) Hints() []string {
	if e.Hint == "" {
		return nil
	}
	return []string{e.Hint}
}

// Find returns the Compose to use with the engine at host ("unix://…"): command, split at white space, or where that is empty
// `docker compose`, then `docker-compose`, whichever on PATH is version 2 or later. PATH's entries in or below the unmeasured
// directories aren't searched, nor handed on; a command that is a path was asked for by it. Run runs a command; nil: as a
// process that doesn't outlive us.
func Find(ctx context.Context, command, host string, unmeasured []string, run func(*exec.Cmd) error) (Tool, error) {
	if run == nil {
		run = child.Run
	}
	candidates := [][]string{{"docker", "compose"}, {"docker-compose"}}
	if command != "" {
		candidates = [][]string{strings.Fields(command)}
	}
	var tried []error
	if command != "" && len(candidates[0]) == 0 {
		return Tool{}, &Error{Err: errors.New("the command is blank"), Hint: "name one with --compose, or leave it unset"}
	}
	for _, candidate := range candidates {
		t := Tool{command: candidate, host: host, path: child.Search(usualPath, unmeasured), exec: run}
		err := t.readVersion(ctx)
		if err == nil {
			return t, nil
		}
		tried = append(tried, err)
	}
	hint := "install Compose 2 or later (docker-compose-plugin), or name it with --compose"
	if command != "" {
		hint = "correct --compose (LAUNCHER_COMPOSE), or leave it unset: " +
			"then `docker compose` or `docker-compose` is found, of version 2 or later"
	}
	if len(tried) == 1 {
		var e *Error
		if errors.As(tried[0], &e) {
			e.Hint = hint
		}
		return Tool{}, tried[0]
	}
	var reasons []string
	for _, err := range tried {
		var e *Error
		if !errors.As(err, &e) {
			return Tool{}, err
		}
		reasons = append(reasons, strings.TrimPrefix(e.Error(), "compose: "))
	}
	return Tool{}, &Error{Err: fmt.Errorf("no version 2 or later found: %s", strings.Join(reasons, "; ")), Hint: hint}
}

func (t *Tool) readVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := t.run(ctx, nil, "version", "--short")
	if err != nil {
		var e *Error
		if errors.As(err, &e) && len(e.Output) > maxComplaint {
			e.Output = "" // docker's help, as docker without its plugin prints it
		}
		return err
	}
	t.version = strings.TrimPrefix(strings.TrimSpace(out), "v")
	major, _, _ := strings.Cut(t.version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 2 {
		return &Error{Command: t.line("version", "--short"), Err: fmt.Errorf("version %.40q is not 2 or later", t.version)}
	}
	return nil
}

// Version returns what the tool says its version is.
func (t Tool) Version() string { return t.version }

// String returns the command as one would type it.
func (t Tool) String() string { return strings.Join(t.command, " ") }

// Create has Compose create the workload's network and container from the proved image, or leave the container alone if it is
// as it should be. Nothing is started.
func (t Tool) Create(ctx context.Context, w Workload, id inspect.ImageID) error {
	if id.IsZero() {
		return errors.New("creating the workload: no proved image given")
	}
	file, err := w.Render(id.String())
	if err != nil {
		return fmt.Errorf("rendering the compose file: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	_, err = t.run(ctx, file, "--ansi", "never", "-p", Name, "-f", "-", "up", "--no-start")
	var e *Error
	if errors.As(err, &e) && e.Hint == "" {
		e.Hint = "mend what Compose says, and start the launcher again: nothing was started"
		if strings.Contains(e.Output, "address pools") {
			e.Hint = "remove networks that nothing uses (docker network prune), and start the launcher again"
		}
	}
	return err
}

// run executes Compose in surroundings made from nothing: no variable, no .env file, no plugin or credential of anybody's
// home reaches it.
func (t Tool) run(ctx context.Context, stdin []byte, args ...string) (stdout string, err error) {
	dir, err := os.MkdirTemp("", "launcher-compose-")
	if err != nil {
		return "", &Error{Command: t.line(args...), Err: err, Hint: "the launcher needs a writable temporary directory"}
	}
	defer os.RemoveAll(dir)
	home, work := filepath.Join(dir, "home"), filepath.Join(dir, "work")
	for _, d := range []string{home, work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return "", &Error{Command: t.line(args...), Err: err}
		}
	}
	program := t.command[0]
	if !strings.Contains(program, "/") {
		if program = t.path.Look(program); program == "" {
			return "", &Error{Command: t.line(args...), Err: &exec.Error{Name: t.command[0], Err: exec.ErrNotFound}}
		}
	}
	cmd := exec.CommandContext(ctx, program, append(t.command[1:len(t.command):len(t.command)], args...)...)
	cmd.Args[0] = t.command[0]
	cmd.Env = []string{"PATH=" + t.path.String(), "DOCKER_HOST=" + t.host, "HOME=" + home, "DOCKER_CONFIG=" + home}
	cmd.Dir = work
	cmd.Stdin = bytes.NewReader(stdin)
	var out, complaints tail
	cmd.Stdout, cmd.Stderr = &out, &complaints
	// A Compose that outlived a killed launcher would get in the way of the next one.
	defer waiting.For(ctx, "`"+t.line(args...)+"`")()
	if err := t.exec(cmd); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return "", &Error{Command: t.line(args...), Err: err, Output: complaints.line()}
	}
	return string(out.data), nil
}

func (t Tool) line(args ...string) string {
	return strings.Join(append(t.command[:len(t.command):len(t.command)], args...), " ")
}

// tail keeps the end of what is written to it.
type tail struct {
	data []byte
	cut  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if excess := len(t.data) - maxOutput; excess > 0 {
		t.data, t.cut = t.data[excess:], true
	}
	return len(p), nil
}

// line returns the text as one line: the lines that say something, trimmed and joined.
func (t *tail) line() string {
	data := t.data
	if _, whole, found := bytes.Cut(data, []byte("\n")); t.cut && found {
		data = whole
	}
	return strings.Join(sanitize.Lines(string(data), maxOutput), "; ")
}
