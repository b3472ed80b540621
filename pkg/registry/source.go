package registry

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
)

// Source is where one image can be had: the sources of the user config, in their order, and the
// registry that its name says. All that comes is compared with a digest, so each part may come from
// another one. It may be used by several goroutines.
//
// A need, which is a document or a range of a layer, is tried once at each source, beginning with
// the one that serves the layer at the moment; what has arrived of it stays. One that fails steps
// back for a while, in which it is asked only where the others fail too. What all of them fail is
// tried again as often as Client says. Who gave a whole document or layer that isn't the one, alone,
// lied, and is asked last from then on.
type Source struct {
	*Client // settings without a zero field
	*common
	ref     name.Reference
	all     []upstream // in the order of the settings
	primary *remote    // the registry that ref says, which is one of all

	mu       sync.Mutex
	restarts int
	alone    map[digest.Digest]map[upstream]bool // layers that are fetched from one source alone, and from which they were
}

// common is what the registries that one image is fetched from share.
type common struct {
	secrets secrets // those of each, which another one may repeat
	pace    *pace
	silence silence
}

func newCommon(c *Client) *common { return &common{pace: newPace(c)} }

// upstream is one place where parts of the image may be. A method fails without any further attempt.
type upstream interface {
	place() *place
	// document returns the bytes of a document, compared with its digest where that isn't zero.
	document(ctx context.Context, t *tries, d image.Document, path, accept string) ([]byte, *failure)
	// fetch fills the part as far as it can.
	fetch(ctx context.Context, t *tries, p *part) *failure
	// hasLayer returns why the layer isn't there, nil if it is.
	hasLayer(ctx context.Context, t *tries, l image.Layer) *failure
	// plainSize returns what a gzip layer claims for its tar.
	plainSize(ctx context.Context, l image.Layer) (int64, bool)
	// refresh forgets what something may have gone wrong on.
	refresh()
	// failed makes the error of the last failure.
	failed(part string, t *tries, f *failure) *image.Error
	// credential says which credentials are used.
	credential() string
}

// place is what is known of an upstream.
type place struct {
	name string // as the user config has it; empty for the registry of the reference

	fetched atomic.Int64 // bytes of layers
	given   atomic.Int64 // documents
	// answered: a registry has over HTTP, whatever; a layout could be opened, whatever is in it.
	answered atomic.Bool

	mu    sync.Mutex
	fails int       // in a row
	until time.Time // it steps back
	lied  bool
}

// Ledger remembers from one Source to the next who lied. Its zero value knows of nobody.
type Ledger struct {
	mu    sync.Mutex
	liars []string
}

// Liars returns the sources that lied.
func (l *Ledger) Liars() []string {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.liars)
}

func (l *Ledger) add(name string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.liars, name) {
		l.liars = append(l.liars, name)
	}
}

// Source returns where ref can be had. Nothing is contacted before it is asked for something.
func (c *Client) Source(ref name.Digest) *Source { return newSource(c.settings(), ref) }

func newSource(settings *Client, ref name.Reference) *Source {
	s := &Source{Client: settings, common: newCommon(settings), ref: ref, alone: map[digest.Digest]map[upstream]bool{}}
	s.primary = newRemote(settings, s.common, ref)
	for _, at := range settings.Sources {
		if at.Layout != "" {
			s.all = append(s.all, newShelf(s, at.Layout))
			continue
		}
		if isPrimary(at, ref) {
			s.all = append(s.all, s.primary)
			continue
		}
		s.all = append(s.all, newMirror(settings, s.common, at, ref))
	}
	if !slices.Contains(s.all, upstream(s.primary)) {
		s.all = append(s.all, s.primary)
	}
	known := settings.Ledger.Liars()
	for _, u := range s.all {
		u.place().lied = slices.Contains(known, s.nameOf(u))
	}
	if name := wrongProxy(); name != "" {
		s.Log.Warn("this variable doesn't hold the URL of a proxy", "variable", name)
	}
	return s
}

