package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/layout"
)

// shelf is an image layout on a disk. It is no more believed than a registry. It is opened when it
// is asked first, and given back when it is asked no more.
type shelf struct {
	source *Source
	path   string
	at     place

	mu     sync.Mutex
	opened *layout.Layout // nil: not now
}

func newShelf(s *Source, path string) *shelf {
	return &shelf{source: s, path: path, at: place{name: path}}
}

func (s *shelf) place() *place { return &s.at }

func (s *shelf) credential() string { return "none are needed" }

// refresh closes the layout. What reads it just now opens it again.
func (s *shelf) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened != nil {
		_ = s.opened.Close()
	}
	s.opened = nil
}

// blob opens what the layout has under a digest. A fault of the disk is no lie, and neither is a file
// of another size, such as one that is still being copied.
func (s *shelf) blob(h digest.Digest) (*layout.Blob, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened == nil {
		opened, err := layout.Open(s.path)
		if err != nil {
			return nil, s.refused(err)
		}
		s.opened = opened
		s.at.answered.Store(true)
	}
	blob, err := s.opened.Blob(h)
	if err != nil {
		return nil, s.refused(err)
	}
	return blob, nil
}

func (s *shelf) refused(err error) *failure { return &failure{class: refusal, host: s.path, err: err} }

func (s *shelf) sized(h digest.Digest, size int64) (*layout.Blob, *failure) {
	blob, f := s.blob(h)
	if f != nil {
		return nil, f
	}
	if size >= 0 && blob.Size != size {
		_ = blob.Close()
		return nil, s.refused(otherSize(blob.Size, size))
	}
	return blob, nil
}

func otherSize(got, want int64) error { return fmt.Errorf("it has %d bytes there, want %d", got, want) }

func (s *shelf) document(_ context.Context, _ *tries, d image.Document, _, _ string) ([]byte, *failure) {
	if d.Digest.IsZero() {
		return nil, s.refused(errors.New("a layout is asked by digest"))
	}
	blob, f := s.blob(d.Digest)
	if f != nil {
		return nil, f
	}
	defer blob.Close()
	if blob.Size > image.MaxManifest {
		return nil, &failure{class: final, host: s.path, err: image.ErrTooLarge}
	}
	data := make([]byte, blob.Size)
	if _, err := io.ReadFull(io.NewSectionReader(blob, 0, blob.Size), data); err != nil {
		return nil, s.refused(errors.New("it can't be read"))
	}
	err := d.Check(data)
	switch {
	case err == nil, digest.Of(data) == d.Digest: // another size than expected is for the proof to tell
	case d.Size >= 0 && blob.Size != d.Size:
		return nil, s.refused(otherSize(blob.Size, d.Size))
	default:
		return nil, &failure{class: lie, whole: true, host: s.path, err: err}
	}
	return data, nil
}

func (s *shelf) fetch(ctx context.Context, t *tries, p *part) *failure {
	if ctx.Err() != nil {
		return &failure{err: context.Cause(ctx)}
	}
	blob, f := s.sized(p.blob.layer.Digest, p.blob.layer.Size)
	if f != nil {
		return f
	}
	defer blob.Close()
	n, err := blob.ReadAt(p.buffer[p.filled:], p.next())
	p.filled += n
	if n > 0 {
		p.blob.gave(s)
		s.at.fetched.Add(int64(n))
		p.arrived.Add(int64(n))
		s.source.Progress(int64(n))
		t.arrived(n, p.filled == len(p.buffer))
		if err := s.source.pace.rest(ctx, n); err != nil {
			return &failure{err: err}
		}
	}
	if p.filled < len(p.buffer) {
		_ = err // its words may name what was read
		return s.refused(fmt.Errorf("it can't be read from byte %d on", p.next()))
	}
	return nil
}

func (s *shelf) hasLayer(_ context.Context, _ *tries, l image.Layer) *failure {
	blob, f := s.sized(l.Digest, l.Size)
	if f != nil {
		return f
	}
	_ = blob.Close()
	return nil
}

func (s *shelf) plainSize(_ context.Context, l image.Layer) (int64, bool) {
	blob, f := s.sized(l.Digest, l.Size)
	if f != nil {
		return 0, false
	}
	defer blob.Close()
	var trailer [4]byte
	if _, err := blob.ReadAt(trailer[:], l.Size-4); err != nil {
		return 0, false
	}
	return claimed(trailer, l)
}

func (s *shelf) failed(part string, t *tries, f *failure) *image.Error {
	e := &image.Error{Kind: image.Refused, Part: part, Host: s.path, Attempts: t.total, Err: f.err}
	if f.class == lie {
		e.Kind = image.Mismatch
		e.Help = []string{"what is in this layout isn't what was approved: copy it anew, and look at who can write there"}
	}
	return e
}
