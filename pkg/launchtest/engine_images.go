package launchtest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"tee-launcher/pkg/digest"
)

// imageStore is one of the engine's two ways of keeping images. Its methods are called with the
// engine's lock held.
type imageStore interface {
	// load takes in what readTar found, all or nothing but for what the real store leaves behind.
	load(r *engineRequest, archive *archive, say *loadAnswer) error
	// aborted is told of a tar that never arrived whole.
	aborted(archive *archive)
	// resolve returns the ID behind a reference, or a refusal with status 404.
	resolve(ref string) (string, error)
	// config returns what a container of the image runs with.
	config(id string) (*v1.ConfigFile, error)
	inspect(r *engineRequest, ref string) (map[string]any, error)
	// list returns the images that carry the labels.
	list(labels []string) []map[string]any
	remove(ref string, force bool) ([]map[string]string, error)
	// prune removes what nothing uses and carries the labels: dangling images, or with all every image
	// without a container.
	prune(all bool, labels []string) []map[string]string
	// clone returns a store of its own that holds the same.
	clone() imageStore
	// breakImage makes an image unusable without removing it.
	breakImage(id string)
	// fill leaves no room to unpack an image: until the next load, in a store that has images which
	// aren't unpacked.
	fill(id string)
	all() []ImageInfo
}

// ImageInfo is what an Engine tells of an image.
type ImageInfo struct {
	ID     string   // the digest of the config in the classic store, of manifest or index in the containerd store
	Names  []string // as RepoTags shows them
	Layers []string // diffIDs; nil if the image is broken
}

// Images returns the images, dangling ones included, in the order of their IDs.
func (e *Engine) Images() []ImageInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := e.images.all()
	slices.SortFunc(all, func(a, b ImageInfo) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// AddImage puts an image into the engine as somebody else's load does, under a name such as
// "other:latest" (none if empty), and returns its ID.
func (e *Engine) AddImage(img v1.Image, name string) (string, error) {
	var buf bytes.Buffer
	if err := WriteLoadTar(&buf, img, name); err != nil {
		return "", err
	}
	answer, err := e.call(http.MethodPost, "/images/load", buf.Bytes())
	if err != nil {
		return "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, hash := range []v1.Hash{must(img.Digest()), must(img.ConfigName())} {
		if id, err := e.images.resolve(hash.String()); err == nil {
			return id, nil
		}
	}
	return "", fmt.Errorf("the image was not loaded: %s", answer)
}

// WriteLoadTar writes an image in the one form that all engines load under its own digests: an OCI
// layout that is at the same time a docker-save archive.
func WriteLoadTar(w io.Writer, img v1.Image, name string) error {
	manifest, blobs := must(img.RawManifest()), imageBlobs(img)
	var paths []string
	for _, data := range blobs {
		paths = append(paths, blobPath(digestOf(data)))
	}
	last := len(paths) - 1
	item := map[string]any{"Config": paths[last], "Layers": paths[:last]}
	descriptor := v1.Descriptor{MediaType: must(img.MediaType()), Digest: hashOf(manifest),
		Size: int64(len(manifest))}
	if name != "" {
		descriptor.Annotations = map[string]string{"io.containerd.image.name": imageName(name)}
		item["RepoTags"] = []string{imageName(name)}
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{descriptor}}
	t := tar.NewWriter(w)
	for i, data := range append(blobs, manifest, must(json.Marshal([]any{item})),
		[]byte(`{"imageLayoutVersion":"1.0.0"}`),
		must(json.Marshal(index))) {
		name := append(paths, blobPath(digestOf(manifest)), "manifest.json", "oci-layout",
			"index.json")[i]
		err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)),
			Mode: 0o644})
		if err != nil {
			return err
		}
		if _, err := t.Write(data); err != nil {
			return err
		}
	}
	return t.Close()
}

func blobPath(hash string) string { return "blobs/" + strings.Replace(hash, ":", "/", 1) }

func digestOf(b []byte) string { return digest.Of(b).String() }

// hashOf is digestOf as go-containerregistry writes it.
func hashOf(b []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: digest.Of(b).Hex()} }

func (e *Engine) listImages(r *engineRequest) (any, error) {
	filters, err := r.filters("label")
	if err != nil {
		return nil, err
	}
	return e.images.list(filters["label"]), nil
}