// isPrimary reports whether a source of the user config is the registry of the reference, which has
// its place in the order then.
func isPrimary(at config.Source, ref name.Reference) bool {
	return at.Registry == ref.Context().Registry && at.Prefix == "" && !at.NS && !at.Plain
}

// newMirror returns the registry that has what ref names under another name.
func newMirror(settings *Client, all *common, at config.Source, ref name.Reference) *remote {
	repository := at.Registry.Repo(at.Prefix + ref.Context().RepositoryStr())
	var there name.Reference = repository.Tag(ref.Identifier())
	if d, ok := ref.(name.Digest); ok {
		there = repository.Digest(d.DigestStr())
	}
	r := newRemote(settings, all, there)
	r.at.name = at.String()
	scheme := "https"
	if at.Plain {
		scheme = "http"
	}
	r.guard.speaks(scheme)
	if at.NS {
		r.ns = namespace(ref.Context().Registry)
	}
	return r
}

// namespace is how containerd's mirrors are told of a registry.
func namespace(r name.Registry) string {
	if r.RegistryStr() == name.DefaultRegistry {
		return "docker.io"
	}
	return r.RegistryStr()
}

// nameOf is how an upstream is called in messages and reports.
func (s *Source) nameOf(u upstream) string { return cmp.Or(u.place().name, s.primary.host()) }

// order returns the upstreams that are asked now, those first that do well: first, where there is
// one, then the others in the order of the settings. Those that step back are left out as long as
// there is another. Liars come last, and only where the others failed twice before.
func (s *Source) order(t *tries, first upstream) []upstream {
	now := s.Tuning.Now()
	until := map[upstream]time.Time{}
	lied := map[upstream]bool{}
	for _, u := range s.all {
		p := u.place()
		p.mu.Lock()
		until[u], lied[u] = p.until, p.lied
		p.mu.Unlock()
	}
	var good []upstream
	for _, u := range s.all {
		if !until[u].After(now) && !lied[u] {
			good = append(good, u)
		}
	}
	resting := len(good) == 0
	if resting {
		good = slices.Clone(s.all)
		honest := slices.DeleteFunc(slices.Clone(s.all), func(u upstream) bool { return lied[u] })
		if len(honest) > 0 && max(t.quick, t.permanent, t.lies) < 2 {
			good = honest
		}
	}
	slices.SortStableFunc(good, func(a, b upstream) int {
		rank := func(u upstream) int {
			switch {
			case lied[u]:
				return 2
			case u == first:
				return 0
			}
			return 1
		}
		if resting && !lied[a] && !lied[b] {
			return until[a].Compare(until[b])
		}
		return cmp.Compare(rank(a), rank(b))
	})
	return good
}

const (
	// firstBreak is how long a source steps back after it failed once, four times as long each time,
	// up to longestBreak.
	firstBreak, longestBreak = 2 * time.Second, 5 * time.Minute
)

// stepBack notes that a source failed, and did that one did well.
func (s *Source) stepBack(u upstream) {
	p := u.place()
	p.mu.Lock()
	defer p.mu.Unlock()
	now := s.Tuning.Now()
	if p.until.After(now) {
		return // requests that failed at the same time are one failure
	}
	p.until = now.Add(min(firstBreak<<(2*min(p.fails, 4)), longestBreak))
	p.fails++
}

func (p *place) did() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fails, p.until = 0, time.Time{}
}

func (p *place) isLiar() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lied
}

// liar notes that a source gave something whole that isn't what its digest says.
func (s *Source) liar(u upstream, what string) {
	if len(s.all) == 1 {
		return // the error says so
	}
	p := u.place()
	p.mu.Lock()
	known := p.lied
	p.lied = true
	p.mu.Unlock()
	s.Ledger.add(s.nameOf(u))
	if !known {
		s.Log.Warn("this source lied: what it gave isn't what was asked for; it is asked last from now on", "source", s.nameOf(u), "part", what)
	}
}

