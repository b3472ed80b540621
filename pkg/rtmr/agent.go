package rtmr

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/strictjson"
	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/waiting"
)

// Agent is the client of dstack's guest agent. Every request has a connection of its own: the agent closes idle ones just
// when it likes, and an emit that went out on one of those could be neither trusted nor repeated.
type Agent struct {
	Socket   string                                     // path of the unix socket
	Patience time.Duration                              // how long a log that is still unclear is read again; 0: 30 s
	Logger   *slog.Logger                               // nil: discard
	Now      func() time.Time                           // nil: time.Now
	Sleep    func(context.Context, time.Duration) error // nil: sleep, or end early with the context's error

	// WithTimeout bounds a call; nil: context.WithTimeout.
	WithTimeout func(context.Context, time.Duration) (context.Context, context.CancelFunc)
}

// Info is what the agent says about this boot.
type Info struct {
	Log        Log
	AppCompose string // the measured app-compose, as text
}

// Fault says how a call failed, and so what may have happened.
type Fault string

const (
	Unreachable Fault = "unreachable"    // no connection: the request was never sent
	Lost        Fault = "no answer"      // sent, and no complete answer: it may have been done, or may be done later
	Refused     Fault = "refused"        // the agent answered with an error
	Missing     Fault = "method missing" // the agent answered that it has no such method
	Malformed   Fault = "malformed"      // an answer that the agent doesn't give: nothing is known
)

// AgentError is a failed call.
type AgentError struct {
	Socket  string
	Method  string
	Fault   Fault
	Status  int    // of the answer; 0 where there was none
	Message string // the agent's own words, or ours about what it said; may be empty
	Err     error  // may be nil
}

