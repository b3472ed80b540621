//go:build e2e

package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/docker/inspect"
)

// ownEngine is a dockerd of a test's own, with its own containerd, whose plug can be pulled: it lives in namespaces of its own, so that
// the kernel ends all of it at once. What it stored stays, as on a disk. It is of the same kind as the engine of hack/with-engine.
type ownEngine struct {
	t       *testing.T
	dir     string
	driver  string
	bridged bool
	environ []string // of the daemon, beside this process's
	cmd     *exec.Cmd
	control io.WriteCloser
	init    int // process 1 of its namespace, as this namespace counts
	logged  int // bytes of its log when it was started
}

// dockerdScript is process 1 there. A line on standard input stops the daemon in an orderly way. A bridged engine has a bridge, and the
// places that the contract's compose files name are its own: /var/run and /tapp are below its directory. ENGINE_HOSTS is its /etc/hosts:
// from the start, for a daemon looks at it again only after a while.
const dockerdScript = `
dir=$0 driver=$1 group=$2 bridged=$3 config=$4
sockets=(-H "unix://$dir/docker.sock")
network=(--bridge=none)
rm -rf "$dir/pid" "$dir/docker.sock" "$dir/exec" # what lies in /run, which a boot empties
if [ "$bridged" = true ]; then
	mkdir -p "$dir/run" "$dir/tapp" /tapp
	mount --bind "$dir/run" /run
	mount --bind "$dir/tapp" /tapp
	rm -f /run/docker.sock
	sockets+=(-H unix:///var/run/docker.sock)
	network=(--bip=172.31.250.1/24 --default-address-pool base=172.31.0.0/17,size=24 --ip-masq=false)
fi
[ -z "${ENGINE_HOSTS:-}" ] || mount --bind "$ENGINE_HOSTS" /etc/hosts
mkdir -p /run/containerd
mount -t tmpfs -o mode=755 containerd /run/containerd
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "$config" >"$dir/daemon.json"
dockerd --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" "${sockets[@]}" \
	--storage-driver "$driver" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$group" \
	"${network[@]}" --iptables=false --ip6tables=false --ip-forward=false </dev/null >>"$dir/log" 2>&1 &
read -r _
kill -TERM $!
wait $!
`

func newOwnEngine(t *testing.T, bridged bool, environ ...string) *ownEngine {
	t.Helper()
	require.Zero(t, os.Geteuid(), "a dockerd of its own needs root")
	host := os.Getenv("LAUNCHER_E2E_DOCKER_HOST")
	require.NotEmpty(t, host, "LAUNCHER_E2E_DOCKER_HOST is not set: run make e2e")
	var info struct{ Driver string }
	(&machine{t: t, host: host}).call("GET", "/info", nil, &info)
	// Not below TMPDIR: the path of a unix socket has to fit into 107 bytes, and /tmp may be memory.
	dir, err := os.MkdirTemp("/var/tmp", "engine")
	require.NoError(t, err)
	if os.Getenv("LAUNCHER_ENGINE_CONFIG") == "" { // a shared engine's containerd store is its own choice, not this one's
		info.Driver = strings.Replace(info.Driver, "overlayfs", "overlay2", 1)
	}
	e := &ownEngine{t: t, dir: dir, driver: info.Driver, bridged: bridged, environ: environ}
	t.Cleanup(func() {
		e.cut()
		if t.Failed() {
			if log, err := os.ReadFile(filepath.Join(dir, "log")); err == nil {
				t.Logf("the end of dockerd's log:\n%s", log[max(0, len(log)-4000):])
			}
		}
		for _, pattern := range []string{"/sys/fs/cgroup/" + e.name(), "/sys/fs/cgroup/*/" + e.name()} {
			groups, _ := filepath.Glob(pattern)
			for _, group := range groups {
				left, _ := filepath.Glob(group + "/*/")
				for _, g := range append(left, group) {
					_ = os.Remove(g)
				}
			}
		}
		assert.NoError(t, os.RemoveAll(dir))
	})
	e.start()
	return e
}