// pass asks the sources in turn until one has no failure, and returns the failure that says most.
func (s *Source) pass(ctx context.Context, part string, order []upstream, ask func(u upstream) *failure) *failure {
	var worst *failure
	for i, u := range order {
		f := ask(u)
		if f == nil {
			u.place().did()
			return nil
		}
		if ctx.Err() != nil {
			return f
		}
		mine := *f // requests that wait for one login share its failure
		f = &mine
		f.from, f.others = u, nil
		if f.whole {
			s.liar(u, part)
		}
		if len(s.all) > 1 && !f.moved {
			s.stepBack(u)
			if i+1 < len(order) {
				s.Log.Info("going on with another source", "part", part, "from", s.nameOf(u), "to", s.nameOf(order[i+1]),
					"cause", s.redact(f.error()))
			}
		}
		worst = graver(worst, f)
	}
	return worst
}

// graver returns the failure by which it is decided how to go on: where one source may have the
// truth later, that; then a lie, then what is refused.
func graver(a, b *failure) *failure {
	rank := map[class]int{transient: 0, lie: 1, refusal: 2, permanent: 3, final: 4}
	switch {
	case a == nil:
		return b
	case rank[b.class] <= rank[a.class]: // the last one is the registry of the reference
		b.others = append(append(b.others, a.others...), a)
		return b
	}
	a.others = append(a.others, b)
	return a
}

func (s *Source) redact(err error) error { return s.primary.guard.redactError(err) }

// failed makes the error of a need that no source could meet.
func (s *Source) failed(part string, t *tries, f *failure) *image.Error {
	e := f.from.failed(part, t, f)
	e.Ref, e.Silent = s.ref.String(), s.silence.lasted(s.Tuning.Now())
	for _, r := range s.all {
		e.Answered = e.Answered || r.place().answered.Load()
	}
	for _, other := range f.others {
		e.Help = append(e.Help, fmt.Sprintf("%s can't give it either: %v", s.nameOf(other.from), s.redact(other.error())))
	}
	return e
}

// Rest gives back the connections that nothing uses, which would be kept for a while: from who isn't
// asked again. Asked all the same, the source makes new ones.
func (s *Source) Rest() {
	for _, u := range s.all {
		u.refresh()
	}
}

// Stats says what was done so far.
func (s *Source) Stats() Stats {
	stats := Stats{Credential: s.primary.credential(), Liars: s.Ledger.Liars()}
	var most, given int64
	for _, u := range s.all {
		if r, ok := u.(*remote); ok {
			stats.Requests += int(r.requests.Load())
			stats.Resumes += int(r.resumes.Load())
		}
		fetched := u.place().fetched.Load()
		stats.Fetched += fetched
		if u.place().isLiar() {
			continue // it isn't where the image is from
		}
		if n := u.place().given.Load(); fetched > most || most == 0 && n > given {
			most, given, stats.From = fetched, n, u.place().name
			stats.Credential = u.credential()
		}
	}
	return stats
}

