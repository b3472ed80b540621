package docker

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/docker/internal/api"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/waiting"
)

const (
	// maxLoads is how often a load is begun with an engine that breaks down in the middle of it.
	maxLoads = 4
	// loadPause is the first pause between two such loads; it doubles.
	loadPause = time.Second
	// returnTimeout is how long an engine that went away may take to answer again.
	returnTimeout = time.Minute
	// settleTimeout bounds the clean-up after a load.
	settleTimeout = 30 * time.Second
)

// Progress is told how a load comes on. Its methods may be called at the same time from several goroutines.
type Progress interface {
	Missing(bytes int64, unpacking bool) // what the engine lacks, in bytes of the registry; whether it will say how far it has unpacked
	Sent(n int64)                        // n more bytes of it were taken by the engine
	Unpacked(n int64)                    // n more bytes of it were unpacked
}

// LoadOptions configures a load. The zero value works.
type LoadOptions struct {
	// Known are images that the engine may have. The layers of those that it has needn't be sent to a containerd store, which can't be asked
	// for its blobs. A classic store is asked for its layers.
	Known []*image.Verified
	// Space is asked, before anything is fetched, whether there is room for so many bytes. Nil: nothing is.
	Space    func(info inspect.Info, missing int64) error
	Progress Progress // nil: nothing is told
}

type noProgress struct{}

func (noProgress) Missing(int64, bool) {}
func (noProgress) Sent(int64)          {}
func (noProgress) Unpacked(int64)      {}

// Source is where a load gets the bytes of layers.
type Source interface {
	image.Source
	// PlainSize returns the size that a gzip layer claims for its tar. False: no claim is known.
	PlainSize(ctx context.Context, layer image.Layer) (int64, bool)
}

// Loaded is the result of a load.
type Loaded struct {
	ID     ImageID
	Reused int64 // bytes of layers, as they are in the registry, that the engine had
}

// Load streams the image from a source into the engine, layer after layer, so that the engine unpacks while the rest is fetched; reads the engine's
// answers to the end; and proves the result by inspection. Layers that the engine has are neither fetched nor sent. An engine that
// breaks down is tried again, with what it has by then.
//
// An error of the pull (*image.Error) comes through as it is. After an error there is no ID, and nothing is left that has a name.
func (e *Engine) Load(ctx context.Context, v *image.Verified, from Source, o LoadOptions) (Loaded, error) {
	if !v.Valid() {
		return Loaded{}, errors.New("loading an image: no verified image given")
	}
	if o.Progress == nil {
		o.Progress = noProgress{}
	}
	info, err := e.Info(ctx)
	if err != nil {
		return Loaded{}, err
	}
	if err := inspect.Takes(info, v); err != nil {
		return Loaded{}, err
	}
	l := &loading{engine: e, image: v, source: from, options: o, info: info, progress: o.Progress,
		delivered: map[digest.Digest]bool{}}
	id, err := l.untilProved(ctx)
	var pull *image.Error
	if interrupted := ctx.Err() != nil || errors.As(err, &pull); !interrupted {
		e.ForgetPrefixes(ctx, v.Digest()) // else a further try goes on with them: they are proved
	}
	if err != nil && l.named {
		return Loaded{}, e.forgetBroken(ctx, info, v, err)
	}
	return Loaded{ID: id, Reused: l.reused}, err
}

// loading is one image on its way into the engine.
type loading struct {
	engine   *Engine
	image    *image.Verified
	source   Source
	options  LoadOptions
	info     inspect.Info
	progress Progress
	reused   int64
	groups   int                     // loads of the last attempt
	stream   *image.Stream           // of the layers to be sent
	plain    map[digest.Digest]int64 // uncompressed sizes of the layers that are sent uncompressed, by diffID

	delivered map[digest.Digest]bool // layers that the engine took in an earlier attempt
	noRoom    bool                   // its user says so
	named     bool                   // entries that give the image its name were sent
	gunzipped bool                   // the last load sent gzip layers that were unpacked here
	damaged   bool                   // a layer was broken off since the engine's last refusal
	judge     *judge                 // of the present attempt; nil: none
	lie       *image.Error           // its verdict on the last one; nil: nothing is wrong
	flaws     []flaw                 // that it found in the last one
}

