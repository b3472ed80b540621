package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"tee-launcher/pkg/digest"
)

// Bounds of what is unpacked here. An attacker who can't forge the layer can still send other bytes
// up to its size, and only the last one tells.
const (
	// maxWindow is what every zstd decoder has to support (RFC 8878), and what fits into the memory
	// of this package.
	maxWindow = 8 << 20
	// maxRatio is a little more than deflate can do.
	maxRatio   = 1100
	plainFloor = 64 << 20
)

// NextPlain is Next for a reader that needs the uncompressed tar: digest and size of what comes
// over the network are proved, and the diffID of what is handed out. The last bytes are handed out
// only after that.
func (st *Stream) NextPlain() (io.ReadCloser, error) {
	layer, err := st.nextLayer()
	if err != nil {
		return nil, err
	}
	return &plainReader{layer: layer, hash: sha256.New(), limit: plainFloor + maxRatio*layer.layer.Size, spare: make([]byte, 64<<10)}, nil
}

// plainReader hands out the bytes of a layer's tar, always one chunk behind what it read.
type plainReader struct {
	layer  *layerReader
	packed io.Reader // the layer
	tar    io.Reader // nil before the first Read
	close  func()
	hash   hash.Hash
	limit  int64
	ready  []byte // may be handed out
	held   []byte // may once something follows or all is proved
	last   []byte // follows held, in the end
	spare  []byte // the buffer that is neither
	proved bool
	err    error
}

func (r *plainReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.ready) == 0 {
		switch {
		case r.err != nil:
			return 0, r.err
		case len(r.last) > 0:
			r.ready, r.last = r.last, nil
		case r.proved:
			return 0, io.EOF
		default:
			r.advance()
		}
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

// Close returns nil if every byte was handed out and proved.
func (r *plainReader) Close() error {
	if r.close != nil {
		r.close()
		r.close = nil
	}
	if r.err != nil {
		return r.err
	}
	if err := r.layer.Close(); err != nil {
		return err
	}
	if !r.proved || len(r.ready)+len(r.last) > 0 {
		return fmt.Errorf("%s: closed before its end: not proved", r.layer.label)
	}
	return nil
}

// advance reads one chunk and lets the one before go. The one before that has been handed out.
func (r *plainReader) advance() {
	if r.tar == nil {
		if err := r.begin(); err != nil {
			r.err = r.explain(err)
			return
		}
	}
	chunk := r.spare
	n, err := readChunk(r.tar, chunk)
	r.hash.Write(chunk[:n])
	r.limit -= int64(n)
	switch {
	case r.limit < 0:
		r.err = r.unusable(fmt.Errorf("it unpacks to more than %d times its size", maxRatio))
		return
	case err == nil:
		if r.held == nil { // the first chunk
			r.spare = make([]byte, len(chunk))
		} else {
			r.spare = r.held
		}
		r.ready, r.held = r.held, chunk
		return
	case err != io.EOF:
		r.err = r.explain(err)
		return
	}
	if err := r.finish(); err != nil {
		r.err = err
		return
	}
	r.ready, r.last, r.held, r.proved = r.held, chunk[:n], nil, true
}

// readChunk is io.ReadFull without its io.ErrUnexpectedEOF, which is also what an archive that was
// cut ends with.
func readChunk(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var got int
		got, err = r.Read(p[n:])
		n += got
	}
	if n == len(p) {
		return n, nil
	}
	return n, err
}

// begin looks at the bytes to see how they are packed, as classic stores do: what a layer is called
// doesn't matter to its diffID.
func (r *plainReader) begin() error {
	packed := bufio.NewReader(r.layer)
	magic, err := packed.Peek(4)
	if err != nil && err != io.EOF {
		return err
	}
	r.packed = packed
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(packed)
		if err != nil {
			return err
		}
		r.tar = z
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(magic):
		z, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		r.tar, r.close = z, z.Close
	case bytes.HasPrefix(magic, []byte("BZh")):
		return errors.New("it is packed with bzip2, which isn't unpacked here")
	case bytes.Equal(magic, []byte{0xfd, '7', 'z', 'X'}):
		return errors.New("it is packed with xz, which isn't unpacked here")
	default:
		r.tar = packed
	}
	return nil
}

// isSkippable reports whether a zstd frame begins so that holds nothing to unpack.
func isSkippable(magic []byte) bool {
	return len(magic) == 4 && magic[0]>>4 == 5 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// finish proves all there is to prove at the end of the tar.
func (r *plainReader) finish() error {
	surplus, err := io.Copy(io.Discard, r.packed)
	if err != nil {
		return err
	}
	if surplus > 0 {
		return r.unusable(fmt.Errorf("%d bytes follow the end of what is compressed", surplus))
	}
	if got := digest.Digest(r.hash.Sum(nil)); got != r.layer.layer.DiffID {
		return r.unusable(contradiction("diffID: got %s, want %s", got, r.layer.layer.DiffID))
	}
	return nil
}

// explain tells a layer that was damaged on the way, which another try may repair, from one that
// can't be unpacked.
func (r *plainReader) explain(err error) error {
	if _, damaged := io.Copy(io.Discard, r.layer); damaged != nil {
		return damaged
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		err = fmt.Errorf("its zstd window is larger than %d MiB, the limit here", maxWindow>>20)
	}
	return r.unusable(fmt.Errorf("unpacking: %w", err))
}

// unusable is the end of a layer whose bytes are proved.
func (r *plainReader) unusable(err error) *Error {
	return unusable(r.layer.st.image.ref, r.layer.label, err)
}
