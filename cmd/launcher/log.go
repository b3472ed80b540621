package main

import (
	"context"
	"io"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/sanitize"
)

// attend returns the console and the log that the settings ask for. Until it is over, what the
// command waits for is said.
func (p *program) attend(cmd *cobra.Command, s settings) (_ context.Context, c *console, over func()) {
	c = &console{w: p.stderr, patience: p.patience, shows: s.progress}
	if _, terminal := columnsOf(p.stderr); s.progress == "auto" && terminal {
		c.shows = "bar"
	}
	if c.shows == "auto" || c.shows == "bar" && (s.logFormat == "json" || p.environment()["TERM"] == "dumb") {
		c.shows = "plain"
	}
	c.log = p.logger(c, s.logFormat == "json", s.logLevel)
	for _, warning := range s.warnings {
		c.log.Warn(warning)
	}
	for _, host := range s.launch.Insecure {
		c.log.Warn("plain http is allowed for a registry", "host", host)
	}
	ctx, over := c.begin(cmd.Context(), cmd.Name())
	return ctx, c, over
}

// logger returns a log on w. Whatever its first record is says which launcher this is.
func (p *program) logger(w io.Writer, json bool, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: cleanAttr}
	var handler slog.Handler = slog.NewTextHandler(w, options)
	if json {
		options.ReplaceAttr = numberAttr
		handler = slog.NewJSONHandler(w, options)
	}
	return slog.New(&introducer{handler, &p.introduced})
}

// introducer adds to the first record of a program which one it is.
type introducer struct {
	slog.Handler
	done *atomic.Bool
}

func (h *introducer) Handle(ctx context.Context, r slog.Record) error {
	if h.done.CompareAndSwap(false, true) {
		b := thisBuild()
		r = r.Clone()
		r.AddAttrs(slog.String("version", b.Version), slog.String("commit", b.commit()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h *introducer) WithAttrs(attributes []slog.Attr) slog.Handler {
	return &introducer{h.Handler.WithAttrs(attributes), h.done}
}

func (h *introducer) WithGroup(name string) slog.Handler {
	return &introducer{h.Handler.WithGroup(name), h.done}
}

// cleanAttr cleans what is logged, wherever it came from.
func cleanAttr(_ []string, a slog.Attr) slog.Attr {
	value := a.Value.Resolve()
	text := value.String()
	if lines, ok := value.Any().([]string); ok {
		text = strings.Join(lines, "; ")
		a.Value = slog.StringValue(text)
	}
	if err, ok := value.Any().(error); ok {
		text = err.Error()
	}
	if clean := sanitize.Line(text, sanitize.MaxLine); clean != text {
		a.Value = slog.StringValue(clean)
	}
	return a
}

// numberAttr is cleanAttr for programs, to which a number is one: sizes are in bytes, durations in
// seconds.
func numberAttr(groups []string, a slog.Attr) slog.Attr {
	switch value := a.Value.Any().(type) {
	case size:
		return slog.Int64(a.Key, int64(value))
	case speed:
		return slog.Int64(a.Key, int64(value))
	case time.Duration:
		return slog.Float64(a.Key, math.Round(value.Seconds()*1000)/1000)
	case []string: // cleaned by whoever made it
		return a
	}
	return cleanAttr(groups, a)
}

// foreign shows a line that somebody else wrote so that it can't pass for one of ours.
func (c *console) foreign(from, line string) {
	c.log.Warn(line, "from", from)
}

// jsonErrors reports whether errors are told in JSON too, also that about the very flag.
func (p *program) jsonErrors() bool {
	format := p.environment()["LOG_FORMAT"]
	for i, arg := range p.args {
		name, value, ok := strings.Cut(arg, "=")
		switch {
		case name != "--log-format":
		case ok:
			format = value
		case i+1 < len(p.args):
			format = p.args[i+1]
		}
	}
	return format == "json"
}
