// Package layout reads and writes OCI image layouts: directories, or a tar of one.
//
// A layout is as little believed as a registry is. It is opened without following a link, on the way
// there neither; only regular files are read, from beginning to end of what they claim to be; and
// nothing of what is in a file gets into a message. A blob is found by its digest alone: index.json
// is for others. Whether its bytes are those of the digest is for the reader to prove.
package layout

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/internal/files"
)

// maxIndex bounds index.json.
const maxIndex = 4 << 20

// maxEntries bounds how many entries of a tar are looked at.
const maxEntries = 20_000

// Layout is an opened layout. It may be used by several goroutines.
type Layout struct {
	path  string
	dir   *files.Dir               // blobs/sha256; nil for a tar
	tar   *os.File                 // nil for a directory
	blobs map[digest.Digest]extent // of the tar
	index func() ([]byte, error)   // index.json
}

// extent is where a blob is in a tar.
type extent struct{ offset, size int64 }

// Blob is the bytes that a layout has under a digest. Whoever opened it has to close it.
type Blob struct {
	io.ReaderAt
	Size  int64
	close func() error
}

// Close gives back what the blob holds open.
func (b *Blob) Close() error { return b.close() }

// ErrMissing is a blob that isn't in the layout.
var ErrMissing = fmt.Errorf("it isn't in the layout: %w", fs.ErrNotExist)

// walk opens the directory that an absolute path leads to up to its last element, without a link on
// the way, and shows each.
func walk(at string, each func(*files.Dir)) (dir *files.Dir, last string, err error) {
	if !path.IsAbs(at) {
		return nil, "", fmt.Errorf("%s: %w", at, fs.ErrInvalid)
	}
	elements := strings.Split(strings.Trim(path.Clean(at), "/"), "/")
	dir, err = files.OpenDir("/")
	if err != nil {
		return nil, "", err
	}
	for i, element := range elements {
		each(dir)
		if i == len(elements)-1 {
			return dir, element, nil
		}
		next, err := dir.Open(element)
		_ = dir.Close()
		if err != nil {
			return nil, "", err
		}
		dir = next
	}
	return dir, "", nil
}

// Open opens a layout.
func Open(at string) (*Layout, error) {
	parent, name, err := walk(at, func(*files.Dir) {})
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	info, err := parent.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return openDir(at, parent, name)
	}
	return openTar(at, parent, name)
}

func openDir(at string, parent *files.Dir, name string) (*Layout, error) {
	root, err := parent.Open(name)
	if err != nil {
		return nil, err
	}
	index, unread := root.Read("index.json", maxIndex)
	_ = root.Close()
	dir := parent
	for _, element := range []string{name, "blobs", "sha256"} {
		next, err := dir.Open(element)
		if dir != parent {
			_ = dir.Close()
		}
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return &Layout{path: at, dir: dir, index: func() ([]byte, error) { return index, unread }}, nil
}

func openTar(at string, parent *files.Dir, name string) (*Layout, error) {
	f, err := parent.OpenRegular(name)
	if err != nil {
		return nil, err
	}
	l := &Layout{path: at, tar: f, blobs: map[digest.Digest]extent{}, index: func() ([]byte, error) { return nil, ErrMissing }}
	archive := tar.NewReader(f)
	for range maxEntries {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("%s: it is no tar, or a damaged one", at) // the reader's words may be the file's
		}
		if path.Clean(header.Name) == "index.json" && header.Typeflag == tar.TypeReg && header.Size <= maxIndex {
			data, err := io.ReadAll(archive)
			l.index = func() ([]byte, error) { return data, err }
			continue
		}
		hex, isBlob := strings.CutPrefix(path.Clean(header.Name), "blobs/sha256/")
		h, err := digest.Parse("sha256:" + hex)
		if !isBlob || err != nil || header.Typeflag != tar.TypeReg {
			continue
		}
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		l.blobs[h] = extent{offset, header.Size}
	}
	_ = f.Close()
	return nil, fmt.Errorf("%s: more than %d entries", at, maxEntries)
}

// Blob returns the blob with a digest; ErrMissing says that there is none.
func (l *Layout) Blob(h digest.Digest) (*Blob, error) {
	if l.tar != nil {
		at, ok := l.blobs[h]
		if !ok {
			return nil, ErrMissing
		}
		return &Blob{io.NewSectionReader(l.tar, at.offset, at.size), at.size, func() error { return nil }}, nil
	}
	f, err := l.dir.OpenRegular(h.Hex())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Blob{f, info.Size(), f.Close}, nil
}

// Images returns what index.json names, in its order. It is the word of whoever wrote it.
func (l *Layout) Images() ([]digest.Digest, error) {
	data, err := l.index()
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var index struct {
		Manifests []struct {
			Digest digest.Digest `json:"digest"`
		} `json:"manifests"`
	}
	if json.Unmarshal(data, &index) != nil {
		return nil, fmt.Errorf("%s: index.json is no index", l.path)
	}
	var all []digest.Digest
	for _, m := range index.Manifests {
		if !m.Digest.IsZero() && !slices.Contains(all, m.Digest) {
			all = append(all, m.Digest)
		}
	}
	return all, nil
}

// Document returns the bytes of a document, for Describe of package image to prove.
func (l *Layout) Document(h digest.Digest, limit int64) ([]byte, error) {
	blob, err := l.Blob(h)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	if blob.Size > limit {
		return nil, fmt.Errorf("%s: %w", h, files.ErrTooLarge)
	}
	data := make([]byte, blob.Size)
	_, err = io.ReadFull(io.NewSectionReader(blob, 0, blob.Size), data)
	return data, err
}

// Close gives back what the layout holds open.
func (l *Layout) Close() error {
	if l.tar != nil {
		return l.tar.Close()
	}
	return l.dir.Close()
}

// Below reports whether a path leads into a directory, by its name or by another one of a directory
// on the way. A path that can't be followed is taken to.
func Below(at, dir string) bool {
	at, dir = path.Clean(at), path.Clean(dir)
	if at == dir || strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/") {
		return true
	}
	is := false
	parent, name, err := walk(at, func(on *files.Dir) { is = is || on.Is(dir) })
	if err != nil {
		return true
	}
	defer parent.Close()
	if last, err := parent.Open(name); err == nil {
		is = is || last.Is(dir)
		_ = last.Close()
	}
	return is
}
