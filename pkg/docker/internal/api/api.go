// Package api speaks the Docker Engine API over one unix socket: requests, bounded answers and the engine's own errors.
//
// It knows no endpoint: what may be read stands in package inspect, what changes something in package docker.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/waiting"
)

const (
	// callTimeout bounds a call whose answer is small and immediate.
	callTimeout = 60 * time.Second
	// maxAnswer bounds an answer that is read whole. The largest is the list of all images and containers.
	maxAnswer = 32 << 20
	// maxMessage bounds what is quoted of the engine's own words.
	maxMessage = 2 << 10
)

// Client calls one engine.
type Client struct {
	http   *http.Client
	socket string
}

// New returns a client for host, which must be "unix://" and an absolute path. Nothing is contacted.
func New(host string) (*Client, error) {
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("docker host %.200q is not unix:// and an absolute path", host)
	}
	return &Client{http: unixhttp.Client(path, true), socket: path}, nil
}

// Error is a call that had no answer or not the one hoped for.
type Error struct {
	Op      string // what was tried, for people: "inspecting image sha256:…"
	Status  int    // HTTP status; 0 if there was no answer, 200 if a stream reported the error
	Message string // the engine's own words, trimmed; may be empty
	Foreign bool   // the answer isn't in the form that engines give to errors
	Socket  string // where the answer came from, if it is one that isn't the hoped for
	Err     error  // the transport's error; nil if the engine answered
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	if e.Status != 0 && e.Status != http.StatusOK {
		fmt.Fprintf(&b, " (HTTP %d)", e.Status)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the transport's error.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode is Engine.
func (e *Error) ExitCode() exit.Code { return exit.Engine }

// Hints says what helps where that is known.
func (e *Error) Hints() []string {
	switch {
	case errors.Is(e.Err, syscall.ENOENT):
		return []string{"start the Docker daemon; in a container, mount its socket " +
			"(/var/run/docker.sock:/var/run/docker.sock); --docker-host names another place"}
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return []string{"no Docker daemon listens there: start it (systemctl start docker), " +
			"or name its socket with --docker-host"}
	case errors.Is(e.Err, fs.ErrPermission):
		return []string{"this user may not open the Docker socket: " +
			"run the launcher as root, or in the group that the socket belongs to"}
	case errors.Is(e.Err, context.DeadlineExceeded):
		return []string{"the Docker daemon takes requests and doesn't answer: " +
			"look at its log (journalctl -u docker), and restart it"}
	case DiskFull(e):
		return []string{"free space on the engine's data root: docker system df"}
	case e.Foreign:
		return []string{"is it a Docker engine that listens at " + e.Socket + "? --docker-host names its socket"}
	case e.Status >= http.StatusInternalServerError:
		return []string{"look at the Docker daemon's log: journalctl -u docker"}
	}
	return nil
}

// DiskFull reports whether the engine ran out of space. Its answers carry no code for that, only the system's words.
func DiskFull(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.Contains(e.Message, syscall.ENOSPC.Error())
}

// HostFault reports whether the engine names, in the system's words, something that only its machine
// can be the reason for, whatever it was asked to do.
func HostFault(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	const brokenFileSystem = "structure needs cleaning" // EUCLEAN, which only Linux has
	return strings.Contains(e.Message, brokenFileSystem) || slices.ContainsFunc([]syscall.Errno{
		syscall.EACCES, syscall.EDQUOT, syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM,
		syscall.ENOSPC, syscall.EROFS, syscall.ESTALE,
	}, func(n syscall.Errno) bool { return strings.Contains(e.Message, n.Error()) })
}

// NotFound reports whether the engine answered that a thing doesn't exist.
func NotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound && !e.Foreign
}

// Answered reports whether err is the engine's own refusal, not a failure to reach it.
func Answered(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status != 0
}

// Request is one call. Body, if not nil, is sent as JSON.
type Request struct {
	Op      string
	Method  string
	Path    string // without version prefix: every engine speaks its newest to that
	Query   url.Values
	Body    any
	Timeout time.Duration // 0: a minute
}

// Call does r and decodes the answer into out unless that is nil. Every status below 300, and 304 ("already so"), is success.
func (c *Client) Call(ctx context.Context, r Request, out any) error {
	if r.Timeout == 0 {
		r.Timeout = callTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	defer waiting.For(ctx, "the Docker engine: "+r.Op)()
	var body io.Reader
	if r.Body != nil {
		data, err := json.Marshal(r.Body)
		if err != nil {
			return fmt.Errorf("%s: %w", r.Op, err)
		}
		body = bytes.NewReader(data)
	}
	resp, err := c.Stream(ctx, r, body, "application/json")
	if err != nil {
		return err
	}
	defer resp.Close()
	data, err := io.ReadAll(io.LimitReader(resp, maxAnswer+1))
	if err != nil {
		return &Error{Op: r.Op, Err: err}
	}
	if len(data) > maxAnswer {
		return &Error{Op: r.Op, Err: fmt.Errorf("answer of more than %d bytes", maxAnswer)}
	}
	if out == nil || len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return &Error{Op: r.Op, Err: fmt.Errorf("answer: %w", err)}
	}
	return nil
}

// Stream does r with body as it comes, and returns the answer's body unread. Neither a deadline nor a bound is set here.
func (c *Client) Stream(ctx context.Context, r Request, body io.Reader, contentType string) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: "docker", Path: r.Path, RawQuery: r.Query.Encode()}
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Op, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &Error{Op: r.Op, Err: bare(err)}
	}
	if resp.StatusCode < 300 || resp.StatusCode == http.StatusNotModified {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxMessage)) // what came of the message is better than none
	said, foreign := message(data)
	return nil, &Error{Op: r.Op, Status: resp.StatusCode, Message: said, Foreign: foreign, Socket: c.socket}
}

// Ping returns the newest API version that the engine speaks, such as "1.41", and whether it is Podman, which says so in a header of its own.
func (c *Client) Ping(ctx context.Context) (version string, podman bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	const op = "reaching the Docker daemon"
	defer waiting.For(ctx, "the Docker engine: "+op)()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return "", false, fmt.Errorf("%s: %w", op, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", false, &Error{Op: op, Err: bare(err)}
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if resp.StatusCode != http.StatusOK {
		said, foreign := message(data)
		return "", false, &Error{Op: op, Status: resp.StatusCode, Message: said, Foreign: foreign, Socket: c.socket}
	}
	return resp.Header.Get("Api-Version"), resp.Header.Get("Libpod-Api-Version") != "", nil
}

// bare removes the URL that net/http puts before an error: it names a host that doesn't exist.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// message returns what an error document says, and whether it is none.
func message(data []byte) (said string, foreign bool) {
	var doc struct {
		Message *string `json:"message"`
	}
	if err := json.Unmarshal(data, &doc); err == nil && doc.Message != nil {
		return Trim(*doc.Message), false
	}
	return Trim(string(data)), true
}

// Trim makes the engine's words fit for one line.
func Trim(s string) string { return sanitize.Line(s, maxMessage) }
