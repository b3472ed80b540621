package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"tee-launcher/pkg/internal/unixhttp"
)

const (
	// maxConnections and connectionTime bound what whoever reaches us can take.
	maxConnections = 8
	connectionTime = 5 * time.Second
)

// handler answers at /metrics and /healthz, and where it's this machine alone that asks, at /status.
func (t *Teller) handler(self bool) http.Handler {
	mux := http.NewServeMux()
	answer := func(path, kind string, say func(Status) (int, []byte)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			code, body := say(t.Current())
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(code)
			_, _ = w.Write(body)
		})
	}
	answer("/metrics", "text/plain; version=0.0.4; charset=utf-8", func(s Status) (int, []byte) {
		return http.StatusOK, s.Metrics()
	})
	answer("/healthz", "text/plain; charset=utf-8", func(s Status) (int, []byte) {
		if s.Healthy() {
			return http.StatusOK, []byte("ok\n")
		}
		return http.StatusServiceUnavailable, fmt.Appendf(nil, "%d %s\n", s.Code(), s.Code().Name())
	})
	if self {
		answer("/status", "application/json", func(s Status) (int, []byte) { return http.StatusOK, s.JSON() })
	}
	return mux
}

// Serve answers on a listener until it is closed: one request for each connection, few of them at
// the same time, each for a short while.
func (t *Teller) Serve(l net.Listener) error {
	server := &http.Server{
		Handler: t.handler(l.Addr().Network() == "unix"), MaxHeaderBytes: 4 << 10, ReadTimeout: connectionTime, WriteTimeout: connectionTime,
		ErrorLog: log.New(io.Discard, "", 0),
	}
	server.SetKeepAlivesEnabled(false)
	err := server.Serve(&bounded{Listener: l, free: make(chan struct{}, maxConnections)})
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// bounded is a listener of which few connections are open at the same time, each for a bounded time:
// the further ones wait.
type bounded struct {
	net.Listener
	free chan struct{}
}

func (l *bounded) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	end := time.Now().Add(connectionTime)
	_ = c.SetDeadline(end) // else it is the server's that bound it
	return &brief{Conn: c, end: end, over: func() { <-l.free }}, nil
}

// brief is a connection whose deadlines are never later than its end.
type brief struct {
	net.Conn
	end  time.Time
	over func()
	once sync.Once
}

func (c *brief) SetDeadline(d time.Time) error      { return c.Conn.SetDeadline(c.least(d)) }
func (c *brief) SetReadDeadline(d time.Time) error  { return c.Conn.SetReadDeadline(c.least(d)) }
func (c *brief) SetWriteDeadline(d time.Time) error { return c.Conn.SetWriteDeadline(c.least(d)) }

func (c *brief) least(d time.Time) time.Time {
	if d.IsZero() || d.After(c.end) {
		return c.end
	}
	return d
}

func (c *brief) Close() error {
	defer c.once.Do(c.over)
	return c.Conn.Close()
}

// socketName is the socket's, in a directory that is its user's alone.
const socketName = "status.sock"

// errNotOurs is a directory in which somebody else could have put the socket.
var errNotOurs = errors.New("not a directory that is this user's alone")

// directory returns the launcher's own directory below that for temporary files.
func directory(temporary string) (string, error) {
	dir := filepath.Join(temporary, "launcher")
	info, err := os.Lstat(dir)
	if err != nil {
		return dir, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || int(stat.Uid) != os.Geteuid() {
		return dir, fmt.Errorf("%s: %w", dir, errNotOurs)
	}
	return dir, nil
}

// Listen makes the socket on which Self asks, in the place of that of a launcher that is gone.
func Listen(temporary string) (net.Listener, error) {
	if err := os.Mkdir(filepath.Join(temporary, "launcher"), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	dir, err := directory(temporary)
	if err != nil {
		return nil, err
	}
	// Under another name first, so that there is never a moment in which nobody answers or others may.
	building := filepath.Join(dir, fmt.Sprintf(".%08x.sock", rand.Uint32()))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: building, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(building, 0o600)
	if err == nil {
		err = os.Rename(building, filepath.Join(dir, socketName))
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(building))
	}
	return l, nil
}

// Self asks the launcher that runs here how it is.
func Self(ctx context.Context, temporary string) (Status, error) {
	dir, err := directory(temporary)
	if err != nil {
		return Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectionTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/status", nil)
	if err != nil {
		return Status{}, err
	}
	response, err := unixhttp.Client(filepath.Join(dir, socketName), false).Do(request)
	if err != nil {
		return Status{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, MaxSize+1))
	if err != nil {
		return Status{}, err
	}
	if response.StatusCode != http.StatusOK {
		return Status{}, fmt.Errorf("status %d", response.StatusCode)
	}
	return Parse(body)
}