func (e *Engine) inspectImage(r *engineRequest) (any, error) {
	doc, err := e.images.inspect(r, r.name)
	var refused *engineRefusal
	if errors.As(err, &refused) && !e.api.atLeast(42) {
		return nil, refusal(refused.status, "no such image: %s: %s", r.name, refused.message)
	}
	return doc, err
}

func (e *Engine) pruneImages(r *engineRequest) (any, error) {
	filters, err := r.filters("dangling", "label")
	if err != nil {
		return nil, err
	}
	all := len(filters["dangling"]) > 0 && !isTrue(filters["dangling"][0])
	deleted := e.images.prune(all, filters["label"])
	for _, d := range deleted {
		if id := d["Deleted"]; id != "" {
			e.record(r, "delete-image %s", id)
		}
	}
	return map[string]any{"ImagesDeleted": deleted, "SpaceReclaimed": 0}, nil
}

func (e *Engine) removeImage(r *engineRequest) (any, error) {
	deleted, err := e.images.remove(r.name, r.flag("force"))
	if err != nil {
		return nil, err
	}
	e.record(r, "delete-image %s", r.name)
	return deleted, nil
}

// loadAnswer is the stream of JSON lines that answers a load. Nothing is sent before its end: the
// real engines say nothing either before the whole tar is read.
type loadAnswer struct {
	lines  bytes.Buffer
	quiet  bool
	loaded []string // IDs
}

func (a *loadAnswer) line(doc any) {
	a.lines.Write(append(must(json.Marshal(doc)), "\r\n"...))
}

func (a *loadAnswer) stream(format string, args ...any) {
	a.line(map[string]string{"stream": fmt.Sprintf(format, args...)})
}

func (a *loadAnswer) progress(id string, total int) {
	for _, current := range []int{min(total, 32<<10), total} {
		if !a.quiet {
			a.line(map[string]any{"status": "Loading layer",
				"progressDetail": map[string]int{"current": current, "total": total}, "id": id})
		}
	}
}

// fail says it with both keys; engines send them in either order.
func (a *loadAnswer) fail(err error) {
	a.line(map[string]any{"errorDetail": map[string]string{"message": err.Error()},
		"error": err.Error()})
}

var errInjected = errors.New("error processing the image")

func (e *Engine) loadImage(w http.ResponseWriter, r *engineRequest) error {
	if _, err := r.platform(48); err != nil {
		return err
	}
	body := &loadBody{r: r.body, engine: e, counted: !r.foreign, limit: -1}
	if r.load == LoadDiskFull || r.load == LoadCut {
		body.limit = r.loadCut
	}
	if !r.foreign {
		e.mu.Lock()
		e.loads++
		e.mu.Unlock()
	}
	answer := &loadAnswer{quiet: !r.query.Has("quiet") || r.flag("quiet")}
	// An upload that is cut after the tar's end mark: 20.10 notices, later engines have all they need.
	archive, err := readTar(body, !e.o.Containerd && !e.api.atLeast(42))
	if errors.Is(err, errLoadLimit) && r.load == LoadDiskFull {
		// dockerd answers while the client still writes, which the client may take for a broken
		// connection. No test should depend on who is faster.
		_, _ = io.Copy(io.Discard, r.body)
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case r.session.Err() != nil:
		panic(http.ErrAbortHandler) // the daemon was killed
	case err != nil:
		e.images.aborted(archive)
		if errors.Is(err, errLoadLimit) && r.load == LoadCut {
			panic(http.ErrAbortHandler)
		}
		if errors.Is(err, errLoadLimit) {
			err = fmt.Errorf("write /%s: no space left on device", archive.reading)
		}
		answer.fail(err)
	case r.load == LoadErrorLine && r.loadSays != "":
		answer.fail(errors.New(r.loadSays))
	case r.load == LoadErrorLine:
		answer.fail(errInjected)
	case r.load == LoadErrorOnly:
		answer.line(map[string]any{"error": errInjected.Error()})
	case r.load == LoadErrorDetail:
		answer.line(map[string]any{"errorDetail": map[string]string{"message": errInjected.Error()}})
	case r.load == LoadSilent:
	default:
		if err := e.images.load(r, archive, answer); err != nil {
			answer.fail(err)
		}
		if len(answer.loaded) > 0 {
			e.record(r, "load")
		}
		e.afterLoad(r, answer)
	}
	w.Header().Set("Content-Type", "application/json")
	text := answer.lines.Bytes()
	if r.load == LoadTruncated {
		text = text[:len(text)-min(len(text), 10)]
	}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(text)
	return nil
}

