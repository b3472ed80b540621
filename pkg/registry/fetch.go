package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/sanitize"
)

// blob is one layer on its way, from whichever source.
type blob struct {
	layer image.Layer
	label string   // for messages
	only  upstream // the one it is fetched from alone; nil: from any
	clean bool     // what fits into one part begins anew at each source; for the one part alone

	mu      sync.Mutex
	current upstream   // that was asked last
	from    []upstream // that bytes came from
	tracks  map[*remote]*track
}

// track is what was learnt of a blob at one registry.
type track struct {
	layer image.Layer

	probed chan struct{} // closed once the first answer told whether ranges work
	left   chan struct{} // closed once the blob goes on elsewhere

	mu         sync.Mutex
	location   *url.URL // where the registry's redirect led, nil to ask it
	inSequence bool     // ranges don't work

	// turn is held by the part that reads body, from which position is next. Both are used only in
	// sequence.
	turn     chan struct{}
	body     *answer
	position int64
}

func newBlob(layer image.Layer, label string) *blob {
	return &blob{layer: layer, label: label, tracks: map[*remote]*track{}}
}

func newTrack(layer image.Layer) *track {
	return &track{layer: layer, probed: make(chan struct{}), left: make(chan struct{}), turn: make(chan struct{}, 1)}
}

// serving is the source that was asked last, nil before any was.
func (b *blob) serving() upstream {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}

func (b *blob) servedBy(u upstream) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = u
}

// gave notes that bytes came from a source.
func (b *blob) gave(u upstream) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.from, u) {
		b.from = append(b.from, u)
	}
}

// contributors are the sources that bytes came from.
func (b *blob) contributors() []upstream {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.from)
}

// forget begins anew.
func (b *blob) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.from = nil
	for _, tr := range b.tracks {
		tr.forget()
	}
}

// at returns the track at a registry.
func (b *blob) at(s *remote) *track {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tracks[s] == nil {
		b.tracks[s] = newTrack(b.layer)
	}
	return b.tracks[s]
}

// leave has the parts of the blob that wait at a source go on elsewhere.
func (b *blob) leave(u upstream) {
	s, ok := u.(*remote)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if tr := b.tracks[s]; tr != nil {
		close(tr.left)
		delete(b.tracks, s)
	}
}

// part is a closed byte range of a blob and the buffer it goes to.
type part struct {
	blob    *blob
	offset  int64
	buffer  []byte // as long as the part
	filled  int
	before  *part         // of the same blob; nil for the first
	done    chan struct{} // closed when the part is filled, or has an error
	arrived *atomic.Int64 // counts what is fetched
	err     error
}

// whole reports whether the part is all of its blob.
func (p *part) whole() bool { return p.offset == 0 && int64(len(p.buffer)) == p.blob.layer.Size }

// next is the offset of the byte that is missing first.
func (p *part) next() int64 { return p.offset + int64(p.filled) }

// fetch fills p, with as many requests as it takes.
func (s *remote) fetch(ctx context.Context, t *tries, p *part) *failure {
	tr := p.blob.at(s)
	for p.filled < len(p.buffer) {
		if f := s.fill(ctx, t, tr, p); f != nil {
			return f
		}
	}
	return nil
}