// attempt is one way to load an image.
type attempt struct {
	// lacking sends only the layers that the engine lacks, in as many loads as pays. Else all of
	// them go in one load, which depends on nothing.
	lacking bool
	// gunzip unpacks gzip layers here, where that pays. Else every layer goes as it is.
	gunzip bool
	// judged unpacks beside the load what is sent as it is.
	judged bool
	// after reports whether a failure of an earlier attempt is one that this one avoids.
	after func(l *loading, err error) bool
}

// attempts returns the ways to load an image, in the order in which they are tried. Each is
// repeated where again says so.
func attempts() []attempt {
	return []attempt{
		// First, what the engine lacks, gzip layers unpacked here.
		{lacking: true, gunzip: true},
		// After a layer that lied about its size, or a full disk: the same, every layer as it is.
		{lacking: true, after: (*loading).unpackedInVain},
		// After a load that relied on what the engine had or got before, after a refusal, and after a
		// layer that can't be unpacked here: all of it, as it is.
		{judged: true, after: (*loading).refused},
	}
}

// unpackedInVain reports whether a load may have failed because layers were unpacked here: one
// lied about its size, or the disk is too small for that.
func (l *loading) unpackedInVain(err error) bool {
	return l.gunzipped && (errors.Is(err, errClaim) || api.DiskFull(err))
}

// refused reports whether a load of all there is may end better. It may have relied on what the
// engine had, or had got from an earlier load: dstack prunes images while we are at work. A
// containerd store appends what comes to the part of a layer that it has of an upload that broke
// off, in this run or an earlier one, and refuses it once where that part was damaged. And a layer
// that can't be unpacked here, though no source is to blame, may be one that the engine can read.
func (l *loading) refused(err error) bool {
	var pull *image.Error
	if errors.As(err, &pull) {
		return l.gunzipped && pull.Host == ""
	}
	return !l.full(err) && (l.reused > 0 || l.groups > 1 || !unanswered(err))
}

// full reports whether there is no room for the image, by the engine's word or by that of its user.
func (l *loading) full(err error) bool { return l.noRoom || api.DiskFull(err) }

// untilProved loads until the engine has the image, or until another attempt would not help.
func (l *loading) untilProved(ctx context.Context) (ImageID, error) {
	breakdowns := 0
	for left := attempts(); ; {
		err := l.once(ctx, left[0])
		if err == nil {
			var id ImageID
			if id, err = l.engine.Prove(ctx, l.info, l.image); err == nil {
				return id, nil
			}
		}
		if ctx.Err() != nil {
			return ImageID{}, err
		}
		if repeat, err := l.again(ctx, err, &breakdowns, len(left) == 1); err != nil {
			return ImageID{}, err
		} else if repeat {
			continue
		}
		next := slices.IndexFunc(left[1:], func(a attempt) bool { return a.after(l, err) })
		if next < 0 {
			return ImageID{}, l.blame(err)
		}
		left = left[1+next:]
	}
}

// again reports whether the attempt that failed with why is worth repeating as it is, and waits
// until it can be. An error ends the load.
func (l *loading) again(ctx context.Context, why error, breakdowns *int, last bool) (bool, error) {
	passes := unanswered(why) || last && collected(why)
	var pull *image.Error
	switch {
	case errors.As(why, &pull):
		// Damage on the way, of which bytes were handed on. Package image says how often that may
		// be.
		l.damaged = pull.Restart
		return pull.Restart, nil
	case l.damaged && !unanswered(why) && !l.full(why):
		l.damaged = false // the engine had a part of what was damaged, and has no longer
		return true, nil
	case errors.Is(why, errClaim), l.full(why), !passes, *breakdowns == maxLoads-1:
		return false, nil
	}
	pause := loadPause << *breakdowns
	*breakdowns++
	return true, l.awaitEngine(ctx, pause, why)
}

// blame returns why the image can't be loaded, after the last attempt that ended with err.
func (l *loading) blame(err error) error {
	var pull *image.Error
	switch {
	case errors.As(err, &pull) || unanswered(err) || l.full(err) || api.HostFault(err):
		return err
	case l.lie != nil:
		return l.lie // the engine is right, and can't say so in a way that could be relied on
	case errors.Is(err, inspect.ErrNoImage):
		// It says yes, and has none.
		return &Error{
			Op: opLoad, Status: http.StatusOK,
			Message: fmt.Sprintf("the engine reported success, but has no image %s",
				inspect.ID(l.info.Store, l.image)),
		}
	}
	for _, f := range l.flaws {
		if f.explains(err) {
			return f.refusal(l.image, err)
		}
	}
	return &exit.Error{Code: exit.Engine, Err: err, Hint: []string{
		"either this machine can't store the image (its disk, its file system: see the engine's log), or " +
			"engines don't unpack what is in it: docker pull of it on another machine shows which",
	}}
}

