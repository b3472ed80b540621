package launchtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// LayeredImage is an honest image whose files, or whose way of packing them, few build tools make.
// What it holds lies below a folder of its own,
// so that the layers of several can be stacked.
type LayeredImage struct {
	Name   string
	Layers []OddLayer // the lowest first
	Lowest bool       // it is odd only where nothing lies below it
}

// OddLayer is a layer as a registry has it.
type OddLayer struct {
	MediaType types.MediaType
	Blob      []byte
	Tar       []byte // what Blob unpacks to
}

// PushLayers stores an image of these layers in a registry.
func (r *Registry) PushLayers(repository string, layers []OddLayer) (name.Digest, error) {
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Layers: []v1.Descriptor{}}
	config := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH,
		Created: v1.Time{Time: imageTime()},
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}}}
	for _, l := range layers {
		digest := must(r.PushBlob(repository, l.Blob))
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: l.MediaType,
			Digest: digest, Size: int64(len(l.Blob))})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, hashOf(l.Tar))
	}
	data := must(json.Marshal(config))
	manifest.Config = v1.Descriptor{MediaType: types.OCIConfigJSON,
		Digest: must(r.PushBlob(repository, data)), Size: int64(len(data))}
	return r.PushManifest(repository, must(json.Marshal(manifest)))
}

// BaseLayer is an ordinary layer for odd ones to lie on.
func BaseLayer() []OddLayer {
	return []OddLayer{gzipped(layer(dir("base"), file("base/a", "1")))}
}

// odd is a LayeredImage of these tars, each packed as gzip.
func odd(name string, tars ...[]byte) LayeredImage {
	o := LayeredImage{Name: name}
	for _, t := range tars {
		o.Layers = append(o.Layers, gzipped(t))
	}
	return o
}

func gzipped(tar []byte) OddLayer {
	return OddLayer{types.OCILayer, gzipMember(tar, gzip.Header{}), tar}
}

func gzipMember(data []byte, header gzip.Header) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Header = header
	must(w.Write(data))
	must(0, w.Close())
	return buf.Bytes()
}

func zstdFrame(data []byte, options ...zstd.EOption) []byte {
	w := must(zstd.NewWriter(nil, append(options, zstd.WithEncoderConcurrency(1))...))
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// skippable is a zstd frame that every reader has to skip.
func skippable(data string) []byte {
	return append([]byte{0x50, 0x2a, 0x4d, 0x18, byte(len(data)), 0, 0, 0}, data...)
}

// entry is an entry of a tar: a header and what follows it, or bytes that no writer of tars makes.
type entry struct {
	tar.Header
	data string
	raw  []byte
}

func file(name, data string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644,
		ModTime: imageTime()}, data: data}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755,
		ModTime: imageTime()}}
}

func symlink(name, target string) entry  { return like(file(name, ""), tar.TypeSymlink, target) }
func hardlink(name, target string) entry { return like(file(name, ""), tar.TypeLink, target) }

func like(e entry, kind byte, target string) entry {
	e.Typeflag, e.Linkname = kind, target
	return e
}

// changed is an entry with another header.
func changed(e entry, change func(*tar.Header)) entry {
	change(&e.Header)
	return e
}

func mode(e entry, mode int64) entry {
	return changed(e, func(h *tar.Header) { h.Mode = mode })
}

func owned(e entry, uid, gid int) entry {
	return changed(e, func(h *tar.Header) { h.Uid, h.Gid, h.Format = uid, gid, tar.FormatGNU })
}

func at(e entry, at time.Time) entry {
	return changed(e, func(h *tar.Header) { h.ModTime, h.Format = at, tar.FormatPAX })
}

func xattr(e entry, name, value string) entry {
	return changed(e, func(h *tar.Header) {
		h.Format = tar.FormatPAX
		h.PAXRecords = map[string]string{"SCHILY.xattr." + name: value}
	})
}

func device(name string, kind byte, major, minor int64) entry {
	return changed(file(name, ""), func(h *tar.Header) {
		h.Typeflag, h.Devmajor, h.Devminor = kind,
			major, minor
	})
}

