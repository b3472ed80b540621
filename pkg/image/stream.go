package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"tee-launcher/pkg/digest"
)

// Source has the bytes of layers: a registry, an image layout.
type Source interface {
	// Open begins to fetch the layers of v with these indices, in this order.
	Open(ctx context.Context, v *Verified, layers []int) Blobs
}

// Blobs are layers on their way. Nothing of what they say is believed.
type Blobs interface {
	// Next returns the compressed bytes of the next layer once those of the layer before were read.
	// An *Error says that they can't be had.
	Next() (io.Reader, error)
	// Arrived is how many bytes have been fetched; they may be ahead of the reader.
	Arrived() int64
	// Damaged tells that a layer wasn't what it should be. It returns the host that brought it, and whether
	// fetching it once more may help.
	Damaged() (host string, again bool)
	// Close ends all that is under way. It may be called from any goroutine.
	Close() error
}

// Stream hands out layers in the order in which they were asked for, and proves them. It is for one
// goroutine; Close may be called from any, and has to be.
//
// A layer is proved when its last byte would be handed out: damage found only then can't be
// repaired in what the reader already has. It ends in an *Error of kind Mismatch, and while that
// says Restart, throwing away what was read and opening another Stream from the same source may end
// well.
type Stream struct {
	image  *Verified
	layers []int
	blobs  Blobs
	ctx    context.Context

	next    int // in layers
	current *layerReader

	mu  sync.Mutex
	err error
}

var errClosed = errors.New("stream is closed")

// Open begins to fetch the layers with these indices from a source, in this order.
func (v *Verified) Open(ctx context.Context, from Source, layers []int) *Stream {
	st := &Stream{image: v, layers: layers, ctx: ctx}
	if !v.Valid() {
		st.err = errNotVerified
		return st
	}
	for _, i := range layers {
		if i < 0 || i >= len(v.layers) {
			st.err = fmt.Errorf("there is no layer %d", i)
			return st
		}
	}
	st.blobs = from.Open(ctx, v, layers)
	return st
}

// Next returns the compressed bytes of the next layer, and io.EOF after the last one. The layer
// before has to be read to its end. The last bytes of the layer are handed out only once its digest
// and exact size are proved; Close of the layer says again whether that is so.
func (st *Stream) Next() (io.ReadCloser, error) {
	r, err := st.nextLayer()
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (st *Stream) nextLayer() (*layerReader, error) {
	switch err := st.failed(); {
	case err != nil:
		return nil, err
	case st.current != nil && !st.current.proved:
		return nil, errors.New("the layer before is not read to its end")
	case st.next == len(st.layers):
		return nil, io.EOF
	}
	raw, err := st.blobs.Next()
	if err != nil {
		return nil, st.fail(err)
	}
	i := st.layers[st.next]
	st.next++
	layer := st.image.layers[i]
	st.current = &layerReader{
		st: st, raw: raw, layer: layer, label: st.image.LayerPart(i), hash: sha256.New(), left: layer.Size,
	}
	return st.current, nil
}

// Arrived is how many bytes the source has fetched for this stream.
func (st *Stream) Arrived() int64 {
	if st.blobs == nil {
		return 0
	}
	return st.blobs.Arrived()
}

// Close ends all that is under way.
func (st *Stream) Close() error {
	st.fail(errClosed)
	if st.blobs == nil {
		return nil
	}
	return st.blobs.Close()
}

func (st *Stream) failed() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.err
}

// fail ends the stream with err, or returns with what it has ended already.
func (st *Stream) fail(err error) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err == nil {
		st.err = err
	}
	return st.err
}

// layerReader hands out one layer.
type layerReader struct {
	st     *Stream
	raw    io.Reader
	layer  Layer
	label  string
	hash   hash.Hash
	left   int64 // bytes that were not handed out yet
	proved bool
	err    error
}

// Read proves digest and size with the last bytes, and hands them out only then.
func (r *layerReader) Read(p []byte) (int, error) {
	switch err := r.st.failed(); {
	case r.err != nil:
		return 0, r.err
	case r.proved:
		return 0, io.EOF
	case err != nil:
		return 0, err
	case len(p) == 0:
		return 0, nil
	}
	n, err := r.raw.Read(p[:min(int64(len(p)), r.left)])
	r.hash.Write(p[:n])
	r.left -= int64(n)
	switch {
	case r.left > 0 && err == io.EOF:
		err = r.lied(fmt.Errorf("got %d bytes, want %d", r.layer.Size-r.left, r.layer.Size))
	case r.left == 0:
		err = r.prove()
	}
	if err != nil {
		r.err = r.st.fail(err)
		return 0, r.err
	}
	return n, nil
}

// prove is the end of the layer: nothing may follow, and the digest has to be the right one.
func (r *layerReader) prove() error {
	var more [1]byte
	if n, err := io.ReadFull(r.raw, more[:]); n > 0 {
		return r.lied(fmt.Errorf("more than %d bytes", r.layer.Size))
	} else if err != io.EOF {
		return err
	}
	if got := digest.Digest(r.hash.Sum(nil)); got != r.layer.Digest {
		return r.lied(fmt.Errorf("got %s, want %s in %d bytes", got, r.layer.Digest, r.layer.Size))
	}
	r.proved = true
	return nil
}

// lied is the end of a layer of which some bytes were handed out that are not its own.
func (r *layerReader) lied(err error) *Error {
	e := mismatch(r.st.image.ref, r.label, err)
	e.Host, e.Restart = r.st.blobs.Damaged()
	return e
}

// Close returns nil if every byte was handed out and proved.
func (r *layerReader) Close() error {
	switch {
	case r.err != nil:
		return r.err
	case !r.proved:
		return fmt.Errorf("%s: closed with %d of %d bytes unread: not proved", r.label, r.left, r.layer.Size)
	}
	return nil
}
