package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
)

// Stream hands out layers in the order in which they were asked for, while the parts that come next are fetched over
// several connections into a fixed number of buffers. It is for one goroutine; Close may be called from any, and has to be.
//
// A layer of one part (Tuning.RangeSize) is proved before its first byte is handed out, and fetched again where it is
// damaged. A longer one is proved when its last byte would be handed out: damage found only then can't be repaired in
// what the reader already has. It ends in an *Error of kind Mismatch, and while that says Restart, throwing away what was
// read and opening another Stream of the same Verified may end well.
type Stream struct {
	source *source
	layers []Layer
	labels []string
	ctx    context.Context
	cancel context.CancelCauseFunc
	order  chan *part  // all parts in the order of delivery, those that are fetched already or just now
	free   chan []byte // buffers
	work   sync.WaitGroup

	mu      sync.Mutex   // held while bytes are read from a buffer, and to give the buffers back
	release func() error // nil if there are none
	next    int
	current *layerReader
	err     error
}

var errClosed = errors.New("stream is closed")

// Open begins to fetch the layers with these indices, in this order.
func (v *Verified) Open(ctx context.Context, layers []int) *Stream {
	if !v.Valid() {
		return &Stream{err: errNotVerified, cancel: func(error) {}}
	}
	st := &Stream{source: v.source}
	st.ctx, st.cancel = context.WithCancelCause(ctx)
	for _, i := range layers {
		if i < 0 || i >= len(v.layers) {
			st.err = fmt.Errorf("there is no layer %d", i)
			return st
		}
		st.layers = append(st.layers, v.layers[i])
		st.labels = append(st.labels, layerPart(i, len(v.layers)))
	}
	st.start()
	return st
}

// start begins with fetching.
func (st *Stream) start() {
	rangeSize := st.source.Tuning.RangeSize
	var parts, largest int64
	for _, l := range st.layers {
		parts += (l.Size + rangeSize - 1) / rangeSize
		largest = max(largest, min(l.Size, rangeSize))
	}
	workers := int(min(int64(st.source.Tuning.Workers), parts))
	buffers := int(min(int64(workers)+2, parts))
	memory, release, err := mapBuffers(buffers, largest)
	if err != nil {
		st.err = err
		return
	}
	st.release = release
	st.order = make(chan *part, buffers)
	st.free = make(chan []byte, buffers)
	for _, b := range memory {
		st.free <- b
	}
	todo := make(chan *part)
	for range workers {
		st.work.Go(func() {
			for p := range todo {
				p.err = st.source.fetch(st.ctx, p)
				close(p.done)
			}
		})
	}
	st.work.Go(func() {
		defer close(todo)
		st.plan(todo)
	})
}

// plan gives out the parts in order, each only with a buffer in hand: the part that is delivered next always has one.
func (st *Stream) plan(todo chan<- *part) {
	rangeSize := st.source.Tuning.RangeSize
	for i, l := range st.layers {
		b := newBlob(l, st.labels[i])
		var before <-chan struct{}
		for offset := int64(0); offset < l.Size; offset += rangeSize {
			var buffer []byte
			select {
			case buffer = <-st.free:
			case <-st.ctx.Done():
				return
			}
			p := &part{blob: b, offset: offset, buffer: buffer[:min(rangeSize, l.Size-offset)], before: before, done: make(chan struct{})}
			before = p.done
			st.order <- p // has room for every buffer
			select {
			case todo <- p:
			case <-st.ctx.Done():
				return
			}
		}
	}
}

// Next returns the compressed bytes of the next layer, and io.EOF after the last one. The layer before has to be read to
// its end. The last bytes of the layer are handed out only once its digest and exact size are proved; Close of the layer
// says again whether that is so.
func (st *Stream) Next() (io.ReadCloser, error) {
	r, err := st.nextLayer()
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (st *Stream) nextLayer() (*layerReader, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.err != nil:
		return nil, st.err
	case st.current != nil && st.current.left > 0:
		return nil, errors.New("the layer before is not read to its end")
	case st.next == len(st.layers):
		return nil, io.EOF
	}
	l := st.layers[st.next]
	st.current = &layerReader{st: st, layer: l, label: st.labels[st.next], hash: sha256.New(), left: l.Size}
	st.next++
	return st.current, nil
}

// Close ends all that is under way.
func (st *Stream) Close() error {
	st.cancel(errClosed)
	st.work.Wait()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err == nil {
		st.err = errClosed
	}
	release := st.release
	if release == nil {
		return nil
	}
	st.release = nil
	return release()
}

// take waits for the next part in the order of delivery.
func (st *Stream) take() (*part, error) {
	if st.err != nil {
		return nil, st.err
	}
	var p *part
	select {
	case p = <-st.order:
	case <-st.ctx.Done():
		return nil, st.interrupted()
	}
	select {
	case <-p.done:
	case <-st.ctx.Done():
		return nil, st.interrupted()
	}
	if p.err != nil {
		st.err = p.err
		return nil, p.err
	}
	return p, nil
}

func (st *Stream) interrupted() error {
	if st.err == nil {
		st.err = interrupted(st.ctx)
	}
	return st.err
}

// layerReader hands out one layer.
type layerReader struct {
	st    *Stream
	layer Layer
	label string
	hash  hash.Hash
	left  int64 // bytes that were not handed out yet
	part  *part
	used  int // bytes of part that were
	err   error
}

// Read proves digest and size with the last bytes, and hands them out only then.
func (r *layerReader) Read(p []byte) (int, error) {
	r.st.mu.Lock()
	defer r.st.mu.Unlock()
	switch {
	case r.err != nil:
		return 0, r.err
	case r.left == 0:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	case r.st.release == nil:
		return 0, errClosed
	}
	if r.part == nil {
		if r.part, r.err = r.st.take(); r.err != nil {
			return 0, r.err
		}
		r.used = 0
	}
	n := copy(p, r.part.buffer[r.used:])
	r.hash.Write(p[:n])
	r.used += n
	if r.used == len(r.part.buffer) {
		r.st.free <- r.part.buffer[:cap(r.part.buffer)]
		r.part = nil
	}
	if r.left > int64(n) {
		r.left -= int64(n)
		return n, nil
	}
	if got := "sha256:" + hex.EncodeToString(r.hash.Sum(nil)); got != r.layer.Digest.String() {
		r.err = r.st.source.damaged(r.label, fmt.Errorf("got %s, want %s in %d bytes", got, r.layer.Digest, r.layer.Size))
		r.st.err = r.err
		return 0, r.err
	}
	r.left = 0
	return n, nil
}

// Close returns nil if every byte was handed out and proved.
func (r *layerReader) Close() error {
	switch {
	case r.err != nil:
		return r.err
	case r.left > 0:
		return fmt.Errorf("%s: closed with %d of %d bytes unread: not proved", r.label, r.left, r.layer.Size)
	}
	return nil
}

// maxRestarts is how often damage on the way is taken for bad luck.
const maxRestarts = 2

// damaged is the end of a stream of which some bytes were handed out that are not the layer's.
func (s *source) damaged(label string, err error) *Error {
	s.freshConnections()
	e := s.mismatch(label, err)
	e.Host = s.host()
	e.Restart = s.restarts.Add(1) <= maxRestarts
	return e
}
