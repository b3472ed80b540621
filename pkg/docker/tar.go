package docker

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/image"
)

// archive describes the one form of tar that every image store takes: an OCI layout whose blobs a docker-save manifest points into as
// well. Blobs come first and the JSON entries that give them names last, so that nothing has a name before all of it
// was proved.
type archive struct {
	layers     []string // paths, of all layers from the lowest on
	config     []byte
	manifest   []byte
	tag        string // empty: the image stays without a name
	annotation string // the name in a containerd store; empty likewise
	mediaType  types.MediaType
}

// entries returns what comes after the layers, in order.
func (a archive) entries() ([]entry, error) {
	manifest := digest.Of(a.manifest)
	root := v1.Descriptor{
		MediaType: a.mediaType, Digest: image.Hash(manifest), Size: int64(len(a.manifest)),
	}
	entries := []entry{
		{blobPath(digest.Of(a.config)), a.config},
		{blobPath(manifest), a.manifest},
	}
	saved := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: blobPath(digest.Of(a.config)), Layers: a.layers}
	if a.tag != "" {
		saved.RepoTags = []string{a.tag}
	}
	if a.annotation != "" {
		root.Annotations = map[string]string{"io.containerd.image.name": a.annotation}
	}
	for _, document := range []struct {
		path  string
		value any
	}{
		{"manifest.json", []any{saved}},
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
		{"index.json", v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{root}}},
	} {
		data, err := json.Marshal(document.value)
		if err != nil {
			return nil, fmt.Errorf("writing %s: %w", document.path, err)
		}
		entries = append(entries, entry{document.path, data})
	}
	return entries, nil
}

// entry is a small file of an archive.
type entry struct {
	path string
	data []byte
}

func (e entry) write(t *tar.Writer) error {
	if err := t.WriteHeader(header(e.path, int64(len(e.data)))); err != nil {
		return err
	}
	_, err := t.Write(e.data)
	return err
}

// whole is the archive of the image itself. Where an index is approved, it isn't in it: an engine
// that has one decides by itself which of the entries it runs, even one that it doesn't have.
func whole(v *image.Verified, path func(image.Layer) string) archive {
	tag, annotation := names(v)
	a := archive{
		config: v.Config(), manifest: v.Manifest(), mediaType: v.MediaType(),
		tag: tag, annotation: annotation,
	}
	for _, l := range v.Layers() {
		a.layers = append(a.layers, path(l))
	}
	return a
}

// prefixLabel marks an image of our own making that holds the first layers of another one for as long as that one is being loaded.
const prefixLabel = "tee-launcher.prefix-of"

// prefix is the archive of an image of the first n layers. It has no name, and nothing that could be run.
func prefix(v *image.Verified, n int, path func(image.Layer) string) (archive, error) {
	base, layers := v.ConfigFile(), v.Layers()[:n]
	config := v1.ConfigFile{
		OS: base.OS, Architecture: base.Architecture, Variant: base.Variant, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Labels: map[string]string{prefixLabel: v.Digest().String()}},
	}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: v.MediaType()}
	a := archive{mediaType: v.MediaType()}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, image.Hash(l.DiffID))
		manifest.Layers = append(manifest.Layers, v1.Descriptor{
			MediaType: l.MediaType, Digest: image.Hash(l.Digest), Size: l.Size,
		})
		a.layers = append(a.layers, path(l))
	}
	var err error
	if a.config, err = json.Marshal(config); err != nil {
		return a, err
	}
	manifest.Config = v1.Descriptor{
		MediaType: types.DockerConfigJSON, Digest: image.Hash(digest.Of(a.config)),
		Size: int64(len(a.config)),
	}
	if v.MediaType() == types.OCIManifestSchema1 {
		manifest.Config.MediaType = types.OCIConfigJSON
	}
	a.manifest, err = json.Marshal(manifest)
	return a, err
}

// errClaim is a layer whose uncompressed tar isn't as large as it claims.
var errClaim = errors.New("the layer's tar is not as large as it claims")

// writeLayer copies the stream's next layer into the archive, straight from the proof.
func (l *loading) writeLayer(t *tar.Writer, layer image.Layer) (err error) {
	next, size := l.stream.Next, layer.Size
	uncompressed := l.isPlain(layer)
	if uncompressed {
		next, size = l.stream.NextPlain, l.plain[layer.DiffID]
	}
	r, err := next()
	if err != nil {
		return err
	}
	// Close proves the layer once more; its error counts even where every byte was handed out.
	defer func() {
		if closed := r.Close(); err == nil {
			err = closed
		}
	}()
	if err := t.WriteHeader(header(l.path(layer), size)); err != nil {
		return err
	}
	sent := io.Reader(r)
	if l.judge != nil && !uncompressed {
		var end func(all bool)
		sent, end = l.judge.listen(r)
		defer func() { end(err == nil) }()
	}
	n, err := io.Copy(t, &scaled{Reader: sent, progress: l.progress.Sent, of: size, to: layer.Size})
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != size {
		return errClaim
	}
	return err
}

// path is where a layer's bytes are in the archive: under the digest of the form in which they are sent.
func (l *loading) path(layer image.Layer) string {
	if l.isPlain(layer) {
		return blobPath(layer.DiffID)
	}
	return blobPath(layer.Digest)
}

