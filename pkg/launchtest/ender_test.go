package launchtest_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// TestEnder ends with what the launcher says of itself, and keeps the log for who wants it.
func TestEnder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		say   func(*slog.Logger)
		stays bool
		code  exit.Code
		text  string
	}{
		{say: func(l *slog.Logger) { l.Info("something else") }},
		{say: func(l *slog.Logger) { l.Info(launchtest.Supervising) }, code: exit.Terminated, text: "ended by signal"},
		{say: func(l *slog.Logger) { l.Info(launchtest.Supervising) }, stays: true},
		{say: func(l *slog.Logger) {
			l.Error(launchtest.TriesAgain, "step", "pull", "exit_code", 6, "error", errors.New("lies"), "hints", []string{"a", "b"})
		}, stays: true, code: exit.Mismatch, text: "pull: lies"},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		var log bytes.Buffer
		e := &launchtest.Ender{Cancel: cancel, Next: slog.NewTextHandler(&log, nil), Stays: c.stays}
		l := slog.New(e).With("a", "b").WithGroup("g")
		l.Debug("below the level")
		c.say(l)
		assert.Contains(t, log.String(), "a=b")
		assert.NotContains(t, log.String(), "below")
		assert.NotPanics(t, func() { c.say(slog.New(&launchtest.Ender{Cancel: func(error) {}})) })
		err := context.Cause(ctx)
		require.Equal(t, c.code, exit.Of(err), "%v", err)
		if c.code != exit.OK {
			assert.EqualError(t, err, c.text)
		}
		if c.code == exit.Mismatch {
			assert.Equal(t, []string{"a", "b"}, exit.Hints(err))
		}
		cancel(nil)
	}
}