// unanswered tells an engine that broke down from one that said no.
func unanswered(err error) bool {
	var unproved *inspect.UnprovedError
	if errors.As(err, &unproved) {
		return false // engines answer 500 for an image that no container can be made of
	}
	var e *Error
	return errors.As(err, &e) && (e.Err != nil || e.Status >= 500)
}

// collected reports whether containerd cleared away what it had unpacked of a layer, of a load that
// it refused or an image that was removed, just when it was going to build on it.
func collected(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.Contains(e.Message, "parent snapshot ") &&
		strings.Contains(e.Message, " does not exist: not found")
}

// awaitEngine waits until the engine answers again after the failure why, which it returns if that takes too long.
func (l *loading) awaitEngine(ctx context.Context, pause time.Duration, why error) error {
	defer waiting.For(ctx, "the Docker engine, which broke down, to come back")()
	for deadline := time.Now().Add(returnTimeout); ; {
		if err := l.engine.sleep(ctx, pause); err != nil {
			return err
		}
		info, err := l.engine.Info(ctx)
		if err == nil {
			l.info = info
			return nil
		}
		if time.Now().After(deadline) {
			return why
		}
	}
}

// once makes one attempt.
func (l *loading) once(ctx context.Context, a attempt) (err error) {
	layers := l.image.Layers()
	have, size := func(int) bool { return false }, int64(math.MaxInt64)
	if a.lacking {
		if have, err = l.present(ctx); err != nil {
			return err
		}
		size = l.engine.loadSize()
	}
	groups := planLoads(layers, have, size)
	var order []int
	var missing int64
	for _, g := range groups {
		for _, i := range g.send {
			order = append(order, i)
			missing += layers[i].Size
		}
	}
	l.reused, l.groups = 0, len(groups)
	for i, layer := range layers {
		if have(i) {
			l.reused += layer.Size
		}
	}
	if l.options.Space != nil {
		if err := l.options.Space(l.info, missing); err != nil {
			l.noRoom = true
			return err
		}
	}
	l.progress.Missing(missing, l.info.Store == inspect.Classic)
	l.plain, l.gunzipped = map[digest.Digest]int64{}, false
	if err := l.measureZstd(ctx, order); err != nil {
		return err
	}
	fetching, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.stream = l.image.Open(fetching, l.source, order)
	if a.gunzip {
		l.choosePlain(fetching, groups, l.stream.Arrived)
	}
	if l.judge, l.lie, l.flaws = nil, nil, nil; a.judged {
		asIs := slices.DeleteFunc(slices.Clone(order), func(i int) bool { return l.isPlain(layers[i]) })
		l.judge = newJudge(l.image, asIs)
		defer func() { l.lie, l.flaws = l.judge.verdict() }()
	}
	return closeAfter(l.pipeline(ctx, fetching, cancel, groups), l.stream)
}

// isPlain reports whether a layer is sent uncompressed, which proves its diffID on the way.
func (l *loading) isPlain(layer image.Layer) bool {
	_, ok := l.plain[layer.DiffID]
	return ok
}

// closeAfter closes the stream; its error is worth telling only where there is no other.
func closeAfter(err error, stream *image.Stream) error {
	closed := stream.Close()
	if err != nil {
		return err
	}
	return closed
}

// pipeline sends the groups one after another. While the engine unpacks one, the bytes of the next are on their way already;
// only the entries that make them an image wait until the one before is done, because they build on it. The first failure ends fetching,
// and what isn't sent to its end with it.
func (l *loading) pipeline(ctx, fetching context.Context, fail context.CancelCauseFunc, groups []group) error {
	before := make(chan struct{})
	close(before)
	var uploads sync.WaitGroup
	taken := make([]bool, len(groups))
	for n, g := range groups {
		if fetching.Err() != nil {
			break
		}
		sent, done, previous := make(chan struct{}), make(chan struct{}), before
		uploads.Go(func() {
			defer close(done)
			err := l.engine.send(ctx, upload{
				write:    func(t *tar.Writer) error { return l.writeGroup(fetching, t, g, sent, previous) },
				refused:  fail,
				unpacked: l.unpacked(),
			})
			if err != nil {
				fail(err) // the first cause is the one that is told
			}
			taken[n] = err == nil
		})
		select {
		case <-sent:
		case <-done:
		}
		before = done
	}
	uploads.Wait()
	for n, g := range groups {
		for _, i := range g.send {
			l.delivered[l.image.Layers()[i].Digest] = l.delivered[l.image.Layers()[i].Digest] || taken[n]
		}
	}
	return context.Cause(fetching) // nil where nothing went wrong
}

