package rtmr

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"tee-launcher/pkg/internal/strictjson"
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

// Settle waits for an emit of an earlier run only as long as patience lasts. What doesn't show by then
// may still follow: the agent can't be asked what it is about to do.
func (a *Agent) Settle(ctx context.Context, left Earlier) (log Log, over bool, err error) {
	log, err = a.Log(ctx)
	if err == nil && left.Begun && (len(log.Images()) == 0 || log.Replays() != nil) {
		a.logger().Warn("an earlier run of this boot may still be measuring, reading the event log until that shows")
		log, err = a.Await(ctx)
	}
	return log, err == nil && !left.Begun, err
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