// raw is a hand-made entry: a header of the old form, changed in its bytes, and what follows it.
func raw(name string, kind byte, size int, data string, change func(header []byte)) entry {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	copy(h[136:], fmt.Sprintf("%011o\x00", imageTime().Unix()))
	h[156] = kind
	copy(h[257:], "ustar\x0000")
	if change != nil {
		change(h)
	}
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return entry{raw: append(h, padded(data)...)}
}

// padded fills the last block of an entry's content.
func padded(data string) []byte {
	return append([]byte(data), make([]byte, -len(data)&511)...)
}

// extended is an extended header with these records, each a key and its value.
func extended(kind byte, records ...string) entry {
	var text strings.Builder
	for i := 0; i < len(records); i += 2 {
		record := " " + records[i] + "=" + records[i+1] + "\n"
		length := len(record)
		for length != len(record)+len(fmt.Sprint(length)) {
			length = len(record) + len(fmt.Sprint(length))
		}
		fmt.Fprint(&text, length, record)
	}
	return raw("extended", kind, text.Len(), text.String(), nil)
}

// openTar returns a tar without its end.
func openTar(entries ...entry) []byte {
	var buf bytes.Buffer
	for _, e := range entries {
		if e.raw != nil {
			buf.Write(e.raw)
			continue
		}
		w := tar.NewWriter(&buf)
		e.Size = int64(len(e.data))
		must(0, w.WriteHeader(&e.Header))
		must(w.Write([]byte(e.data)))
		must(0, w.Flush())
	}
	return buf.Bytes()
}

func layer(entries ...entry) []byte { return append(openTar(entries...), make([]byte, 1024)...) }

// OddLayers returns images that people have met, or could. Whether an engine takes each of them is
// the engine's to say.
func OddLayers() []LayeredImage {
	return append(append(oddFiles(), oddNames()...), oddPackings()...)
}

