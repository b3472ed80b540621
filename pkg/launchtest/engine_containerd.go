package launchtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// containerdStore keeps images as containerd does: blobs by their own digest, names that point to
// manifests or indexes among them, and snapshots of unpacked layers. What no name reaches is
// collected, unless an aborted load leased it.
type containerdStore struct {
	engine    *Engine
	blobs     map[string][]byte
	leased    map[string]bool
	ingests   map[string][]byte // what came of entries before an upload broke off, by their names
	names     map[string]v1.Descriptor
	snapshots map[string]bool // chain IDs
	full      map[string]bool // chain IDs for which there is no room
}

const danglingPrefix = "moby-dangling@"

func newContainerdStore(e *Engine) *containerdStore {
	return &containerdStore{
		engine: e, blobs: map[string][]byte{}, leased: map[string]bool{}, ingests: map[string][]byte{},
		names:     map[string]v1.Descriptor{},
		snapshots: map[string]bool{}, full: map[string]bool{},
	}
}

// says28 reports whether the engine is 28 or later, which tells more of images and refuses less.
func (s *containerdStore) says28() bool { return s.engine.api.atLeast(48) }

// blob returns a blob, or containerd's error for one that isn't there.
func (s *containerdStore) blob(hash v1.Hash) ([]byte, error) {
	data, ok := s.blobs[hash.String()]
	if !ok {
		return nil, fmt.Errorf("content digest %s: not found", hash)
	}
	return data, nil
}

// ingestChunk is in what pieces containerd writes what it is sent; a broken one is dropped.
const ingestChunk = 1 << 20

// aborted keeps the blobs that arrived whole: their lease outlives the client. What came of the next
// one stays, too, and the next upload of it is appended to that from there on.
func (s *containerdStore) aborted(a *archive) {
	for _, data := range a.files {
		id := digestOf(data)
		s.blobs[id] = data
		s.leased[id] = true
	}
	if whole := len(a.part) / ingestChunk * ingestChunk; whole > 0 {
		s.ingests[a.reading] = a.part[:whole]
	}
}

