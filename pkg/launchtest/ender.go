package launchtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"tee-launcher/pkg/exit"
)

// What a launcher logs once it supervises, and when it waits after an attempt that failed.
const (
	Supervising = "supervising"
	TriesAgain  = "the attempt failed, trying again"
)

// Ender is a log handler that ends a launcher which would stay: one that waits to try again ends with
// what its attempt failed with, step, exit code and hints, and one that supervises as by a signal.
type Ender struct {
	Cancel context.CancelCauseFunc // of the launcher's context
	Next   slog.Handler            // gets every record first; nil: nobody does
	Stays  bool                    // a launcher that supervises isn't ended
	Again  func() bool             // asked at each attempt that fails, whether it is to go on; nil: it is not
}

// Enabled implements slog.Handler.
func (e *Ender) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (e *Ender) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *e
	if e.Next != nil {
		with.Next = e.Next.WithAttrs(attrs)
	}
	return &with
}

// WithGroup implements slog.Handler.
func (e *Ender) WithGroup(name string) slog.Handler {
	with := *e
	if e.Next != nil {
		with.Next = e.Next.WithGroup(name)
	}
	return &with
}

// Handle implements slog.Handler.
func (e *Ender) Handle(ctx context.Context, r slog.Record) error {
	var err error
	if e.Next != nil && e.Next.Enabled(ctx, r.Level) {
		err = e.Next.Handle(ctx, r)
	}
	switch {
	case r.Message == Supervising && !e.Stays:
		e.Cancel(&exit.Error{Code: exit.Terminated, Err: errors.New("ended by signal")})
	case r.Message == TriesAgain && (e.Again == nil || !e.Again()):
		said := map[string]slog.Value{}
		r.Attrs(func(a slog.Attr) bool {
			said[a.Key] = a.Value
			return true
		})
		hints, _ := said["hints"].Any().([]string)
		e.Cancel(&exit.Error{
			Code: exit.Code(said["exit_code"].Int64()), Hint: hints,
			Err: fmt.Errorf("%v: %v", said["step"], said["error"]),
		})
	}
	return err
}