// oddFiles are layers whose entries are of a kind that few layers have.
func oddFiles() []LayeredImage {
	long := strings.Repeat("long/", 60)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	rooted := "\x01\x00\x00\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x00\x00"
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	return []LayeredImage{
		odd("whiteouts", layer(dir("whiteouts"), file("whiteouts/file", "1"), dir("whiteouts/dir"),
			file("whiteouts/dir/in", "2"), symlink("whiteouts/link", "file"),
			file("whiteouts/stays", "3")),
			layer(file("whiteouts/.wh.file", ""), file("whiteouts/.wh.dir", ""),
				file("whiteouts/.wh.link", ""), file("whiteouts/.wh.never", ""))),
		odd("whiteout and file of one name", layer(file("wh-both/a", "old"),
			file("wh-both/b", "old"), dir("wh-both/c"), file("wh-both/c/in", "old")),
			layer(file("wh-both/.wh.a", ""), file("wh-both/a", "new"), file("wh-both/b", "new"),
				file("wh-both/.wh.b", ""), file("wh-both/.wh.c", ""), dir("wh-both/c"),
				file("wh-both/c/new", "new"))),
		odd("whiteout in its own layer", layer(file("wh-own/a", "1"), file("wh-own/.wh.a", ""))),
		odd("whiteout twice", layer(file("wh-twice/a", "1")),
			layer(file("wh-twice/.wh.a", ""), file("wh-twice/.wh.a", ""))),
		odd("whiteout of a directory that has no entry", layer(file("wh-bare/d/a", "1"),
			file("wh-bare/.wh.d", ""))),
		odd("whiteout that is a directory", layer(file("wh-dir/a", "1")),
			layer(dir("wh-dir/.wh.a"))),
		odd("whiteout without a name", layer(file("wh-none/a", "1")),
			layer(file("wh-none/.wh.", ""))),
		odd("opaque directory", layer(dir("opaque"), file("opaque/below", "1"), dir("opaque/d"),
			file("opaque/d/below", "1")), layer(dir("opaque"), file("opaque/.wh..wh..opq", ""),
			file("opaque/above", "2"))),
		odd("opaque directory, told last", layer(dir("opaque-last"),
			file("opaque-last/below", "1")), layer(dir("opaque-last"),
			file("opaque-last/above", "2"), file("opaque-last/.wh..wh..opq", ""))),
		odd("opaque directory that was not there", layer(dir("opaque-new"),
			file("opaque-new/.wh..wh..opq", ""), file("opaque-new/a", "1"))),
		odd("opaque directory without an entry", layer(dir("opaque-bare"),
			file("opaque-bare/below", "1")), layer(file("opaque-bare/.wh..wh..opq", ""))),
		odd("metadata of aufs", layer(dir("aufs"), file("aufs/a", "1")),
			layer(file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), dir(".wh..wh.orph"))),
		odd("hard link into an earlier layer", layer(file("hard/a", "1")),
			layer(hardlink("hard/b", "hard/a"))),
		odd("hard links of one layer", layer(file("hards/a", "1"), hardlink("hards/b", "hards/a"),
			hardlink("hards/c", "hards/b"))),
		odd("hard link to nothing", layer(dir("hard-none"),
			hardlink("hard-none/a", "hard-none/nothing"))),
		odd("hard link before its target", layer(dir("hard-early"),
			hardlink("hard-early/b", "hard-early/a"), file("hard-early/a", "1"))),
		odd("hard link to itself", layer(dir("hard-self"), file("hard-self/a", "1"),
			hardlink("hard-self/a", "hard-self/a"))),
		odd("hard link by an absolute name", layer(file("hard-abs/a", "1"),
			hardlink("hard-abs/b", "/hard-abs/a"))),
		odd("hard link by a dotted name", layer(file("hard-dot/a", "1"),
			hardlink("hard-dot/b", "./hard-dot/a"))),
		odd("hard link out of the tree", layer(dir("hard-out"),
			hardlink("hard-out/a", "../../../../etc/hostname"))),
		odd("hard link to a symbolic link", layer(dir("hard-sym"), symlink("hard-sym/a", "nothing"),
			hardlink("hard-sym/b", "hard-sym/a"))),
		odd("hard link to a device", layer(dir("hard-dev"),
			device("hard-dev/a", tar.TypeChar, 1, 3), hardlink("hard-dev/b", "hard-dev/a"))),
		odd("hard link to a directory", layer(dir("hard-dir"), dir("hard-dir/a"),
			hardlink("hard-dir/b", "hard-dir/a"))),
		odd("hard link through a symbolic link", layer(dir("hard-thru"), dir("hard-thru/d"),
			file("hard-thru/d/a", "1"), symlink("hard-thru/s", "d"),
			hardlink("hard-thru/b", "hard-thru/s/a"))),
		odd("hard link to what is whited out", layer(file("hard-wh/a", "1")),
			layer(hardlink("hard-wh/b", "hard-wh/a"), file("hard-wh/.wh.a", ""))),
		odd("symbolic links", layer(dir("symbolic"), symlink("symbolic/absolute", "/etc/passwd"),
			symlink("symbolic/loop", "loop"), symlink("symbolic/out", "../../../x"),
			symlink("symbolic/long", long), mode(symlink("symbolic/owned", "x"), 0))),
		odd("file below a symbolic link", layer(dir("below"), dir("below/d"),
			symlink("below/s", "d"), file("below/s/a", "1"))),
		odd("file below a symbolic link of an earlier layer",
			layer(dir("below2"), dir("below2/d"), symlink("below2/s", "d")),
			layer(file("below2/s/a", "1"))),
		odd("file below a symbolic link to nothing", layer(dir("below3"),
			symlink("below3/s", "nothing"), file("below3/s/a", "1"))),
		odd("file below a symbolic link out of the tree", layer(dir("below4"),
			symlink("below4/s", "/../../below4-out"), file("below4/s/a", "1"))),
		odd("file below a file", layer(dir("below5"), file("below5/f", "1"),
			file("below5/f/a", "1"))),
		odd("attributes of users", layer(dir("user"), xattr(file("user/a", "1"), "user.a", "some"),
			xattr(dir("user/d"), "user.d", "dir"), xattr(file("user/binary", "1"), "user.b",
				"\x00\xff\n="), xattr(file("user/empty", "1"), "user.e", ""))),
		odd("capabilities", layer(dir("cap"),
			xattr(mode(file("cap/a", "1"), 0o755), "security.capability", capability),
			xattr(mode(file("cap/b", "1"), 0o755), "security.capability", rooted))),
		odd("capabilities that are cut", layer(dir("capcut"),
			xattr(file("capcut/a", "1"), "security.capability", "x"))),
		odd("access list", layer(dir("acl"),
			xattr(mode(file("acl/a", "1"), 0o674), "system.posix_acl_access", acl))),
		odd("trusted attribute", layer(dir("trusted"),
			xattr(file("trusted/a", "1"), "trusted.a", "1"))),
		odd("attribute of overlay", layer(dir("overlay"),
			xattr(dir("overlay/d"), "trusted.overlay.opaque", "y"))),
		odd("security label", layer(dir("selinux"),
			xattr(file("selinux/a", "1"), "security.selinux", "system_u:object_r:etc_t:s0"))),
		odd("attribute of an unknown kind", layer(dir("attr"),
			xattr(file("attr/a", "1"), "nothing.a", "1"))),
		odd("attribute of a symbolic link", layer(dir("attr-link"),
			xattr(symlink("attr-link/a", "x"), "user.a", "1"))),
		odd("attribute in libarchive's form", layer(dir("libarchive"),
			changed(file("libarchive/a", "1"), func(h *tar.Header) {
				h.PAXRecords = map[string]string{"LIBARCHIVE.xattr.user.a": "c29tZQ=="}
			}))),
		odd("devices", layer(dir("devices"), device("devices/null", tar.TypeChar, 1, 3),
			device("devices/disk", tar.TypeBlock, 8, 1), device("devices/fifo", tar.TypeFifo, 0,
				0))),
		odd("device of numbers 0, which overlay takes for a whiteout",
			layer(dir("zero"), device("zero/a", tar.TypeChar, 0, 0))),
		odd("modes", layer(mode(dir("modes"), 0o1777), mode(file("modes/suid", "1"), 0o4755),
			mode(file("modes/sgid", "1"), 0o2755), mode(file("modes/sticky", "1"), 0o1644),
			mode(file("modes/none", "1"), 0), mode(dir("modes/shut"), 0),
			mode(dir("modes/sgid-d"), 0o2755), mode(file("modes/sgid-d/in", "1"), 0o644))),
		odd("modes with the bits of the type", layer(mode(dir("modes-type"), 0o40755),
			mode(file("modes-type/a", "1"), 0o100644))),
		odd("mode of a link", layer(dir("modes-link"), mode(file("modes-link/a", "1"), 0o600),
			mode(hardlink("modes-link/b", "modes-link/a"), 0o777))),
		odd("owners", layer(dir("owners"), owned(file("owners/a", "1"), 65534, 65534),
			owned(file("owners/suid", "1"), 1000, 1000),
			mode(owned(file("owners/suid2", "1"), 1000, 1000), 0o4755),
			owned(symlink("owners/s", "x"), 1000, 1000), owned(dir("owners/d"), 1000, 1000),
			owned(file("owners/large", "1"), 1<<31, 1<<31),
			owned(file("owners/larger", "1"), 1<<32-2, 1<<32-2))),
		odd("owner of -1", layer(dir("owner-1"), owned(file("owner-1/a", "1"), 1<<32-1, 1<<32-1))),
		odd("owner below 0", layer(dir("owner-neg"), owned(file("owner-neg/a", "1"), -2, -2))),
		odd("owner over 32 bits", layer(dir("owner-over"),
			owned(file("owner-over/a", "1"), 1<<33, 1<<33))),
		odd("owner by name only", layer(dir("owner-name"),
			changed(file("owner-name/a", "1"), func(h *tar.Header) {
				h.Uname, h.Gname = "daemon",
					"daemon"
			}))),
		odd("times", layer(dir("times"),
			at(file("times/fraction", "1"), imageTime().Add(123456789)),
			at(file("times/zero", "1"), time.Unix(0, 0)), at(file("times/before", "1"),
				time.Unix(-86400, 0)), at(file("times/before-fraction", "1"), time.Unix(-86400, 500)),
			at(symlink("times/link", "x"), time.Unix(1000, 5)),
			at(dir("times/dir"), time.Unix(1000, 5)), file("times/dir/in", "1"))),
		odd("time of the next century", layer(dir("times-2"),
			at(file("times-2/a", "1"), time.Unix(1<<32+5, 0)))),
		odd("time that no file has", layer(dir("times-3"),
			at(file("times-3/a", "1"), time.Unix(1<<40, 0)))),
		odd("access and change times", layer(dir("times-4"),
			changed(file("times-4/a", "1"), func(h *tar.Header) {
				h.AccessTime, h.ChangeTime, h.Format = time.Unix(1, 2), time.Unix(3, 4), tar.FormatPAX
			}))),
		odd("file twice", layer(dir("twice"), file("twice/a", "first"), file("twice/a", "second"),
			dir("twice"), mode(dir("twice"), 0o700))),
		odd("file, then directory", layer(dir("then-d"), file("then-d/a", "1"), dir("then-d/a"),
			file("then-d/a/in", "1"))),
		odd("directory, then file", layer(dir("then-f"), dir("then-f/a"), file("then-f/a/in", "1"),
			file("then-f/a", "1"))),
		odd("symbolic link, then file", layer(dir("then-s"), file("then-s/target", "1"),
			symlink("then-s/a", "target"), file("then-s/a", "2"))),
		odd("directory, then symbolic link", layer(dir("then-ds"), dir("then-ds/a"),
			file("then-ds/a/in", "1"), symlink("then-ds/a", "b"))),
		odd("kinds that change from layer to layer", layer(dir("kinds"), file("kinds/f", "1"),
			dir("kinds/d"), file("kinds/d/in", "1"), symlink("kinds/s", "d"), dir("kinds/e")),
			layer(dir("kinds/f"), file("kinds/f/in", "1"), file("kinds/d", "1"), dir("kinds/s"),
				file("kinds/s/in", "1"), symlink("kinds/e", "f"))),
		odd("mode of a directory in a later layer", layer(dir("parents"),
			mode(owned(dir("parents/d"), 5, 6), 0o750), file("parents/d/a", "1"),
			mode(dir("parents/e"), 0o700)), layer(file("parents/d/b", "2"),
			mode(dir("parents/e"), 0o777))),
		odd("sparse file of GNU's old form", layer(dir("sparse"),
			raw("sparse/a", 'S', 1024, strings.Repeat("x", 1024), func(h []byte) {
				copy(h[257:], "ustar  \x00")
				copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00%011o\x00%011o\x00", 0, 512, 1<<20-512,
					512))
				copy(h[483:], fmt.Sprintf("%011o\x00", 1<<20))
			}))),
		odd("sparse file of form 0.1", layer(dir("sparse-01"),
			extended('x', "GNU.sparse.size", "1048576", "GNU.sparse.numblocks", "1",
				"GNU.sparse.map", "1024,512", "GNU.sparse.name", "sparse-01/a"),
			raw("sparse-01/GNUSparseFile.0/a", '0', 512, strings.Repeat("x", 512), nil))),
		odd("sparse file of form 1.0", layer(dir("sparse-10"),
			extended('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name",
				"sparse-10/a", "GNU.sparse.realsize", "1048576"),
			raw("sparse-10/GNUSparseFile.0/a", '0', 1024,
				string(padded("1\n1024\n512\n"))+strings.Repeat("x", 512), nil))),
		odd("entry of an unknown kind", layer(dir("kind-z"), raw("kind-z/a", 'Z', 0, "", nil))),
		odd("contiguous file", layer(dir("kind-7"), raw("kind-7/a", '7', 1, "1", nil))),
		odd("volume header", layer(raw("label", 'V', 0, "", nil), dir("kind-v"))),
		odd("directory of GNU's dump", layer(raw("kind-d/", 'D', 4, "Ya\x00\x00", nil))),
		odd("header before POSIX", layer(raw("old/", 0, 0, "", func(h []byte) { clear(h[257:]) }),
			raw("old/a", 0, 1, "1", func(h []byte) { clear(h[257:]) }))),
		odd("global header", layer(extended('g', "comment", "of git archive", "path", "not-this"),
			dir("global"), file("global/a", "1"))),
		odd("extended header without an entry", layer(dir("lonely"),
			extended('x', "path", "lonely/a"))),
		odd("unknown records", layer(dir("records"),
			changed(file("records/a", "1"),
				func(h *tar.Header) { h.PAXRecords = map[string]string{"VENDOR.something": "1"} }))),
	}
}