// unpacked returns what the engine's progress lines are reported to: a layer, by the beginning of its diffID, and how many of its bytes
// are unpacked, in the form in which it was sent.
func (l *loading) unpacked() func(id string, current int64) {
	reported := map[string]int64{}
	return func(id string, current int64) {
		for _, layer := range l.image.Layers() {
			if len(id) < 12 || !strings.HasPrefix(layer.DiffID.Hex(), id) {
				continue
			}
			done := min(current, layer.Size)
			if plain, ok := l.plain[layer.DiffID]; ok {
				done = scale(current, plain, layer.Size)
			}
			if grown := done - reported[id]; grown > 0 {
				reported[id] = done
				l.progress.Unpacked(grown)
			}
			return
		}
	}
}

// writeGroup writes one group's layers, closes sent, waits for what came before, and writes the entries that make it an image.
func (l *loading) writeGroup(ctx context.Context, t *tar.Writer, g group, sent chan<- struct{}, previous <-chan struct{}) error {
	layers := l.image.Layers()
	for _, i := range g.send {
		if err := l.writeLayer(t, layers[i]); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	close(sent)
	select {
	case <-previous:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	a := whole(l.image, l.path)
	if g.upto < len(layers) {
		var err error
		if a, err = prefix(l.image, g.upto, l.path); err != nil {
			return err
		}
	} else {
		l.named = true
	}
	entries, err := a.entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := e.write(t); err != nil {
			return err
		}
	}
	return nil
}

// present finds out which layers the engine has. What it wrongly claims to have costs another load, no more.
func (l *loading) present(ctx context.Context) (func(int) bool, error) {
	has, err := l.engine.Present(ctx, l.info, l.image, l.options.Known, nil)
	if err != nil || l.info.Store == inspect.Classic {
		return has, err
	}
	layers, delivered := l.image.Layers(), maps.Clone(l.delivered)
	return func(i int) bool { return has(i) || delivered[layers[i].Digest] }, nil
}

// ForgetPrefixes removes the nameless images that loads of the approved image made on their way, whenever that was. What they hold stays
// as long as an image has it. That one can't be removed is no reason to refuse the image: it is nameless, and `docker image prune` takes it.
func (e *Engine) ForgetPrefixes(ctx context.Context, approved digest.Digest) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	prefixes, err := e.Labelled(ctx, prefixLabel+"="+approved.String())
	if err != nil {
		return
	}
	for _, image := range prefixes {
		if slices.ContainsFunc(image.Names, func(n string) bool { return !strings.HasPrefix(n, "<none>") }) {
			continue // it was given a name: it isn't ours any more
		}
		_ = e.client.Call(ctx, api.Request{
			Op: "removing image " + image.ID, Method: http.MethodDelete, Path: "/images/" + image.ID, Query: url.Values{"noprune": {"1"}},
		}, nil)
	}
}

// forgetBroken removes the names that a load of v gives, unless the image under them is whole, and returns why the load was
// given up. It works on after ctx has ended: a refusal leaves nothing behind.
func (e *Engine) forgetBroken(ctx context.Context, info inspect.Info, v *image.Verified, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if _, err := e.Prove(ctx, info, v); err == nil {
		return why
	}
	tag, annotation := names(v)
	for _, name := range []string{tag, annotation} {
		err := e.client.Call(ctx, api.Request{Op: "removing image " + name, Method: http.MethodDelete, Path: "/images/" + name}, nil)
		var answered *Error
		if errors.As(err, &answered) && answered.Status != 0 && answered.Status != http.StatusNotFound {
			why = fmt.Errorf("%w (and what it left can't be removed: %w)", why, err)
		}
	}
	return why
}