func (e *ownEngine) name() string { return filepath.Base(e.dir) }
func (e *ownEngine) host() string { return "unix://" + e.dir + "/docker.sock" }

// start brings the daemon up and waits until it answers.
func (e *ownEngine) start() {
	e.t.Helper()
	args := []string{"--mount", "--propagation", "slave", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"}
	if root := os.Getenv("LAUNCHER_ENGINE_ROOT"); root != "" {
		args = append(args, "../../hack/in-root", root, "/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	}
	config := os.Getenv("LAUNCHER_ENGINE_CONFIG")
	if config == "" {
		config = "{}"
	}
	e.cmd = exec.Command("unshare", append(args, "bash", "-euc", dockerdScript, e.dir, e.driver, e.name(), strconv.FormatBool(e.bridged), config)...)
	e.cmd.Env = append(os.Environ(), e.environ...)
	log, err := os.ReadFile(filepath.Join(e.dir, "log"))
	if err != nil {
		require.ErrorIs(e.t, err, os.ErrNotExist)
	}
	e.logged = len(log)
	e.control, err = e.cmd.StdinPipe()
	require.NoError(e.t, err)
	require.NoError(e.t, e.cmd.Start())
	eventually(e.t, "unshare starts something", func() bool {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", e.cmd.Process.Pid, e.cmd.Process.Pid))
		if err != nil {
			return false
		}
		e.init, err = strconv.Atoi(strings.TrimSpace(string(children)))
		return err == nil
	})
	if e.bridged {
		require.NoError(e.t, inNetwork(e.init, loopbackUp))
	}
	reader, err := inspect.New(e.host())
	require.NoError(e.t, err)
	eventually(e.t, "dockerd answers", func() bool {
		_, err := reader.Info(context.Background())
		return err == nil
	})
}

// event is one of the engine's events.
type event struct {
	Actor struct{ Attributes map[string]string }
}

// events returns the engine's events up to a time.
func (e *ownEngine) events(query url.Values) []event {
	e.t.Helper()
	require.NotEmpty(e.t, query.Get("until"))
	answer := e.watch(e.t.Context(), query)
	defer answer.Close()
	var all []event
	for decoder := json.NewDecoder(answer); ; {
		var next event
		err := decoder.Decode(&next)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(e.t, err)
		all = append(all, next)
	}
}

// watch returns the engine's events as it sends them.
func (e *ownEngine) watch(ctx context.Context, query url.Values) io.ReadCloser {
	e.t.Helper()
	request, err := http.NewRequestWithContext(ctx, "GET", "http://docker/events?"+query.Encode(), nil)
	require.NoError(e.t, err)
	answer, err := e.client().Do(request)
	require.NoError(e.t, err)
	require.Equal(e.t, http.StatusOK, answer.StatusCode)
	return answer.Body
}

// client speaks to the engine.
func (e *ownEngine) client() *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.dir+"/docker.sock")
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
}

// cut pulls the plug: daemon, containerd, shims and workload get no chance to do anything.
func (e *ownEngine) cut() {
	if e.cmd == nil {
		return
	}
	assert.NoError(e.t, e.cmd.Process.Kill())
	e.gone()
}

// stop stops the daemon in an orderly way.
func (e *ownEngine) stop() {
	e.t.Helper()
	_, err := io.WriteString(e.control, "\n")
	require.NoError(e.t, err)
	e.gone()
}

func (e *ownEngine) gone() {
	_ = e.cmd.Wait()
	eventually(e.t, "nothing of the engine lives on", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", e.init))
		return os.IsNotExist(err)
	})
	e.cmd = nil
	_, err := net.Dial("unix", e.dir+"/docker.sock")
	assert.Error(e.t, err)
}

// inNetwork does something in the network of a process.
func inNetwork(pid int, do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			result <- err
			return
		}
		defer network.Close()
		if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- do()
	}()
	return <-result
}

// loopbackUp does what `ip link set lo up` does.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
