package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"tee-launcher/pkg/image"
)

// blobs brings layers in the order in which they were asked for, while the parts that come next are
// fetched over several connections into a fixed number of buffers.
//
// A layer of one part (Tuning.RangeSize) is compared with its digest before its first byte is
// handed out, and fetched again where it is damaged.
type blobs struct {
	source  *Source
	blobs   []*blob
	layers  []image.Layer
	ctx     context.Context
	cancel  context.CancelCauseFunc
	order   chan *part  // all parts in the order of delivery, those that are fetched already or just now
	free    chan []byte // buffers
	work    sync.WaitGroup
	arrived atomic.Int64

	mu      sync.Mutex   // held while bytes are read from a buffer, and to give the buffers back
	release func() error // nil if there are none
	next    int
	current *blobReader
	err     error
}

var errClosed = errors.New("closed")

// Open implements image.Source.
func (s *Source) Open(ctx context.Context, v *image.Verified, layers []int) image.Blobs {
	b := &blobs{source: s}
	b.ctx, b.cancel = context.WithCancelCause(ctx)
	all := v.Layers()
	for _, i := range layers {
		b.layers = append(b.layers, all[i])
		one := newBlob(all[i], v.LayerPart(i))
		one.only = s.onlyFor(all[i])
		b.blobs = append(b.blobs, one)
	}
	b.start()
	return b
}

// start begins with fetching.
func (b *blobs) start() {
	rangeSize := b.source.Tuning.RangeSize
	var parts, largest int64
	for _, l := range b.layers {
		parts += (l.Size + rangeSize - 1) / rangeSize
		largest = max(largest, min(l.Size, rangeSize))
	}
	workers := int(min(int64(b.source.Tuning.Workers), parts))
	buffers := int(min(int64(workers)+2, parts))
	memory, release, err := mapBuffers(buffers, largest)
	if err != nil {
		b.err = err
		return
	}
	b.release = release
	b.order = make(chan *part, buffers)
	b.free = make(chan []byte, buffers)
	for _, buffer := range memory {
		b.free <- buffer
	}
	todo := make(chan *part)
	for range workers {
		b.work.Go(func() {
			for p := range todo {
				p.err = b.source.fetch(b.ctx, p)
				close(p.done)
			}
		})
	}
	b.work.Go(func() {
		defer close(todo)
		b.plan(todo)
	})
}

// plan gives out the parts in order, each only with a buffer in hand: the part that is delivered
// next always has one.
func (b *blobs) plan(todo chan<- *part) {
	rangeSize := b.source.Tuning.RangeSize
	for i, l := range b.layers {
		blob := b.blobs[i]
		var before *part
		for offset := int64(0); offset < l.Size; offset += rangeSize {
			var buffer []byte
			select {
			case buffer = <-b.free:
			case <-b.ctx.Done():
				return
			}
			p := &part{
				blob: blob, offset: offset, buffer: buffer[:min(rangeSize, l.Size-offset)],
				before: before, done: make(chan struct{}), arrived: &b.arrived,
			}
			before = p
			b.order <- p // has room for every buffer
			select {
			case todo <- p:
			case <-b.ctx.Done():
				return
			}
		}
	}
}

// Next implements image.Blobs.
func (b *blobs) Next() (io.Reader, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.err != nil:
		return nil, b.err
	case b.current != nil && b.current.left > 0:
		return nil, errors.New("the layer before is not read to its end")
	case b.next == len(b.layers):
		return nil, io.EOF
	}
	b.current = &blobReader{blobs: b, left: b.layers[b.next].Size}
	b.next++
	return b.current, nil
}

// Arrived implements image.Blobs.
func (b *blobs) Arrived() int64 { return b.arrived.Load() }

// maxRestarts is how often damage on the way is taken for bad luck, for each source.
const maxRestarts = 2

// Damaged implements image.Blobs.
func (b *blobs) Damaged() (host string, again bool) {
	b.mu.Lock()
	current := b.blobs[max(b.next-1, 0)]
	b.mu.Unlock()
	return b.source.damaged(current)
}

// Close implements image.Blobs.
func (b *blobs) Close() error {
	b.cancel(errClosed)
	b.work.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = errClosed
	}
	release := b.release
	if release == nil {
		return nil
	}
	b.release = nil
	return release()
}

// take waits for the next part in the order of delivery.
func (b *blobs) take() (*part, error) {
	if b.err != nil {
		return nil, b.err
	}
	var p *part
	select {
	case p = <-b.order:
	case <-b.ctx.Done():
		return nil, b.interrupted()
	}
	select {
	case <-p.done:
	case <-b.ctx.Done():
		return nil, b.interrupted()
	}
	if p.err != nil {
		b.err = p.err
		return nil, p.err
	}
	return p, nil
}

func (b *blobs) interrupted() error {
	if b.err == nil {
		b.err = interrupted(b.ctx)
	}
	return b.err
}

// interrupted is how a pull ends whose context did.
func interrupted(ctx context.Context) error {
	return fmt.Errorf("pull interrupted: %w", context.Cause(ctx))
}

// blobReader hands out the bytes of one layer, as many as it has to have.
type blobReader struct {
	blobs *blobs
	left  int64 // bytes that were not handed out yet
	part  *part
	used  int // bytes of part that were
}

func (r *blobReader) Read(p []byte) (int, error) {
	b := r.blobs
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.left == 0:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	case b.release == nil:
		return 0, errClosed
	}
	if r.part == nil {
		var err error
		if r.part, err = b.take(); err != nil {
			return 0, err
		}
		r.used = 0
	}
	n := copy(p, r.part.buffer[r.used:])
	r.used += n
	r.left -= int64(n)
	if r.used == len(r.part.buffer) {
		b.free <- r.part.buffer[:cap(r.part.buffer)]
		r.part = nil
	}
	return n, nil
}