// oddNames are layers whose entries have names that few have.
func oddNames() []LayeredImage {
	deep := strings.Repeat("deep/", 100)
	return []LayeredImage{
		odd("absolute names", layer(dir("/absolute"), file("/absolute/a", "1"))),
		odd("dotted names", layer(dir("."), dir("./dotted"), file("./dotted/a", "1"))),
		odd("the root's own entry", layer(mode(owned(dir("."), 3, 4), 0o711), dir("root-entry"))),
		odd("the root as a slash", layer(raw("/", '5', 0, "", nil), dir("root-slash"))),
		odd("names with needless parts", layer(dir("needless"), file("needless//a", "1"),
			file("needless/./b", "1"), file("needless/x/../c", "1"))),
		odd("name out of the tree", layer(file("../out", "1"))),
		odd("name out of the tree, deeper", layer(dir("out"), file("out/../../../../out-2", "1"))),
		odd("file with a slash at its end", layer(dir("slash"), raw("slash/a/", '0', 1, "1", nil))),
		odd("entry without a name", layer(raw("", '0', 1, "1", nil), dir("nameless"))),
		odd("directories that have no entry", layer(file("missing/b/c/d", "1"))),
		odd("names that are no words", layer(dir("words"), file("words/back\\slash", "1"),
			file("words/line\nbreak", "1"), file("words/ü€😀", "1"), file("words/ space ", "1"),
			file("words/-rf", "1"), raw("words/latin-\xe9", '0', 1, "1", nil),
			file("words/.hidden", "1"), file("words/a:b*?", "1"))),
		odd("names of 255 bytes", layer(dir("n255"), file("n255/"+strings.Repeat("n", 255), "1"))),
		odd("name of 256 bytes", layer(dir("n256"), file("n256/"+strings.Repeat("n", 256), "1"))),
		odd("long names in extended headers",
			layer(changed(file("pax/"+deep+"a", "1"),
				func(h *tar.Header) { h.Format = tar.FormatPAX }),
				changed(symlink("pax/s", deep), func(h *tar.Header) { h.Format = tar.FormatPAX }))),
		odd("long names in GNU's form",
			layer(changed(file("gnu/"+deep+"a", "1"),
				func(h *tar.Header) { h.Format = tar.FormatGNU }),
				changed(symlink("gnu/s", deep), func(h *tar.Header) { h.Format = tar.FormatGNU }))),
		odd("names in two fields",
			layer(changed(file("ustar/"+strings.Repeat("part/", 20)+strings.Repeat("n", 90), "1"),
				func(h *tar.Header) { h.Format = tar.FormatUSTAR }))),
		odd("name in another character set", layer(dir("charset"),
			extended('x', "hdrcharset", "BINARY", "path", "charset/\xff\xfe"),
			raw("charset/a", '0', 1, "1", nil))),
		odd("names that differ in letter case", layer(dir("case"), file("case/a", "1"),
			file("case/A", "2"))),
		odd("files that the engine mounts over", layer(dir("etc"), file("etc/hosts", "1"),
			symlink("etc/resolv.conf", "/run/nothing"), file("proc/a", "1"),
			file("dev/a", "1"))),
	}
}

