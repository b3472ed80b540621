// Command mpc-node stands in for the node in tests and in the demo: a small static program that is started the way the
// node is, shows by its log and by a file in /data what it was started with, and waits.
//
//	mpc-node start-with-config-file PATH
//
// Lines of the file at PATH, in whatever table they stand, choose how it behaves: exit_code = N and
// exit_after_ms = N make it end by itself (N milliseconds after the start, 0 if only the code is
// given), ignore_term = true makes it survive SIGTERM, and listen = PORT makes it answer TCP
// connections there: it says which start of it this is, having read its config, and whoever answers
// "exit N" ends it with that code. With emit = "HEX" it measures that in the launcher's name, takes
// the lock of the shared volume and has a file and folders stand in the way of the launcher's, as
// long as it runs. It reads just enough of TOML for that and does nothing else that a node does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	dataDir     = "/data"
	sharedDir   = "/mnt/shared"
	agentSocket = "/var/run/dstack.sock"
)

func main() {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	os.Exit(run(os.Args[1:], dataDir, terminated, os.Stdout, os.Stderr))
}

// run is the program without the process: it returns the exit code.
func run(args []string, data string, terminated <-chan os.Signal, stdout, stderr io.Writer) int {
	if len(args) != 2 || args[0] != "start-with-config-file" {
		fmt.Fprintln(stderr, "usage: mpc-node start-with-config-file PATH")
		return 2
	}
	config, err := readConfig(args[1])
	if err != nil {
		fmt.Fprintln(stderr, "mpc-node:", err)
		return 1
	}
	starts, err := recordStart(data)
	if err != nil {
		fmt.Fprintln(stderr, "mpc-node:", err)
		return 1
	}
	fmt.Fprintf(stdout, "mpc-node: start %d, image_hash = %q\n", starts, config.imageHash)

	ordered := make(chan int)
	if config.listens {
		listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", fmt.Sprintf(":%d", config.listen))
		if err != nil {
			fmt.Fprintln(stderr, "mpc-node:", err)
			return 1
		}
		defer listener.Close()
		go answer(listener, starts, ordered)
		fmt.Fprintf(stdout, "mpc-node: listening on port %d\n", listener.Addr().(*net.TCPAddr).Port)
	}

	if config.emit != "" {
		lock, err := impersonate(config.emit, agentSocket, sharedDir)
		if err != nil {
			fmt.Fprintln(stderr, "mpc-node:", err)
			return 1
		}
		defer lock.Close()
		fmt.Fprintln(stdout, "mpc-node: measured")
		go obstruct(sharedDir)
	}

	var ended <-chan time.Time
	if config.ends {
		ended = time.After(config.exitAfter)
	}
	for {
		select {
		case <-ended:
			return config.exitCode
		case code := <-ordered:
			return code
		case <-terminated:
			if config.ignoreTerm {
				fmt.Fprintln(stdout, "mpc-node: ignoring SIGTERM")
				continue
			}
			fmt.Fprintln(stdout, "mpc-node: stopped")
			return 0
		}
	}
}

type config struct {
	imageHash  string
	ends       bool
	exitCode   int
	exitAfter  time.Duration
	ignoreTerm bool
	listens    bool
	listen     uint16 // 0: any
	emit       string
}

func readConfig(path string) (config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return config{}, err
	}
	var c config
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		key, value, assigned := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !assigned {
			continue // a table, a comment, a part of a longer value
		}
		if err := c.set(key, value); err != nil {
			return config{}, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
	}
	if c.imageHash == "" {
		return config{}, fmt.Errorf("%s: no image_hash", path)
	}
	return c, nil
}

func (c *config) set(key, value string) error {
	var err error
	switch key {
	case "image_hash":
		c.imageHash = strings.Trim(value, `"'`)
	case "exit_code":
		c.ends = true
		c.exitCode, err = strconv.Atoi(value)
	case "exit_after_ms":
		c.ends = true
		var ms int
		ms, err = strconv.Atoi(value)
		c.exitAfter = time.Duration(ms) * time.Millisecond
	case "ignore_term":
		c.ignoreTerm, err = strconv.ParseBool(value)
	case "emit":
		c.emit = strings.Trim(value, `"'`)
	case "listen":
		var port uint64
		port, err = strconv.ParseUint(value, 10, 16)
		c.listens, c.listen = true, uint16(port)
	}
	return err
}

// recordStart adds a line to the file of starts, so that a test sees which boot started it and that the volume was kept,
// and returns how many starts stand there now.
func recordStart(dir string) (int, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, err
	}
	path := filepath.Join(dir, "starts")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(f, "%s %s\n", strings.TrimSpace(string(boot)), time.Now().UTC().Format(time.RFC3339Nano))
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	lines, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strings.Count(string(lines), "\n"), nil
}

func answer(listener net.Listener, starts int, ordered chan<- int) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprintf(conn, "mpc-node: start %d\n", starts)
			var code int
			if _, err := fmt.Fscanf(conn, "exit %d\n", &code); err == nil {
				ordered <- code
			}
		}()
	}
}

// impersonate does what only a launcher should, and returns the lock that it took.
func impersonate(payload, socket, shared string) (*os.File, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	body := fmt.Sprintf(`{"event":"mpc-image-digest","payload":%q}`, payload)
	fmt.Fprintf(conn, "POST /EmitEvent HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	answer, err := io.ReadAll(io.LimitReader(conn, 1<<10))
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
		return nil, fmt.Errorf("emitting: %q, %w", answer, err)
	}
	dir, err := os.Open(shared)
	if err != nil {
		return nil, err
	}
	return dir, syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// obstruct puts something else in the place of all that a launcher writes.
func obstruct(shared string) {
	for ; ; time.Sleep(10 * time.Millisecond) {
		_ = os.RemoveAll(filepath.Join(shared, "launcher"))
		_ = os.WriteFile(filepath.Join(shared, "launcher"), nil, 0o600)
		_ = os.MkdirAll(filepath.Join(shared, ".mpc-config.toml.tmp", "x"), 0o755)
	}
}