// afterLoad does the faults that need an image.
func (e *Engine) afterLoad(r *engineRequest, answer *loadAnswer) {
	for _, id := range answer.loaded {
		switch r.load {
		case LoadVanishes:
			_, _ = e.images.remove(id, true)
		case LoadUnpackLine:
			e.images.breakImage(id)
			answer.stream("Error unpacking image %s: failed to extract layer: injected\n", id)
		case LoadUnpackFull:
			e.images.fill(id)
			answer.stream("Error unpacking image %s: failed to extract layer: write /data: no space left on device: unknown\n", id)
		}
	}
}

// loadBody counts what is read of a load's body and ends it where a fault wants that.
type loadBody struct {
	r       io.Reader
	engine  *Engine
	counted bool
	limit   int64 // -1: none
	read    int64
}

var errLoadLimit = errors.New("the fault's number of bytes is read")

func (b *loadBody) Read(p []byte) (int, error) {
	if b.limit >= 0 {
		if b.read >= b.limit {
			return 0, errLoadLimit
		}
		p = p[:min(int64(len(p)), b.limit-b.read)]
	}
	n, err := b.r.Read(p)
	b.read += int64(n)
	if b.counted {
		b.engine.mu.Lock()
		b.engine.loadBytes += int64(n)
		b.engine.mu.Unlock()
	}
	return n, err
}

// archive is the content of a tar that was sent to be loaded.
type archive struct {
	files   map[string][]byte
	reading string // the entry that was being read at the end
	part    []byte // what came of it
}

// readTar reads a tar, which may be compressed. Unless toTheEnd, what comes after the tar's end
// mark doesn't matter, not even that the client goes away there.
func readTar(r io.Reader, toTheEnd bool) (*archive, error) {
	a := &archive{files: map[string][]byte{}}
	plain, err := decompress(r, true)
	if err != nil {
		return a, err
	}
	t := tar.NewReader(plain)
	for {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			if _, err := io.Copy(io.Discard, r); err != nil && toTheEnd {
				return a, err
			}
			return a, nil
		}
		if err != nil {
			return a, err
		}
		a.reading = path.Clean(header.Name)
		if a.part, err = io.ReadAll(t); err != nil {
			return a, err
		}
		a.files[a.reading] = a.part
		a.reading, a.part = "", nil
	}
}

// decompress undoes gzip and, where the engine knows it, zstd; anything else comes through as it
// is.
func decompress(r io.Reader, withZstd bool) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b, 0x08}):
		return gzip.NewReader(buffered)
	case withZstd && bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		decoder, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return decoder.IOReadCloser(), nil
	}
	return buffered, nil
}

// pigz is gunzip as pigz does it.
type pigz struct{ io.Reader }

func (p pigz) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if errors.Is(err, gzip.ErrHeader) { // of a further member
		err = io.EOF
	}
	return n, err
}

// unpackLayer reads a compressed layer as an engine does that extracts it, and returns its diffID.
func (e *Engine) unpackLayer(compressed []byte, withZstd bool) (string, error) {
	plain, err := decompress(bytes.NewReader(compressed), withZstd)
	if err != nil {
		return "", err
	}
	if e.o.Pigz {
		plain = pigz{plain}
	}
	return e.extract(plain)
}

// extract reads a tar, and returns its digest.
func (e *Engine) extract(plain io.Reader) (string, error) {
	var content bytes.Buffer
	held := map[string]bool{}
	t := tar.NewReader(io.TeeReader(plain, &content))
	for {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if err := e.extractable(header, held); err != nil {
			return "", err
		}
		if _, err := io.Copy(io.Discard, t); err != nil {
			return "", err
		}
	}
	if _, err := io.Copy(&content, plain); err != nil && !e.pastTheEnd() {
		return "", err
	}
	return digestOf(content.Bytes()), nil
}

// pastTheEnd says that what is wrong behind a tar's end doesn't matter.
func (e *Engine) pastTheEnd() bool {
	return !e.o.Containerd && e.api.atLeast(45) && !e.api.atLeast(52)
}

