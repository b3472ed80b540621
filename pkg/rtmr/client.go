package rtmr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/unixhttp"
	"tee-launcher/pkg/waiting"
)

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
		return []string{
			"this agent can't measure an event: dstack 0.5.0 to 0.5.11 have EmitEvent, 0.6 removed it",
			"on dstack 0.6 the launcher can measure itself: LAUNCHER_MEASURE=native and two more mounts, as in examples/compose-native.yaml",
			"that is another compose file, whose hash operators have to vote on, and the verifier has to know the OS measurements of dstack 0.6; docs/measurements.md says what else",
		}
	case Malformed:
		return []string{"is it dstack's guest agent that listens at " + e.Socket + "? If it is, reboot the CVM"}
	}
	return []string{"try again; if the agent stays that way, reboot the CVM"}
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