func (e *AgentError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "agent at %s: %s: %s", e.Socket, e.Method, e.Fault)
	if e.Status != 0 {
		fmt.Fprintf(&b, ": status %d", e.Status)
	}
	if e.Message != "" {
		fmt.Fprintf(&b, ": %.300q", e.Message)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

func (e *AgentError) Unwrap() error { return e.Err }

// ExitCode is Measurement, whatever the cause.
func (e *AgentError) ExitCode() exit.Code { return exit.Measurement }

// Hints says what helps.
func (e *AgentError) Hints() []string {
	switch e.Fault {
	case Unreachable:
		if errors.Is(e.Err, fs.ErrPermission) {
			return []string{"this user may not open the agent's socket: run the launcher as root"}
		}
		return []string{"TEE mode needs dstack's guest agent: does it run, and is its socket mounted at " + e.Socket + "?"}
	case Missing:
		return []string{"this agent can't measure an event: dstack 0.5.0 to 0.5.11 have EmitEvent, 0.6 removed it"}
	case Malformed:
		return []string{"is it dstack's guest agent that listens at " + e.Socket + "? If it is, reboot the CVM"}
	}
	return []string{"try again; if the agent stays that way, reboot the CVM"}
}

const (
	methodInfo = "Info"
	methodEmit = "EmitEvent"

	emitTimeout = 10 * time.Second
	infoTimeout = 15 * time.Second // it makes a hardware quote

	// An error's text and the answer to an emit need no more.
	maxAnswer = 64 << 10
)

type emitRequest struct {
	Event   string `json:"event"`
	Payload string `json:"payload"`
}

// CanEmit asks without effect whether the agent can emit: a payload that isn't hex fails while the agent decodes the
// arguments, so nothing is logged or measured; an agent without the method says that instead.
func (a *Agent) CanEmit(ctx context.Context) error {
	body, err := a.call(ctx, methodEmit, emitTimeout, maxAnswer, emitRequest{ProbeName, "not hex"})
	var failed *AgentError
	switch {
	case err == nil:
		// Whatever takes this as an event isn't the agent that we know, and would take the real one as lightly.
		return a.malformed(methodEmit, http.StatusOK, "accepts an event whose payload isn't hex", body)
	case errors.As(err, &failed) && failed.Fault == Refused:
		return nil
	}
	return err
}

// Log returns the event log with its register. It is read again, for a bounded time, where the agent answers that it could
// not make the quote; an error never means that nothing is measured.
func (a *Agent) Log(ctx context.Context) (Log, error) {
	info, err := a.Info(ctx)
	return info.Log, err
}

// Await reads the log until it holds an image event and replays to its register, or patience is used up, and returns the last
// reading. It is for a caller that has reason to think that an emit is under way.
func (a *Agent) Await(ctx context.Context) (Log, error) {
	info, err := a.poll(ctx, func(info Info, err error) bool {
		return err == nil && len(info.Log.Images()) > 0 && info.Log.Replays() == nil
	})
	return info.Log, err
}

// Info returns Log, and what comes with it.
func (a *Agent) Info(ctx context.Context) (Info, error) {
	return a.poll(ctx, func(_ Info, err error) bool {
		var failed *AgentError
		return !errors.As(err, &failed) || failed.Fault != Refused && failed.Fault != Lost
	})
}

// poll reads the log until enough says that it is, or patience is used up, and returns the last reading either way. Each
// reading costs a hardware quote, so there are few, and ever fewer.
func (a *Agent) poll(ctx context.Context, enough func(Info, error) bool) (Info, error) {
	deadline := a.now().Add(a.patience())
	for delay := time.Second; ; delay = min(2*delay, 8*time.Second) {
		info, err := a.readInfo(ctx)
		left := deadline.Sub(a.now())
		if ctx.Err() != nil || enough(info, err) || left <= 0 {
			return info, err
		}
		var why []any
		if err != nil {
			why = []any{"error", err}
		}
		a.logger().Warn("the event log doesn't say yet what is measured, reading it again", why...)
		over := waiting.For(ctx, "the guest agent, before its event log is read again")
		err = a.sleep(ctx, min(delay, left))
		over()
		if err != nil {
			return Info{}, err
		}
	}
}

func (a *Agent) readInfo(ctx context.Context) (Info, error) {
	body, err := a.call(ctx, methodInfo, infoTimeout, MaxSize, struct{}{})
	if err != nil {
		return Info{}, err
	}
	answer, err := document(body)
	if err == nil {
		var members map[string]strictjson.Value
		if members, err = answer.Object("tcb_info"); err == nil {
			var log Log
			if log, err = parseInfo(members); err == nil {
				return infoOf(log), nil
			}
		}
	}
	fault := Malformed
	if errors.Is(err, ErrUnknown) {
		fault = Refused // in the way of the releases up to 0.5.8; later ones say 400
	}
	return Info{}, &AgentError{Socket: a.Socket, Method: methodInfo, Fault: fault, Status: http.StatusOK, Err: err}
}

func infoOf(log Log) Info {
	info := Info{Log: log}
	if log.compose != nil {
		info.AppCompose = log.compose.document
	}
	return info
}

// emit asks the agent, once, to log and measure the event. Neither nil nor an error says whether it did: the log does.
func (a *Agent) emit(ctx context.Context, name string, payload []byte) error {
	body, err := a.call(ctx, methodEmit, emitTimeout, maxAnswer, emitRequest{name, hex.EncodeToString(payload)})
	if err != nil {
		return err
	}
	switch string(bytes.TrimSpace(body)) {
	case "", "null", "{}":
		return nil
	}
	return a.malformed(methodEmit, http.StatusOK, "not the answer to an emit", body)
}

// call posts request and returns the complete body of a 200. All other ends are an AgentError, or the context's error where
// it is the caller that gave up.
func (a *Agent) call(ctx context.Context, method string, timeout time.Duration, limit int64, request any) ([]byte, error) {
	payload, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	var connected atomic.Bool
	bounded, cancel := a.withTimeout(ctx, timeout)
	defer cancel()
	defer waiting.For(ctx, "the guest agent: "+method)()
	traced := httptrace.WithClientTrace(bounded, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := http.NewRequestWithContext(traced, http.MethodPost, "http://localhost/"+method, bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json") // anything else is read as protobuf
	lost := func(err error) error {
		if ctx.Err() != nil {
			return fmt.Errorf("agent at %s: %s: %w", a.Socket, method, context.Cause(ctx))
		}
		fault := Lost
		if !connected.Load() {
			fault = Unreachable
		}
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // its URL names a host that doesn't exist
		}
		return &AgentError{Socket: a.Socket, Method: method, Fault: fault, Err: err}
	}
	resp, err := unixhttp.Client(a.Socket, false).Do(req)
	if err != nil {
		return nil, lost(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		limit = maxAnswer
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, lost(err)
	}
	if int64(len(body)) > limit {
		return nil, a.malformed(method, resp.StatusCode, fmt.Sprintf("more than %d bytes", limit), nil)
	}
	if resp.StatusCode == http.StatusOK {
		return body, nil
	}
	return nil, a.refusal(method, resp.StatusCode, body)
}

// refusal reads the one form in which the agent says no. Other statuses, and other texts, come from elsewhere: a server that
// gave up or isn't the agent, and so they say nothing about what was done.
func (a *Agent) refusal(method string, status int, body []byte) error {
	var answer struct{ Error string }
	if status != http.StatusBadRequest || json.Unmarshal(body, &answer) != nil || answer.Error == "" {
		return a.malformed(method, status, "", body)
	}
	fault := Refused
	if strings.HasPrefix(answer.Error, "Service not found") {
		fault = Missing
	}
	return &AgentError{Socket: a.Socket, Method: method, Fault: fault, Status: status, Message: answer.Error}
}

func (a *Agent) malformed(method string, status int, message string, body []byte) error {
	if len(body) > 0 {
		message = strings.TrimPrefix(fmt.Sprintf("%s: %.100s", message, body), ": ")
	}
	return &AgentError{Socket: a.Socket, Method: method, Fault: Malformed, Status: status, Message: message}
}

func (a *Agent) patience() time.Duration {
	if a.Patience == 0 {
		return 30 * time.Second
	}
	return a.Patience
}

func (a *Agent) logger() *slog.Logger {
	if a.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return a.Logger
}

func (a *Agent) now() time.Time {
	if a.Now == nil {
		return time.Now()
	}
	return a.Now()
}

func (a *Agent) withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if a.WithTimeout == nil {
		return context.WithTimeout(ctx, d)
	}
	return a.WithTimeout(ctx, d)
}

func (a *Agent) sleep(ctx context.Context, d time.Duration) error {
	if a.Sleep != nil {
		return a.Sleep(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