// measureZstd finds the uncompressed sizes of zstd layers for a classic store that can't unpack them: a tar says a file's size before its
// bytes, and nothing claims the size of these, so they are fetched twice.
func (l *loading) measureZstd(ctx context.Context, order []int) error {
	if l.info.Store != inspect.Classic || l.info.APIAtLeast(45) { // engines before 26 can't be relied on for zstd
		return nil
	}
	layers := l.image.Layers()
	for _, i := range order {
		if !strings.HasSuffix(string(layers[i].MediaType), "zstd") {
			continue
		}
		size, err := l.measure(ctx, i)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		l.plain[layers[i].DiffID] = size
	}
	return nil
}

// linkProbeTime is how long the link is watched: bytes for a whole load have to arrive in that time for the first one to be sent as it
// comes.
// With the puller's parts of 2 MiB, which count when they are whole, that takes about 300 MB/s. There gunzip beside the link begins to
// cost more time than it spares the engine: measured, a layer of 48 MB takes the same time at 280 MB/s.
const linkProbeTime = 100 * time.Millisecond

// choosePlain chooses the gzip layers that are sent uncompressed, by the size that they claim. The stream has begun to fetch; arrived
// says how many bytes it has.
//
// A classic store keeps no compressed bytes, so it can be spared the work: gunzip in this process goes on beside the engine's unpacking of
// the load before, or beside a link that is slower. What the first load has of neither is sent as it comes.
func (l *loading) choosePlain(ctx context.Context, groups []group, arrived func() int64) {
	if l.info.Store != inspect.Classic {
		return
	}
	layers := l.image.Layers()
	linkFast := sync.OnceValue(func() bool { return linkIsFast(ctx, arrived, l.engine.loadSize()) })
	var mu sync.Mutex
	var questions sync.WaitGroup
	var claimed []digest.Digest
	for n, g := range groups {
		for _, i := range g.send {
			if layers[i].Size < l.engine.loadSize() || n == 0 && linkFast() {
				continue
			}
			questions.Go(func() {
				if size, ok := l.source.PlainSize(ctx, layers[i]); ok {
					mu.Lock()
					defer mu.Unlock()
					l.plain[layers[i].DiffID], l.gunzipped = size, true
					claimed = append(claimed, layers[i].DiffID)
				}
			})
		}
	}
	questions.Wait()
	if l.options.Space == nil || !l.gunzipped {
		return
	}
	// The engine keeps a load until it is unpacked. A claim isn't proved, so it is no reason to
	// refuse the image; but what would fill the disk is sent as it is.
	var bytes int64
	for _, g := range groups {
		for _, i := range g.send {
			size, plain := l.plain[layers[i].DiffID]
			if !plain {
				size = layers[i].Size
			}
			bytes += size
		}
	}
	if l.options.Space(l.info, bytes) != nil {
		for _, id := range claimed {
			delete(l.plain, id)
		}
		l.gunzipped = false
	}
}

// linkIsFast reports whether the link brings bytes so fast that gunzip here would hold them up.
func linkIsFast(ctx context.Context, arrived func() int64, enough int64) bool {
	look := time.NewTicker(linkProbeTime / 20)
	defer look.Stop()
	for end := time.Now().Add(linkProbeTime); time.Now().Before(end); {
		if arrived() >= enough {
			return true
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// measure fetches a layer to see how large its tar is.
func (l *loading) measure(ctx context.Context, layer int) (int64, error) {
	stream := l.image.Open(ctx, l.source, []int{layer})
	r, err := stream.NextPlain()
	if err != nil {
		return 0, closeAfter(err, stream)
	}
	size, err := io.Copy(io.Discard, r)
	if closed := r.Close(); err == nil {
		err = closed // after an error it is that one
	}
	return size, closeAfter(err, stream)
}

func header(path string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: path, Size: size, Mode: 0o644}
}

func blobPath(h digest.Digest) string { return "blobs/sha256/" + h.Hex() }

// names returns the names of the image in a classic and in a containerd store: without one it would
// be dangling, and pruned. The tag is the approved digest, so it can't be mistaken for a version. They
// are names for people: nothing finds the image by them. Engines before 23 have none for a registry
// that is an IPv6 address.
func names(v *image.Verified) (tag, annotation string) {
	repository := v.Reference().Context()
	registry := repository.RegistryStr()
	switch {
	case registry == name.DefaultRegistry:
		registry = "docker.io"
	case strings.HasPrefix(registry, "["):
		registry = "localhost"
	}
	named := registry + "/" + repository.RepositoryStr()
	return named + ":sha256-" + v.Digest().Hex(), named + "@" + v.ManifestDigest().String()
}

// scaled reports how far the engine has taken what is read: of bytes in all, counted as to.
type scaled struct {
	io.Reader
	progress       func(int64)
	of, to         int64
	read, reported int64
}

func (s *scaled) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.read += int64(n)
	if done := scale(s.read, s.of, s.to); done > s.reported {
		s.progress(done - s.reported)
		s.reported = done
	}
	return n, err
}

// scale turns n of so many bytes into as large a part of to.
func scale(n, of, to int64) int64 {
	if of <= 0 {
		return 0
	}
	return int64(float64(min(n, of)) / float64(of) * float64(to))
}
