package inspect

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"tee-launcher/pkg/docker/internal/api"
)

// maxEvent bounds one event, which carries all labels of its container.
const maxEvent = 1 << 20

// Event is something that happened to a container.
type Event struct {
	Action string // "start", "die", "kill", "stop", …
	Signal string // the number of the signal that a "kill" sent
}

// Watch returns a channel that gets a value when a container starts, ends or is removed, paused or unpaused. Several such
// events may come as one value. The channel closes when the engine ends the stream, which it does when it ends itself,
// or with ctx.
func (e *Engine) Watch(ctx context.Context, id string) (<-chan struct{}, error) {
	// From a second ago, because the engine answers a moment before it begins to listen itself.
	query, err := eventQuery(id, time.Now().Add(-time.Second), "start", "die", "stop", "destroy", "pause", "unpause")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	patience := e.Patience
	if patience == 0 {
		patience = 30 * time.Second
	}
	late := time.AfterFunc(patience, func() { cancel(fmt.Errorf("no answer within %s", patience)) })
	body, err := e.client.Stream(ctx, api.Request{Op: "watching container " + id, Method: http.MethodGet, Path: "/events", Query: query}, nil, "")
	late.Stop()
	if err != nil {
		cancel(nil)
		return nil, err
	}
	seen := make(chan struct{}, 1)
	go func() {
		defer cancel(nil)
		defer close(seen)
		defer body.Close()
		for lines := eventLines(body); lines.Scan(); {
			select {
			case seen <- struct{}{}:
			default: // one waits to be taken already
			}
		}
	}()
	return seen, nil
}

// Events returns what happened to a container since a time, by the engine's clock, as far as the engine remembers: a few
// hundred events of all containers, and nothing from before its own start.
func (e *Engine) Events(ctx context.Context, id string, since time.Time, actions ...string) ([]Event, error) {
	op := "reading the events of container " + id
	until := time.Now()
	if since.After(until) {
		since = until // the clock was set back; the engine refuses what ends before it begins
	}
	query, err := eventQuery(id, since, actions...)
	if err != nil {
		return nil, err
	}
	query.Set("until", eventTime(until)) // it answers with what it remembers and ends
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	body, err := e.client.Stream(ctx, api.Request{Op: op, Method: http.MethodGet, Path: "/events", Query: query}, nil, "")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var events []Event
	lines := eventLines(body)
	for lines.Scan() {
		var answer struct {
			Action string
			Actor  struct{ Attributes map[string]string }
		}
		if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
			return nil, &Error{Op: op, Err: fmt.Errorf("answer: %w", err)}
		}
		events = append(events, Event{Action: answer.Action, Signal: answer.Actor.Attributes["signal"]})
		if len(events) > 10_000 {
			return nil, &Error{Op: op, Err: errors.New("more events than an engine remembers")}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, &Error{Op: op, Err: err}
	}
	return events, nil
}

func eventQuery(id string, since time.Time, actions ...string) (url.Values, error) {
	filters, err := json.Marshal(map[string][]string{"type": {"container"}, "container": {id}, "event": actions})
	return url.Values{"filters": {string(filters)}, "since": {eventTime(since)}}, err
}

// eventTime spells a time in the one way that every engine reads: seconds and nanoseconds.
func eventTime(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

func eventLines(r io.Reader) *bufio.Scanner {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4<<10), maxEvent)
	return lines
}