// fill makes one request for what is missing in p. Without a failure there was progress.
func (s *remote) fill(ctx context.Context, t *tries, b *track, p *part) *failure {
	if f := p.awaitFirst(ctx, b); f != nil {
		return f
	}
	if b.sequential() {
		return s.fillInSequence(ctx, t, b, p, nil)
	}
	if p.filled > 0 {
		s.resumes.Add(1)
	}
	last := p.offset + int64(len(p.buffer)) - 1
	a, f := s.open(ctx, t, b, http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", p.next(), last)}})
	if f != nil {
		return f
	}
	switch a.StatusCode {
	case http.StatusPartialContent:
		start, end, total, err := parseContentRange(a.Header.Get("Content-Range"))
		if err != nil {
			// Several parts in one answer, or an answer that doesn't say what it is.
			a.Close()
			return s.fillInSequence(ctx, t, b, p, nil)
		}
		if encoded(a) && total >= 0 && total != b.layer.Size {
			a.Close() // a range of something else
			return s.fillInSequence(ctx, t, b, p, nil)
		}
		if start != p.next() || end > last || total >= 0 && total != b.layer.Size {
			a.Close()
			return &failure{class: lie, host: a.host,
				err: fmt.Errorf("asked for bytes %d-%d/%d, got %s", p.next(), last, b.layer.Size,
					sanitize.Line(s.guard.redact(a.Header.Get("Content-Range")), 80))}
		}
		b.answered()
		defer a.Close()
		n := int(end-start) + 1
		if f := s.read(t, a, p, n); f != nil || n >= minProgress || p.filled == len(p.buffer) {
			return f
		}
		return &failure{host: a.host, err: fmt.Errorf("no more than %d bytes in an answer", n)}
	case http.StatusOK:
		return s.fillInSequence(ctx, t, b, p, a)
	case http.StatusRequestedRangeNotSatisfiable:
		a.Close()
		return s.fillInSequence(ctx, t, b, p, nil)
	}
	return s.rejected(a)
}

// awaitFirst waits until the first part has found out whether ranges work, if this isn't that one.
// Where those before it came from elsewhere, this one finds out.
func (p *part) awaitFirst(ctx context.Context, b *track) *failure {
	if p.before == nil {
		return nil
	}
	select {
	case <-b.probed:
		return nil
	case <-b.left:
		return &failure{moved: true, err: errMoved}
	case <-p.before.done:
		if p.before.err == nil {
			return nil
		}
	case <-ctx.Done():
	}
	<-ctx.Done() // a part before it failed for good: nobody waits for this one
	return &failure{err: context.Cause(ctx)}
}

var errMoved = errors.New("the rest comes from another source")

// read reads n bytes of the body into p.
func (s *remote) read(t *tries, a *answer, p *part, n int) *failure {
	began := time.Now()
	counted := &counter{Reader: a, count: func(n int64) {
		s.at.fetched.Add(n)
		p.arrived.Add(n)
		s.Progress(n)
	}}
	got, err := io.ReadFull(counted, p.buffer[p.filled:p.filled+n])
	s.measured(got, time.Since(began))
	p.filled += got
	if got > 0 {
		p.blob.gave(s)
		t.arrived(got, p.filled == len(p.buffer))
	}
	if err != nil {
		return &failure{host: a.host, err: fmt.Errorf("body broke off at byte %d: %w", p.next(), err)}
	}
	return nil
}

// counter counts bytes as they arrive: a part can take its time.
type counter struct {
	io.Reader
	count func(n int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if n > 0 {
		c.count(int64(n))
	}
	return n, err
}

// fillInSequence is for servers without ranges: the parts of the blob take turns, in their order,
// at one body. opened is such a body if there is one already.
func (s *remote) fillInSequence(ctx context.Context, t *tries, b *track, p *part, opened *answer) *failure {
	b.setSequential()
	if p.before != nil {
		select {
		case <-p.before.done:
		case <-ctx.Done():
			if opened != nil {
				opened.Close()
			}
			return &failure{err: context.Cause(ctx)}
		}
	}
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		if opened != nil {
			opened.Close()
		}
		return &failure{err: context.Cause(ctx)}
	}
	defer func() { <-b.turn }()
	if b.body != nil && b.position > p.next() {
		b.replace(nil)
	}
	switch {
	case b.body != nil && opened != nil:
		opened.Close()
	case b.body == nil && opened != nil:
		b.replace(opened)
	case b.body == nil:
		if p.next() > 0 {
			s.resumes.Add(1)
		}
		a, f := s.open(ctx, t, b, http.Header{})
		if f != nil {
			return f
		}
		if a.StatusCode != http.StatusOK {
			return s.rejected(a)
		}
		b.replace(a)
	}
	if n := b.body.ContentLength; b.position == 0 && n != b.layer.Size && encoded(b.body) {
		if err := b.body.decode(); err != nil {
			host := b.body.host
			b.replace(nil)
			return &failure{host: host, err: err}
		}
	}
	if n := b.body.ContentLength; n >= 0 && n != b.layer.Size {
		host := b.body.host
		b.replace(nil)
		return &failure{class: lie, host: host, err: fmt.Errorf("got %d bytes, want %d", n, b.layer.Size)}
	}
	b.body.watch.body()
	skipped, err := io.CopyN(io.Discard, b.body, p.next()-b.position)
	b.position += skipped
	if err != nil {
		f := &failure{host: b.body.host, err: fmt.Errorf("body broke off at byte %d: %w", b.position, err)}
		b.replace(nil)
		return f
	}
	if f := s.read(t, b.body, p, len(p.buffer)-p.filled); f != nil {
		b.replace(nil)
		return f
	}
	b.position = p.next()
	b.body.watch.pause()
	if b.position == b.layer.Size {
		b.replace(nil)
	}
	return nil
}

// replace closes the body in use and begins with another, or none. The caller holds the turn.
func (b *track) replace(body *answer) {
	if b.body != nil {
		b.body.Close()
	}
	b.body, b.position = body, 0
}

func (b *track) sequential() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inSequence
}

