package fleet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/status"
)

const (
	// lines is how many of a log a node is asked for: those of ten minutes, and then some.
	lines = 1000
	// maxLog and maxFile bound a log from a node and from a file, in bytes, maxInfo what an agent says.
	maxLog, maxFile = 4 << 20, 64 << 20
	maxInfo         = 2 << 20
	// maxStamp bounds what the engine puts in front of a line.
	maxStamp = 40
)

// said is what a launcher's log says last.
type said struct {
	status  *status.Status // nil: nothing
	at      *time.Time
	code    exit.Code // where it says nothing: why
	problem string
}

// shown is what an agent's Info shows.
type shown struct {
	rtmr3   string         // empty: nothing
	image   *digest.Digest // of the event log, which replays; nil: there is none yet
	since   []string       // the register from that event on
	problem string         // why it doesn't
	note    string
}

// remembered is what an agent showed when the launcher said the same: each Info makes a quote.
type remembered struct {
	said string
	info shown
}

// client returns one that goes nowhere else than it was told, because who answers could send it on to
// what only we can reach.
func client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: patience}).DialContext,
			DisableKeepAlives: true, DisableCompression: true,
			MaxResponseHeaderBytes: 64 << 10, TLSHandshakeTimeout: patience,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get asks a node at a path.
func (r *Reader) get(ctx context.Context, n Node, path, query string) (*http.Response, error) {
	u := *n.base
	u.Path, u.RawQuery = u.Path+path, query
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := r.Client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		return nil, &statusError{response.StatusCode}
	}
	return response, nil
}

type statusError struct{ code int }

func (e *statusError) Error() string { return fmt.Sprintf("status %d", e.code) }

// log reads what the launcher's log says, as the agent shows it.
func (r *Reader) log(ctx context.Context, n Node) said {
	response, err := r.get(ctx, n, "/logs/launcher", fmt.Sprintf("text&bare&timestamps&tail=%d", lines))
	if err != nil {
		why := plain(err)
		if failed := (*statusError)(nil); errors.As(err, &failed) {
			why = "log: " + why
			if failed.code == http.StatusNotFound {
				why += ": no agent's port, or its app shows no logs (public_logs)"
			}
		}
		return said{code: exit.Unavailable, problem: why}
	}
	defer response.Body.Close()
	return lastSaid(response.Body, maxLog, exit.Unavailable)
}

// file reads a log from a file.
func (r *Reader) file(name string) said {
	from := r.Stdin
	if name != Stdin || from == nil {
		f, err := os.Open(name)
		if err != nil {
			why := sanitize.Line(err.Error(), maxText) + ": a node is http://host:8090, or a file with its log"
			return said{code: exit.Config, problem: why}
		}
		defer f.Close()
		from = f
	}
	return lastSaid(from, maxFile, exit.Config)
}

