package registry

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tee-launcher/pkg/image"
)

// Notice is what a registry says beside its answers. Nothing proves it.
type Notice struct {
	Date      time.Time // its clock; zero if it doesn't say
	Limited   bool      // it says how many requests it allows
	Limit     int       // in its window
	Remaining int       // of these
}

// Notice asks the registry that the reference says, as notice does.
func (s *Source) Notice(ctx context.Context) (Notice, error) { return s.primary.notice(ctx) }

// notice asks the registry once for the head of the manifest, which no registry counts against its
// limit.
func (s *remote) notice(ctx context.Context) (Notice, error) {
	var t tries
	header := http.Header{"Accept": {manifestTypes}}
	a, f := s.ask(ctx, &t, http.MethodHead, "manifests/"+s.ref.Identifier(), header)
	if f != nil {
		if ctx.Err() != nil {
			return Notice{}, interrupted(ctx)
		}
		t.total = 1
		return Notice{}, s.failed(image.PartManifest, &t, f)
	}
	defer a.Close()
	var n Notice
	if date, err := http.ParseTime(a.Header.Get("Date")); err == nil {
		n.Date = date
	}
	limit, okLimit := parseRate(a.Header.Get("RateLimit-Limit"))
	remaining, okRemaining := parseRate(a.Header.Get("RateLimit-Remaining"))
	if okLimit && okRemaining {
		n.Limited, n.Limit, n.Remaining = true, limit, remaining
	}
	return n, nil
}

// parseRate reads "100;w=21600" or "100".
func parseRate(value string) (int, bool) {
	count, _, _ := strings.Cut(value, ";")
	n, err := strconv.Atoi(strings.TrimSpace(count))
	return n, err == nil && n >= 0
}