func (b *track) setSequential() {
	b.mu.Lock()
	b.inSequence = true
	b.mu.Unlock()
	b.answered()
}

// answered lets the other parts of the blob begin.
func (b *track) answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.probed:
	default:
		close(b.probed)
	}
}

func (b *track) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.location = nil
}

// open asks for the blob where the last redirect led, and the registry if there was none or if it
// doesn't lead there any more: signed URLs expire.
func (s *remote) open(ctx context.Context, t *tries, b *track, header http.Header) (*answer, *failure) {
	b.mu.Lock()
	location := b.location
	b.mu.Unlock()
	if location != nil {
		a, f := s.goTo(ctx, t, query{method: http.MethodGet, target: location, header: header})
		switch {
		case f != nil:
			b.forget()
			return nil, f
		case a.StatusCode < 300, a.StatusCode == http.StatusRequestedRangeNotSatisfiable:
			return a, nil
		case a.StatusCode == http.StatusTooManyRequests, a.StatusCode >= 500:
			b.forget()
			return a, nil
		}
		a.Close()
		b.forget()
	}
	a, f := s.ask(ctx, t, http.MethodGet, "blobs/"+b.layer.Digest.String(), header)
	if f != nil {
		return nil, f
	}
	if a.redirected && a.StatusCode < 300 {
		b.mu.Lock()
		b.location = a.url
		b.mu.Unlock()
	}
	return a, nil
}

// parseContentRange reads the header of a 206 answer (RFC 9110, 14.4): closed, within the total,
// which is -1 if unknown.
func parseContentRange(value string) (start, end, total int64, err error) {
	bad := fmt.Errorf("%.80q is not a content range", value)
	rest, ok := strings.CutPrefix(value, "bytes ")
	if !ok {
		return 0, 0, 0, bad
	}
	limits, size, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, 0, bad
	}
	first, last, ok := strings.Cut(limits, "-")
	if !ok {
		return 0, 0, 0, bad
	}
	total = -1
	if size != "*" {
		if total, err = parseCount(size); err != nil {
			return 0, 0, 0, bad
		}
	}
	start, errStart := parseCount(first)
	end, errEnd := parseCount(last)
	if errors.Join(errStart, errEnd) != nil || end < start || total >= 0 && end >= total {
		return 0, 0, 0, bad
	}
	return start, end, total, nil
}

// parseCount reads decimal digits and nothing else.
func parseCount(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 10, 64)
}