// extractable returns why an engine doesn't extract an entry of a layer, of which it has what held
// names; true: by an entry of that name.
func (e *Engine) extractable(h *tar.Header, held map[string]bool) error {
	name, target := path.Clean("/"+h.Name), path.Clean("/"+h.Linkname)
	dir, base := path.Split(name)
	isHeld := func(name string) bool { _, ok := held[name]; return ok }
	if held[name] && !e.o.Containerd {
		return errors.New("duplicates of file paths not supported")
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok && !strings.HasPrefix(hidden, ".wh.") {
		hidden = path.Join(dir, hidden)
		switch {
		case hidden != path.Clean(dir) && !isHeld(hidden):
			held[hidden] = false
		case e.o.Containerd:
			return fmt.Errorf("failed to convert whiteout file %q: file exists", name[1:])
		default:
			return fmt.Errorf("failed to mknod(%q, S_IFCHR, 0): file exists", hidden)
		}
	}
	switch h.Typeflag {
	case tar.TypeLink:
		if !isHeld(target) {
			return fmt.Errorf("link %s %s: no such file or directory", target, name)
		}
	case tar.TypeReg, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo,
		tar.TypeXGlobalHeader:
	default:
		return fmt.Errorf("unhandled tar header type %d", h.Typeflag)
	}
	held[name] = true
	for dir := path.Dir(name); dir != "/" && !isHeld(dir); dir = path.Dir(dir) {
		held[dir] = false
	}
	return nil
}

// chainIDs returns the IDs under which an engine keeps unpacked layers: each names a layer and all
// below it.
func chainIDs(diffIDs []v1.Hash) []string {
	var chain []string
	for i, diffID := range diffIDs {
		if i == 0 {
			chain = append(chain, diffID.String())
		} else {
			chain = append(chain, digestOf([]byte(chain[i-1]+" "+diffID.String())))
		}
	}
	return chain
}

// platform reads the parameter of that name, which engines know from API version 1.minor on.
func (r *engineRequest) platform(minor int) (*v1.Platform, error) {
	text := r.query.Get("platform")
	if text == "" || !r.api.atLeast(minor) {
		return nil, nil
	}
	var p v1.Platform
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return nil, refusal(http.StatusBadRequest, "failed to parse platform: %v", err)
	}
	return &p, nil
}

func hostPlatform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

func samePlatform(a, b v1.Platform) bool {
	a, b = asContainerd(a), asContainerd(b)
	return a.OS == b.OS && a.Architecture == b.Architecture &&
		(a.Variant == b.Variant || a.Variant == "" || b.Variant == "")
}

// asContainerd spells a platform as containerd reads it on Linux.
func asContainerd(p v1.Platform) v1.Platform {
	p.OS = cmp.Or(p.OS, "linux")
	switch p.Architecture {
	case "x86_64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	}
	return p
}

// imageName is a reference by name as Docker shows it; "latest" is added where it has neither tag nor
// digest.
func imageName(ref string) string {
	name := strings.TrimPrefix(strings.TrimPrefix(ref, "docker.io/"), "library/")
	if !strings.Contains(name[strings.LastIndex(name, "/")+1:], ":") {
		name += ":latest"
	}
	return name
}

// imageRepository is a name without its tag or digest.
func imageRepository(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		name = name[:i]
	}
	return name
}

// isImageID says whether text is an ID or the beginning of one, and returns its hex digits.
func isImageID(text string) (string, bool) {
	hex := strings.TrimPrefix(text, "sha256:")
	return hex, len(hex) >= 4 && len(hex) <= 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

func noSuchImage(ref string) error {
	return refusal(http.StatusNotFound, "No such image: %s", ref)
}

// user returns a container of an image, a live one if there is. The lock is held.
func (e *Engine) user(id string) *container {
	var user *container
	for _, c := range e.containers {
		if c.image == id && (user == nil || c.live()) {
			user = c
		}
	}
	return user
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// describeConfig adds to an inspect document what comes from the image's config.
func describeConfig(doc map[string]any, config *v1.ConfigFile, raw []byte) {
	var top struct {
		Config map[string]any `json:"config"`
	}
	_ = json.Unmarshal(raw, &top)
	shown := configDefaults()
	maps.Copy(shown, top.Config)
	doc["Config"], doc["Architecture"], doc["Os"] = shown, config.Architecture, config.OS
	doc["Created"] = stamp(config.Created.Time)
	doc["RootFS"] = map[string]any{"Type": "layers", "Layers": diffIDs(config)}
	if config.Variant != "" {
		doc["Variant"] = config.Variant
	}
}

func diffIDs(config *v1.ConfigFile) []string {
	var list []string
	for _, diffID := range config.RootFS.DiffIDs {
		list = append(list, diffID.String())
	}
	return list
}