// PlainSize returns the size that a gzip layer claims for its uncompressed tar, from the last four
// bytes of its blob. It is a hint for what has to name a size before it sees the bytes: nothing
// proves it, and a layer of several gzip members claims that of its last one. False means that
// there is no hint.
func (s *Source) PlainSize(ctx context.Context, l image.Layer) (int64, bool) {
	if !hasPlainSize(l) {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(ctx, trailerTimeout)
	defer cancel()
	for _, u := range s.order(&tries{}, nil) {
		if size, ok := u.plainSize(ctx, l); ok || size > 0 {
			return size, ok // the others say the same
		}
	}
	return 0, false
}

// document fetches the whole of a manifest or config and proves it.
func (s *Source) document(ctx context.Context, d image.Document) ([]byte, error) {
	path, accept := "manifests/"+d.Digest.String(), manifestTypes
	if d.Config {
		path, accept = "blobs/"+d.Digest.String(), anyType
	}
	data, err := s.fetchDocument(ctx, d, path, accept)
	e, _ := err.(*image.Error)
	missing := e != nil && e.Status == http.StatusNotFound && d.Part == image.PartManifest
	if missing && s.primary.isBlob(ctx, d.Digest) { // a blob of any kind: it isn't fetched for that
		e.Help = []string{
			"this digest is that of a blob (a config, which is an image ID, or a layer), not of a manifest, " +
				"which is what has to be approved",
			fmt.Sprintf("launcher digest %s:<tag> prints it", s.ref.Context().Name()),
		}
	}
	return data, err
}

// fetchDocument fetches a document, from another source or again where it isn't the right one. A
// zero digest is that of any.
func (s *Source) fetchDocument(ctx context.Context, d image.Document, path, accept string) (document []byte, err error) {
	err = s.retry(ctx, d.Part, func(t *tries) *failure {
		return s.pass(ctx, d.Part, s.order(t, nil), func(u upstream) (f *failure) {
			if document, f = u.document(ctx, t, d, path, accept); f == nil {
				u.place().given.Add(1)
			}
			return f
		})
	})
	if err != nil {
		return nil, err
	}
	return document, nil
}

// fetch fills p, with as many requests, at as many sources, as it takes.
func (s *Source) fetch(ctx context.Context, p *part) error {
	b := p.blob
	err := s.retry(ctx, b.label, func(t *tries) *failure {
		order := s.order(t, b.serving())
		if b.only != nil {
			order = []upstream{b.only}
		}
		return s.pass(ctx, b.label, order, func(u upstream) *failure {
			b.servedBy(u)
			if from := b.contributors(); b.clean && len(from) > 0 && from[0] != u {
				b.forget()
				p.filled = 0
			}
			f := u.fetch(ctx, t, p)
			if f == nil && p.whole() {
				f = s.proved(p)
			}
			if f != nil && len(s.all) > 1 && b.only == nil {
				b.leave(u)
			}
			return f
		})
	})
	if err == nil || b.only == nil || ctx.Err() != nil {
		return err
	}
	// What was handed out came from this source alone, so another one begins anew.
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone[b.layer.Digest][b.only] = true
	if e, ok := err.(*image.Error); ok && len(s.alone[b.layer.Digest]) < len(s.all) {
		e.Restart = true
	}
	return err
}

// proved compares a layer of one part: what fits into that is proved before anything of it is handed
// out, and so can be fetched again, from another source or from one alone.
func (s *Source) proved(p *part) *failure {
	got := digest.Of(p.buffer)
	if got == p.blob.layer.Digest {
		return nil
	}
	from := p.blob.contributors()
	p.filled = 0
	p.blob.forget()
	u := p.blob.serving()
	f := &failure{class: lie, host: s.nameOf(u), err: fmt.Errorf("got %s, want %s", got, p.blob.layer.Digest)}
	if r, ok := u.(*remote); ok {
		f.host = r.host()
	}
	f.whole = len(from) == 1
	if !f.whole {
		p.blob.clean = true
	}
	return f
}

// damaged is told of a layer whose bytes turned out wrong when the last of them came.
func (s *Source) damaged(b *blob) (host string, again bool) {
	from := b.contributors()
	var names []string
	for _, u := range from {
		u.refresh()
		names = append(names, s.nameOf(u))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(names) == 0 {
		names = []string{s.primary.host()}
	}
	host = strings.Join(names, ", ")
	if len(from) > 1 && s.alone[b.layer.Digest] == nil {
		// Once for each layer, and not counted: who spoils a little of each and leaves the rest to others
		// can't be told from them, and would use up what is for all of them.
		s.alone[b.layer.Digest] = map[upstream]bool{}
		return host, true
	}
	if len(from) == 1 {
		s.liar(from[0], b.label)
	}
	s.restarts++
	return host, s.restarts <= maxRestarts*len(s.all)
}

// onlyFor returns the source that a layer is fetched from alone, nil if it may be from any.
func (s *Source) onlyFor(layer image.Layer) upstream {
	s.mu.Lock()
	tried, is := s.alone[layer.Digest]
	s.mu.Unlock()
	if !is {
		return nil
	}
	for _, u := range s.order(&tries{}, nil) {
		if !tried[u] {
			return u
		}
	}
	for _, u := range s.all {
		if !tried[u] {
			return u
		}
	}
	return s.primary
}