func (s *containerdStore) load(r *engineRequest, a *archive, say *loadAnswer) error {
	defer s.collect()
	clear(s.full)
	wanted, err := r.platform(48)
	if err != nil {
		return err
	}
	for name, data := range a.files {
		if name != "oci-layout" && name != "manifest.json" {
			if begun := s.ingests[name]; len(begun) <= len(data) {
				data = slices.Concat(begun, data[len(begun):])
			}
			delete(s.ingests, name)
			s.blobs[digestOf(data)] = data // under the digest that it really has
		}
	}
	if a.files["oci-layout"] == nil {
		// containerd makes a manifest of its own then, which nobody approved.
		return errors.New("the engine double knows no archive without an OCI layout")
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(a.files["index.json"], &index); err != nil {
		return err
	}
	platform := hostPlatform()
	if wanted != nil {
		platform = *wanted
		for _, m := range index.Manifests {
			if _, err := s.manifestsOf(m); err != nil {
				return fmt.Errorf("requested platform (%s) found, but some content is missing: %w",
					platform.String(), err)
			}
		}
	}
	var loaded []string
	for _, m := range index.Manifests {
		name := danglingPrefix + m.Digest.String()
		if annotated := m.Annotations["io.containerd.image.name"]; annotated != "" {
			name = imageName(annotated)
		}
		if before, ok := s.names[name]; ok && before.Digest != m.Digest && s.says28() {
			s.names[danglingPrefix+before.Digest.String()] = before
		}
		m.Annotations = nil
		s.names[name] = m
		loaded = append(loaded, name)
		say.loaded = append(say.loaded, m.Digest.String())
	}
	for _, name := range loaded {
		if wanted != nil && s.view(s.names[name], platform).incomplete != nil {
			return fmt.Errorf("image %s was loaded, but doesn't provide the requested platform (%s)", name,
				platform.String())
		}
	}
	for _, name := range loaded {
		view := s.view(s.names[name], platform)
		if view.variant != "" && wanted == nil {
			view.config = nil // a load unpacks for the host's own platform alone; the rest comes with a container
		}
		err := s.unpack(view)
		if err != nil && !s.says28() {
			return fmt.Errorf("failed to unpack loaded image: %w", err)
		}
		say.stream("Loaded image: %s\n", name)
		if err != nil {
			say.stream("Error unpacking image %s: %v\n", name, err)
		}
	}
	return nil
}

// manifestsOf returns what an index lists, or the one manifest that the descriptor is of.
func (s *containerdStore) manifestsOf(target v1.Descriptor) ([]v1.Descriptor, error) {
	raw, err := s.blob(target.Digest)
	if err != nil || !target.MediaType.IsIndex() {
		return []v1.Descriptor{target}, err
	}
	var index v1.IndexManifest
	err = json.Unmarshal(raw, &index)
	return index.Manifests, err
}

// containerdView is an image as one platform sees it.
type containerdView struct {
	manifest   *v1.Manifest
	config     *v1.ConfigFile // nil if there is none for the platform, or if it or the manifest can't be read
	variant    string         // of the platform, by the index or else by the config
	incomplete error          // why it can't be used
}

func (s *containerdStore) view(target v1.Descriptor, platform v1.Platform) containerdView {
	candidates, err := s.manifestsOf(target)
	if err != nil {
		return containerdView{incomplete: err}
	}
	view := containerdView{incomplete: errors.New("the image does not provide the platform")}
	for _, c := range candidates {
		if c.Platform != nil && !samePlatform(*c.Platform, platform) {
			continue
		}
		read := s.read(c)
		if read.config != nil && !samePlatform(*read.config.Platform(), platform) {
			continue
		}
		if view = read; view.config != nil {
			if view.variant = view.config.Variant; c.Platform != nil {
				view.variant = c.Platform.Variant
			}
			view.variant = strings.TrimPrefix(view.variant, "v1")
			break
		}
	}
	return view
}

func (s *containerdStore) read(d v1.Descriptor) containerdView {
	var view containerdView
	raw, err := s.blob(d.Digest)
	if err == nil {
		view.manifest, err = v1.ParseManifest(bytes.NewReader(raw))
	}
	if err == nil {
		raw, err = s.blob(view.manifest.Config.Digest)
	}
	if err == nil {
		view.config, err = v1.ParseConfigFile(bytes.NewReader(raw))
	}
	if err != nil {
		return containerdView{incomplete: err}
	}
	for _, layer := range view.manifest.Layers {
		if _, err := s.blob(layer.Digest); err != nil {
			view.incomplete = err
		}
	}
	return view
}

// unpack makes the snapshots of an image. A manifest or config that can't be read is no error to
// the engine: it takes the thing for something other than an image; and snapshots that exist
// already hide a layer that is missing.
func (s *containerdStore) unpack(view containerdView) error {
	if view.config == nil {
		return nil
	}
	chain := chainIDs(view.config.RootFS.DiffIDs)
	if len(chain) != len(view.manifest.Layers) {
		return errors.New("mismatched image rootfs and manifest layers")
	}
	for i, layer := range view.manifest.Layers {
		if s.snapshots[chain[i]] {
			continue
		}
		if s.full[chain[i]] {
			return errors.New("failed to extract layer: write /data: no space left on device: unknown")
		}
		want := view.config.RootFS.DiffIDs[i].String()
		compressed, err := s.blob(layer.Digest)
		if err != nil {
			return fmt.Errorf("failed to extract layer %s: failed to get reader from content store: %w",
				want, err)
		}
		var got string
		if strings.HasSuffix(string(layer.MediaType), ".tar") { // which is believed
			got, err = s.engine.extract(bytes.NewReader(compressed))
		} else {
			got, err = s.engine.unpackLayer(compressed, true)
		}
		if err != nil {
			return fmt.Errorf("failed to extract layer %s: %w", want, err)
		}
		if got != want {
			return fmt.Errorf("wrong diff id calculated on extraction %q", got)
		}
		s.snapshots[chain[i]] = true
	}
	return nil
}

// collect removes the content and the snapshots that no name reaches.
func (s *containerdStore) collect() {
	keep, snapshots := maps.Clone(s.leased), map[string]bool{}
	for _, target := range s.names {
		keep[target.Digest.String()] = true
		manifests, _ := s.manifestsOf(target)
		for _, d := range manifests {
			keep[d.Digest.String()] = true
			manifest, err := v1.ParseManifest(bytes.NewReader(s.blobs[d.Digest.String()]))
			if err != nil {
				continue
			}
			keep[manifest.Config.Digest.String()] = true
			for _, layer := range manifest.Layers {
				keep[layer.Digest.String()] = true
			}
			if config := s.read(d).config; config != nil {
				for _, id := range chainIDs(config.RootFS.DiffIDs) {
					snapshots[id] = true
				}
			}
		}
	}
	maps.DeleteFunc(s.blobs, func(id string, _ []byte) bool { return !keep[id] })
	maps.DeleteFunc(s.snapshots, func(id string, _ bool) bool { return !snapshots[id] })
}

// ids returns the digests that names point to, in order.
func (s *containerdStore) ids() []string {
	var ids []string
	for _, target := range s.names {
		ids = append(ids, target.Digest.String())
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// namesOf returns the names of an image in order.
func (s *containerdStore) namesOf(id string) []string {
	var names []string
	for name, target := range s.names {
		if target.Digest.String() == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// resolve knows digests of manifests and indexes, their beginnings, and names.
func (s *containerdStore) resolve(ref string) (string, error) {
	if d, ok := s.names[imageName(ref)]; ok {
		return d.Digest.String(), nil
	}
	if hex, ok := isImageID(ref); ok {
		for _, id := range s.ids() {
			if strings.HasPrefix(id, "sha256:"+hex) {
				return id, nil
			}
		}
	}
	return "", noSuchImage(ref)
}

func (s *containerdStore) target(id string) v1.Descriptor { return s.names[s.namesOf(id)[0]] }

// here is an image as this host sees it.
func (s *containerdStore) here(id string) containerdView {
	return s.view(s.target(id),
		hostPlatform())
}

func (s *containerdStore) config(id string) (*v1.ConfigFile, error) {
	view := s.here(id)
	switch {
	case view.incomplete == nil:
		return view.config, s.unpack(view)
	case view.config != nil && s.says28():
		return nil, view.incomplete // its layers aren't there, and that is an error of the engine's own
	}
	return nil, refusal(http.StatusNotFound, "%v", view.incomplete)
}

func (s *containerdStore) inspect(r *engineRequest, ref string) (map[string]any, error) {
	id, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	wanted, err := r.platform(49)
	if err != nil {
		return nil, err
	}
	view := s.here(id)
	if wanted != nil {
		if view = s.view(s.target(id), *wanted); view.config == nil {
			return nil, refusal(http.StatusNotFound,
				"image with reference %s was found but does not provide the specified platform (%s)",
				ref, wanted.String())
		}
	}
	// Engines before 28 refuse to describe an image whose manifest or config isn't there; 28 describes
	// nothing where anything is missing; 29 looks only for what it describes.
	if view.config == nil && !s.says28() {
		return nil, refusal(http.StatusNotFound, "%v", view.incomplete)
	}
	names, digests := s.shownNames(id)
	doc := map[string]any{
		"Id": id, "RepoTags": names, "RepoDigests": digests, "Size": s.target(id).Size, "Created": "",
		"Config": nil, "Architecture": "", "Os": "", "RootFS": map[string]any{},
	}
	if r.flag("manifests") && r.api.atLeast(48) {
		doc["Manifests"] = s.manifests(id)
	}
	if view.config != nil && (view.incomplete == nil || !s.says28() || s.engine.api.atLeast(52)) {
		describeConfig(doc, view.config, s.blobs[view.manifest.Config.Digest.String()])
	}
	return doc, nil
}

func (s *containerdStore) manifests(id string) []map[string]any {
	list := []map[string]any{}
	manifests, _ := s.manifestsOf(s.target(id))
	for _, d := range manifests {
		read := s.read(d)
		entry := map[string]any{"ID": d.Digest.String(), "Descriptor": d,
			"Available": read.incomplete == nil, "Kind": "image"}
		size := map[string]int{"Unpacked": s.unpackedSize(read)}
		switch {
		case d.Platform != nil:
			entry["ImageData"] = map[string]any{"Platform": d.Platform, "Size": size}
		case read.config != nil:
			entry["ImageData"] = map[string]any{"Platform": read.config.Platform(), "Size": size}
		default:
			entry["Kind"] = "unknown"
		}
		list = append(list, entry)
	}
	return list
}

// unpackedSize is what the snapshots of an image take: a block for each layer, or nothing where they
// aren't all there, and on 28 where a blob isn't.
func (s *containerdStore) unpackedSize(view containerdView) int {
	if view.config == nil || view.incomplete != nil && !s.engine.api.atLeast(52) {
		return 0
	}
	chain := chainIDs(view.config.RootFS.DiffIDs)
	if len(chain) == 0 || !s.snapshots[chain[len(chain)-1]] {
		return 0
	}
	return len(chain) << 12
}

// dangling reports whether an image has no name but the one that keeps it.
func (s *containerdStore) dangling(id string) bool {
	_, digests := s.shownNames(id)
	return len(digests) == 0
}

// shownNames returns RepoTags and RepoDigests of an image.
func (s *containerdStore) shownNames(id string) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, name := range s.namesOf(id) {
		if strings.HasPrefix(name, danglingPrefix) {
			continue
		}
		if !strings.Contains(name, "@") || s.says28() {
			tags = append(tags, name)
		}
		digests = append(digests, imageRepository(name)+"@"+id)
	}
	return tags, slices.Compact(digests)
}

// labels are those of the image that this host would run.
func (s *containerdStore) labels(id string) map[string]string {
	if config := s.here(id).config; config != nil {
		return config.Config.Labels
	}
	return nil
}

func (s *containerdStore) list(labels []string) []map[string]any {
	list := []map[string]any{}
	for _, id := range s.ids() {
		if own := s.labels(id); labelled(own, labels) {
			names, digests := s.shownNames(id)
			list = append(list, map[string]any{"Id": id, "RepoTags": names, "RepoDigests": digests,
				"Labels": own})
		}
	}
	return list
}

// remove takes a name away, and with the last one the image; by its ID all at once.
func (s *containerdStore) remove(ref string, force bool) ([]map[string]string, error) {
	id, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	defer s.collect()
	name := imageName(ref)
	if _, named := s.names[name]; named && len(s.namesOf(id)) > 1 {
		delete(s.names, name)
		return []map[string]string{{"Untagged": name}}, nil
	}
	if user := s.engine.user(id); user != nil && (user.live() || !force) {
		return nil, refusal(http.StatusConflict,
			"conflict: unable to delete %s - container %s is using its referenced image %s",
			ref, shortID(user.id), shortID(id))
	}
	return s.drop(id), nil
}

func (s *containerdStore) drop(id string) []map[string]string {
	var deleted []map[string]string
	for _, name := range s.namesOf(id) {
		deleted = append(deleted, map[string]string{"Untagged": name})
		delete(s.names, name)
	}
	return append(deleted, map[string]string{"Deleted": id})
}

// prune ends the leases of aborted loads, too.
func (s *containerdStore) prune(all bool, labels []string) []map[string]string {
	defer s.collect()
	clear(s.leased)
	var deleted []map[string]string
	for _, id := range s.ids() {
		if s.engine.user(id) == nil && (all || s.dangling(id)) && labelled(s.labels(id), labels) {
			deleted = append(deleted, s.drop(id)...)
		}
	}
	return deleted
}

// breakImage takes away the last layer: the image is named, and can't be used.
func (s *containerdStore) breakImage(id string) {
	view := s.here(id)
	delete(s.blobs, view.manifest.Layers[len(view.manifest.Layers)-1].Digest.String())
	chain := chainIDs(view.config.RootFS.DiffIDs)
	delete(s.snapshots, chain[len(chain)-1])
}

// fill takes the last layer's snapshot away, and there is no room for another.
func (s *containerdStore) fill(id string) {
	chain := chainIDs(s.here(id).config.RootFS.DiffIDs)
	delete(s.snapshots, chain[len(chain)-1])
	s.full[chain[len(chain)-1]] = true
}

func (s *containerdStore) all() []ImageInfo {
	var list []ImageInfo
	for _, id := range s.ids() {
		info := ImageInfo{ID: id}
		info.Names, _ = s.shownNames(id)
		if view := s.here(id); view.incomplete == nil {
			info.Layers = diffIDs(view.config)
		}
		list = append(list, info)
	}
	return list
}