// What bzip2 and xz make of two layers: Go's library can't.
const (
	bzip2Layer = "QlpoOTFBWSZTWT9yW9sAAFdbgOmAQAL/gADAcCBeEAgIIAByEqmjBDExAGagVSRqY0jT0R6hoNOLUzrJ" +
		"OHTCIRXbdc5mTTGjKESRJu2azQmkFvF4tNxaajWp5XSVXuqTSRiwXM4cLDex2IebWPRBC4hAD8XckU4UJA/clvbA"
	xzLayer = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4An/AFRdADgLSwfhshkVaEh52Au11DYFbtd4OwNQGG4PFY0O" +
		"1AID2sLghzw0MW/K9BbrVA/XW3vWSJl4AWtqKUJmmUhNVYFBzfra191v4+fJqYQSJW1QYB/WAAAmVZt38aTDUwAB" +
		"cIAUAAAARqnqprHEZ/sCAAAAAARZWg=="
)

// oddPackings are layers that are packed as few are.
func oddPackings() []LayeredImage {
	plain := func(name string) []byte {
		return layer(dir(name), file(name+"/a", strings.Repeat("content of "+name+"\n", 2000)))
	}
	packed := func(title string, mediaType types.MediaType, content []byte,
		pack func([]byte) []byte) LayeredImage {
		return LayeredImage{Name: title, Layers: []OddLayer{{mediaType, pack(content), content}}}
	}
	one := func(b []byte) []byte { return gzipMember(b, gzip.Header{}) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	many := LayeredImage{Name: "many layers"}
	for i := range 100 {
		many.Layers = append(many.Layers, gzipped(layer(file(fmt.Sprintf("many/%d", i), "1"))))
	}
	twice := gzipped(layer(dir("again"), file("again/a", "1")))
	empty := gzipped(make([]byte, 1024))
	return []LayeredImage{
		many,
		{Name: "a layer twice",
			Layers: []OddLayer{twice, gzipped(layer(file("again/.wh.a", ""))), twice}},
		{Name: "a layer twice in a row", Layers: []OddLayer{twice, twice}},
		{Name: "layers without a file", Layers: []OddLayer{empty, empty}},
		{Name: "nothing but a layer without a file", Lowest: true,
			Layers: []OddLayer{gzipped(make([]byte, 10240))}},
		packed("layer of no bytes", types.OCILayer, nil, one),
		packed("layer that isn't compressed", types.OCIUncompressedLayer, plain("p-plain"),
			bytes.Clone),
		packed("gzip of two members", types.OCILayer, plain("p-members"),
			func(b []byte) []byte { return join(one(b[:1000]), one(b[1000:])) }),
		packed("gzip with an empty member", types.OCILayer, plain("p-empty"),
			func(b []byte) []byte { return join(one(nil), one(b), one(nil)) }),
		packed("gzip with all header fields", types.OCILayer, plain("p-fields"),
			func(b []byte) []byte {
				return gzipMember(b, gzip.Header{Name: "layer.tar", Comment: "a comment",
					Extra: []byte("AB\x02\x00xy"), ModTime: imageTime(), OS: 3})
			}),
		packed("gzip that stores", types.OCILayer, plain("p-stored"), func(b []byte) []byte {
			var buf bytes.Buffer
			w := must(gzip.NewWriterLevel(&buf, gzip.NoCompression))
			must(w.Write(b))
			must(0, w.Close())
			return buf.Bytes()
		}),
		packed("gzip with zeros after it", types.OCILayer, plain("p-zeros"),
			func(b []byte) []byte { return join(one(b), make([]byte, 512)) }),
		packed("gzip with junk after it", types.OCILayer, plain("p-junk"),
			func(b []byte) []byte { return join(one(b), []byte("junk")) }),
		packed("gzip that is cut", types.OCILayer, plain("p-cut"),
			func(b []byte) []byte { g := one(b); return g[:len(g)-4] }),
		packed("zstd", types.OCILayerZStd, plain("z-one"),
			func(b []byte) []byte { return zstdFrame(b) }),
		packed("zstd of two frames", types.OCILayerZStd, plain("z-frames"),
			func(b []byte) []byte { return join(zstdFrame(b[:1000]), zstdFrame(b[1000:])) }),
		packed("zstd with frames to skip", types.OCILayerZStd, plain("z-skip"),
			func(b []byte) []byte {
				return join(zstdFrame(b[:1000]), skippable("between"), zstdFrame(b[1000:]),
					skippable("behind"))
			}),
		packed("zstd that begins with a frame to skip", types.OCILayerZStd, plain("z-first"),
			func(b []byte) []byte { return join(skippable("before"), zstdFrame(b)) }),
		packed("zstd with an empty frame", types.OCILayerZStd, plain("z-empty"),
			func(b []byte) []byte {
				return join(zstdFrame(b),
					zstdFrame(nil, zstd.WithZeroFrames(true)))
			}),
		packed("zstd without checksum", types.OCILayerZStd, plain("z-crc"),
			func(b []byte) []byte { return zstdFrame(b, zstd.WithEncoderCRC(false)) }),
		packed("zstd with junk after it", types.OCILayerZStd, plain("z-junk"),
			func(b []byte) []byte { return join(zstdFrame(b), []byte("junk")) }),
		packed("gzip that is called a tar", types.OCIUncompressedLayer, plain("m-gzip"), one),
		packed("tar that is called gzip", types.OCILayer, plain("m-tar"), bytes.Clone),
		packed("zstd that is called gzip", types.OCILayer, plain("m-zstd"),
			func(b []byte) []byte { return zstdFrame(b) }),
		packed("gzip that is called zstd", types.OCILayerZStd, plain("m-gz"), one),
		packed("zstd of a large window", types.OCILayerZStd, plain("z-window"),
			func(b []byte) []byte {
				var buf bytes.Buffer
				w := must(zstd.NewWriter(&buf, zstd.WithWindowSize(16<<20),
					zstd.WithEncoderConcurrency(1)))
				must(w.Write(b[:1000]))
				must(0, w.Flush()) // or its size would say that it needs no such window
				must(w.Write(b[1000:]))
				must(0, w.Close())
				return buf.Bytes()
			}),
		packed("bzip2 that is called gzip", types.OCILayer,
			layer(raw("p-bzip2/", '5', 0, "", nil), raw("p-bzip2/a", '0', 1, "1", nil)),
			func([]byte) []byte { return must(base64.StdEncoding.DecodeString(bzip2Layer)) }),
		packed("xz that is called gzip", types.OCILayer,
			layer(raw("p-xz/", '5', 0, "", nil), raw("p-xz/a", '0', 1, "1", nil)),
			func([]byte) []byte { return must(base64.StdEncoding.DecodeString(xzLayer)) }),
		packed("tar with zeros after its end", types.OCILayer,
			append(plain("t-zeros"), make([]byte, 10240)...), one),
		packed("tar with half a block of zeros after its end", types.OCILayer,
			append(plain("t-half"), make([]byte, 100)...), one),
		packed("tar with junk after its end", types.OCILayer,
			append(plain("t-junk"), strings.Repeat("junk", 1000)...), one),
		packed("tar with a tar after its end", types.OCILayer,
			append(plain("t-tar"), plain("t-second")...), one),
		packed("tar without an end", types.OCILayer, openTar(dir("t-open"), file("t-open/a", "1")),
			one),
		packed("tar with half an end", types.OCILayer,
			append(openTar(dir("t-half"), file("t-half/a", "1")), make([]byte, 512)...), one),
		packed("tar that ends within a file", types.OCILayer,
			openTar(dir("t-cut"), file("t-cut/a", strings.Repeat("1", 3000)))[:2000], one),
		packed("tar that ends within the padding", types.OCILayer,
			openTar(dir("t-pad"), file("t-pad/a", "123"))[:1027], one),
		packed("tar with a wrong checksum", types.OCILayer,
			append(openTar(dir("t-sum")), bytes.Repeat([]byte("x"), 512)...), one),
		packed("large tar of zeros", types.OCILayer, layer(dir("t-bomb"),
			file("t-bomb/a", strings.Repeat("\x00", 4<<20))), one),
	}
}