// lastSaid returns what the last line of a log says that begins as a launcher's does. Whatever comes
// after it says nothing, and what came before is over. The code is for a log that can't be read.
func lastSaid(from io.Reader, limit int64, unreadable exit.Code) said {
	none := func(code exit.Code, format string, args ...any) said {
		return said{code: code, problem: "log: " + fmt.Sprintf(format, args...)}
	}
	bounded := &io.LimitedReader{R: from, N: limit + 1}
	in := bufio.NewReaderSize(bounded, 2*status.MaxSize)
	var last, first []byte
	total := 0
	for {
		line, err := in.ReadSlice('\n')
		if total == 0 {
			first = bytes.Clone(line)
		}
		total += len(line)
		_, _, ours := cut(line)
		if ours {
			last = append(last[:0], line...)
		}
		for errors.Is(err, bufio.ErrBufferFull) { // longer than any of ours: its rest is no line
			var rest []byte
			rest, err = in.ReadSlice('\n')
			total += len(rest)
			if ours {
				last = append(last[:0], status.Prefix...) // and nothing that could be read
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return none(unreadable, "%s", plain(err))
		}
	}
	if bounded.N <= 0 {
		return none(unreadable, "more than %d MiB", limit>>20)
	}
	if last == nil {
		var answer struct{ Error string }
		if json.Unmarshal(first, &answer) == nil && answer.Error != "" {
			return none(exit.Unavailable, "the agent says: %s", sanitize.Line(answer.Error, maxText/2))
		}
		return none(exit.Unavailable, "no status in %d bytes: of an older launcher, or somebody else's", total)
	}
	object, at, _ := cut(last)
	s, err := status.Parse(object)
	if err != nil {
		return none(exit.Unavailable, "the last line of a status is none: %s", sanitize.Line(err.Error(), maxText/2))
	}
	return said{status: &s, at: at}
}

// cut returns what stands behind the beginning of a launcher's line, and the time that the engine put
// in front of it.
func cut(line []byte) (object []byte, at *time.Time, ours bool) {
	line = bytes.TrimRight(line, "\r\n")
	if object, ours = bytes.CutPrefix(line, []byte(status.Prefix)); ours {
		return object, nil, true
	}
	stamp, rest, found := bytes.Cut(line, []byte(" "))
	if !found || len(stamp) > maxStamp {
		return nil, nil, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return nil, nil, false
	}
	object, ours = bytes.CutPrefix(rest, []byte(status.Prefix))
	return object, &t, ours
}

// info reads the event log that the agent shows. Where the launcher says what it said before, what the
// agent showed then is taken: each time it makes a quote.
func (r *Reader) info(ctx context.Context, n Node, log said) shown {
	var key string
	if s := log.status; s != nil && s.Digest != nil && s.Measured != nil && *s.Measured {
		key = fmt.Sprint(s.BootID, s.Digest, s.RTMR3)
	}
	r.mu.Lock()
	before, known := r.known[n.name]
	r.mu.Unlock()
	if known && key != "" && before.said == key {
		return before.info
	}
	info, certain := r.readInfo(ctx, n)
	if certain {
		r.mu.Lock()
		r.known[n.name] = remembered{key, info}
		r.mu.Unlock()
	}
	return info
}

func (r *Reader) readInfo(ctx context.Context, n Node) (_ shown, certain bool) {
	const unseen = "event log not seen: "
	response, err := r.get(ctx, n, "/prpc/Worker.Info", "")
	if err != nil {
		return shown{note: unseen + plain(err)}, false
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxInfo+1))
	if err != nil {
		return shown{note: unseen + plain(err)}, false
	}
	if len(body) > maxInfo {
		return shown{note: fmt.Sprintf("%smore than %d MiB", unseen, maxInfo>>20)}, false
	}
	r.busy <- struct{}{}
	defer func() { <-r.busy }()
	events, err := rtmr.Parse(body)
	if errors.Is(err, rtmr.ErrUnknown) {
		return shown{note: unseen + "the app hides it (public_tcbinfo), or the agent could not make a quote"}, false
	}
	if err != nil {
		return shown{note: unseen + sanitize.Line(err.Error(), maxText)}, false
	}
	register, there := events.Reported()
	if !there {
		return shown{note: unseen + "no register beside it"}, false
	}
	info := shown{rtmr3: register.String()}
	if err := events.Replays(); err != nil {
		info.problem = sanitize.Line(err.Error(), maxText)
		return info, true
	}
	if len(events.Images()) == 0 {
		return info, true
	}
	info.since = registers(events)
	image, err := events.Accepted()
	if err == nil {
		info.image = &image
		return info, true
	}
	// It replays, so what is wrong is the image event itself, or what doesn't concern what runs.
	only, ok := events.Images()[0].Image()
	if _, wrong := events.Measured(only); !ok || wrong != nil {
		info.problem = sanitize.Line(err.Error(), maxText)
		return info, true
	}
	info.image, info.note = &only, sanitize.Line("verifiers would refuse this node: "+err.Error(), maxText)
	return info, true
}

// registers returns the values that the register had from the first image event on.
func registers(events rtmr.Log) (values []string) {
	var register rtmr.Register
	seen := false
	for _, e := range events.Events() {
		register = rtmr.Extend(register, e.Measured())
		if seen = seen || e.Name == rtmr.EventName; seen {
			values = append(values, register.String())
		}
	}
	return values
}
