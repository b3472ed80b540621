package docker

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"path"
	"slices"
	"strings"
	"syscall"

	"tee-launcher/pkg/image"
)

const (
	// maxFlaws is how many are kept of one load: an engine stops at the first one that it minds.
	maxFlaws = 100
	// maxSeen is how many names of one layer are remembered, in some 10 MB.
	maxSeen = 1 << 18
	// maxName is how long a part of a name may be on any of Linux's file systems, maxNames how long the
	// names of an entry may be together if an engine's words are to show them.
	maxName, maxNames = 255, 2 << 10
)

// flaw is something in a layer that engines don't unpack, though the bytes are what was approved.
type flaw struct {
	part  string   // the layer
	what  string   // it holds
	words []string // all in what an engine says that stumbled over it
}

// explains reports whether what the engine says, err, is said of this flaw. A flaw alone explains
// nothing: engines differ in what they take, and the host may be at fault all the same.
func (f flaw) explains(err error) bool {
	var e *Error
	return errors.As(err, &e) &&
		!slices.ContainsFunc(f.words, func(w string) bool { return !strings.Contains(e.Message, w) })
}

// refusal is the end of a load that the engine ended with err for this flaw.
func (f flaw) refusal(v *image.Verified, err error) error {
	return &image.Error{
		Kind: image.Refused, Ref: v.Reference().String(), Part: f.part,
		Err:  fmt.Errorf("it holds %s; the engine doesn't unpack that: %v", f.what, err),
		Help: []string{"approve the digest of an image that is built without it"},
	}
}

// flaws reads the tar of a layer and returns its flaws, limit at most.
func flaws(r io.Reader, part string, limit int) (found []flaw) {
	seed := maphash.MakeSeed()
	twice := false
	there := map[uint64]bool{} // names; whether an entry has it, and not only one below it
	id := func(name string) uint64 { return maphash.String(seed, name) }
	isThere := func(name string) bool { _, ok := there[id(name)]; return ok }
	see := func(name string, entry bool) {
		for ; len(there) < maxSeen && (entry || name != "/" && !isThere(name)); name = path.Dir(name) {
			there[id(name)] = entry
			entry = false
		}
	}
	for t := tar.NewReader(r); len(found) < limit; {
		h, err := t.Next()
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
			return append(found, flaw{part, "a tar that is damaged", []string{err.Error()}})
		}
		if err != nil {
			return found
		}
		name := path.Clean("/" + h.Name)
		add := func(what string, words ...string) {
			if len(h.Name)+len(h.Linkname) > maxNames {
				return
			}
			found = append(found, flaw{part, fmt.Sprintf("%.200q, %s", name[1:], what), words})
		}
		dir, base := path.Split(name)
		target := path.Clean("/" + h.Linkname)
		hidden, isWhiteout := whitedOut(dir, base)
		switch {
		case len(base) > maxName:
			add("a name of more than 255 bytes", syscall.ENAMETOOLONG.Error())
		case isOutside(h.Name):
			add("a name out of the image", "invalid entry name", h.Name)
		case base == ".wh.":
			const what = "a whiteout of nothing"
			add(what, "whiteout", base)
			add(what, fmt.Sprintf("mknod(%q, ", hidden), syscall.EEXIST.Error())
		case isWhiteout && isThere(hidden):
			const what = "a whiteout of what the layer itself holds"
			add(what, "whiteout", name[1:], syscall.EEXIST.Error())
			// Classic stores', up to 26 and later.
			add(what, fmt.Sprintf("mknod(%q, ", hidden), syscall.EEXIST.Error())
			add(what, fmt.Sprintf("mknod('%s', ", hidden[1:]), syscall.EEXIST.Error())
		case !slices.Contains(knownTypes(), h.Typeflag):
			add(fmt.Sprintf("an entry of type %q", h.Typeflag),
				fmt.Sprintf("unhandled tar header type %d", h.Typeflag))
		case h.Typeflag == tar.TypeLink:
			if isOutside(h.Linkname) {
				add("a hard link out of the image", "invalid hardlink target", h.Linkname)
			}
			if (target == name || !isThere(target)) && len(there) < maxSeen {
				add("a hard link to what the layer doesn't hold before it",
					"link", target[1:]+" ", name[1:]+": "+syscall.ENOENT.Error())
			}
		}
		for record := range h.PAXRecords {
			attribute, ok := strings.CutPrefix(record, "SCHILY.xattr.")
			namespace, _, _ := strings.Cut(attribute, ".")
			switch {
			case !ok:
			case !slices.Contains(namespaces(), namespace): // no file system has it
				add(fmt.Sprintf("an attribute that Linux doesn't know, %.200q", attribute),
					"xattr", attribute, syscall.ENOTSUP.Error())
			case h.Typeflag == tar.TypeSymlink: // which an engine follows
				add(fmt.Sprintf("a symbolic link with an attribute, %.200q", attribute),
					"xattr", attribute, syscall.ENOENT.Error())
			}
		}
		if there[id(name)] && !twice { // which a classic store doesn't take
			twice = true // it says no more than that
			add("which is there twice", "duplicates of file paths not supported")
		}
		see(name, true)
		if isWhiteout && !isThere(hidden) {
			see(hidden, false) // by a device that hides what lies below
		}
	}
	return found
}

// whitedOut returns what an entry hides that is a whiteout: its own directory, if it names nothing.
func whitedOut(dir, base string) (hidden string, ok bool) {
	name, ok := strings.CutPrefix(base, ".wh.")
	return path.Join(dir, name), ok && !strings.HasPrefix(name, ".wh.")
}

// isOutside reports whether a name leads out of the tree that it is in.
func isOutside(name string) bool {
	clean := path.Clean(name)
	return clean == ".." || strings.HasPrefix(clean, "../")
}

// misnamed is the flaw of a layer, which begins with magic, that is packed in another way than its
// type says: a containerd store reads as a tar what is called one, and engines before 26 read zstd so.
func misnamed(v *image.Verified, layer int, magic []byte) (found []flaw) {
	l := v.Layers()[layer]
	var packed string
	switch {
	case strings.HasSuffix(string(l.MediaType), ".tar") && l.Digest != l.DiffID:
		packed = "what is packed"
	case !strings.HasSuffix(string(l.MediaType), "zstd") && bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		packed = "zstd"
	default:
		return nil
	}
	for _, says := range []error{tar.ErrHeader, io.ErrUnexpectedEOF} {
		found = append(found, flaw{v.LayerPart(layer),
			fmt.Sprintf("%s, under the type %q", packed, l.MediaType), []string{says.Error()}})
	}
	return found
}

// namespaces are those of the attributes that Linux knows.
func namespaces() []string { return []string{"security", "system", "trusted", "user"} }

// knownTypes are the types of entries that every engine unpacks.
func knownTypes() []byte {
	return []byte{
		tar.TypeReg, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir,
		tar.TypeFifo, tar.TypeXGlobalHeader,
	}
}
