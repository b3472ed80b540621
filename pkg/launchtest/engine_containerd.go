package launchtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// containerdStore keeps images as containerd does: blobs by their own digest, names that point to manifests or indexes
// among them, and snapshots of unpacked layers. What no name reaches is collected, unless an aborted load leased it.
type containerdStore struct {
	engine    *Engine
	blobs     map[string][]byte
	leased    map[string]bool
	names     map[string]v1.Descriptor
	snapshots map[string]bool // chain IDs
}

const danglingPrefix = "moby-dangling@"

func newContainerdStore(e *Engine) *containerdStore {
	return &containerdStore{
		engine: e, blobs: map[string][]byte{}, leased: map[string]bool{}, names: map[string]v1.Descriptor{}, snapshots: map[string]bool{},
	}
}

// missingContent is containerd's error for a blob that isn't there.
type missingContent string

func (m missingContent) Error() string { return fmt.Sprintf("content digest %s: not found", string(m)) }

// aborted keeps the blobs that arrived whole: their lease outlives the client.
func (s *containerdStore) aborted(a *archive) {
	for _, data := range a.files {
		id := digestOf(data)
		s.blobs[id] = data
		s.leased[id] = true
	}
}

func (s *containerdStore) load(r *engineRequest, a *archive, say *loadAnswer) error {
	defer s.collect()
	wanted, err := r.platform(48)
	if err != nil {
		return err
	}
	manifests, err := s.ingest(a)
	if err != nil {
		return err
	}
	// With a platform everything that it needs of an index has to be there; without one what is missing is skipped.
	if wanted != nil {
		for _, m := range manifests {
			if err := s.walk(m, *wanted); err != nil {
				return fmt.Errorf("requested platform (%s) found, but some content is missing: %w", formatPlatform(*wanted), err)
			}
		}
	}
	var loaded []string
	for _, m := range manifests {
		name := m.Annotations["io.containerd.image.name"]
		if name == "" {
			name = m.Annotations["org.opencontainers.image.ref.name"]
		}
		if name == "" {
			name = danglingPrefix + m.Digest.String()
		} else if before, ok := s.names[name]; ok && before.Digest != m.Digest && s.engine.api.atLeast(48) {
			s.names[danglingPrefix+before.Digest.String()] = before
		}
		m.Annotations = nil
		s.names[name] = m
		loaded = append(loaded, name)
		say.loaded = append(say.loaded, m.Digest.String())
	}
	if wanted != nil {
		for _, name := range loaded {
			if best := s.best(s.names[name], *wanted); best == nil || s.missing(*best) != nil {
				return fmt.Errorf("image %s was loaded, but doesn't provide the requested platform (%s)", familiarName(name), formatPlatform(*wanted))
			}
		}
	}
	for _, name := range loaded {
		said := "Loaded image: " + familiarName(name)
		if strings.HasPrefix(name, danglingPrefix) {
			said = "Loaded image ID: " + strings.TrimPrefix(name, danglingPrefix)
		}
		platform := hostPlatform()
		if wanted != nil {
			platform = *wanted
		}
		err := s.unpack(s.names[name], platform)
		if err != nil && !s.engine.api.atLeast(48) {
			return fmt.Errorf("failed to unpack loaded image: %w", err)
		}
		say.stream("%s\n", said)
		if err != nil {
			say.stream("Error unpacking image %s: %v\n", familiarName(name), err)
		}
	}
	return nil
}

// ingest puts all files into the content store, under the digests that they really have, and returns what the archive's
// index lists. An archive without an OCI layout gets a manifest made for it, which nobody approved.
func (s *containerdStore) ingest(a *archive) ([]v1.Descriptor, error) {
	found := map[string]v1.Descriptor{}
	for name, data := range a.files {
		if name == "oci-layout" || name == "manifest.json" {
			continue
		}
		id := digestOf(data)
		s.blobs[id] = data
		found[name] = v1.Descriptor{Digest: mustHash(id), Size: int64(len(data))}
	}
	if layout, ok := a.files["oci-layout"]; ok {
		var doc struct {
			Version string `json:"imageLayoutVersion"`
		}
		if err := json.NewDecoder(bytes.NewReader(layout)).Decode(&doc); err != nil {
			return nil, fmt.Errorf("untar oci layout %q: %w", "oci-layout", err)
		}
		if doc.Version != "1.0.0" {
			return nil, fmt.Errorf("unsupported OCI version %s", doc.Version)
		}
		if _, ok := found["index.json"]; !ok {
			return nil, errors.New("missing index.json in OCI layout 1.0.0")
		}
		var index v1.IndexManifest
		if err := json.Unmarshal(a.files["index.json"], &index); err != nil {
			return nil, err
		}
		return index.Manifests, nil
	}
	var items []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.NewDecoder(bytes.NewReader(a.files["manifest.json"])).Decode(&items); errors.Is(err, io.EOF) || err == nil && items == nil {
		return nil, errors.New("unrecognized image format")
	} else if err != nil {
		return nil, fmt.Errorf("untar manifest %q: %w", "manifest.json", err)
	}
	var manifests []v1.Descriptor
	for _, item := range items {
		config, ok := found[item.Config]
		if !ok {
			return nil, fmt.Errorf("image config %q not found", item.Config)
		}
		config.MediaType = types.DockerConfigJSON
		manifest := madeManifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Config: made(config)}
		for _, name := range item.Layers {
			layer, ok := found[name]
			if !ok {
				return nil, fmt.Errorf("failed to resolve layers: layer %q not found", name)
			}
			layer.MediaType = types.DockerUncompressedLayer
			if bytes.HasPrefix(a.files[name], []byte{0x1f, 0x8b}) {
				layer.MediaType = types.DockerLayer
			}
			manifest.Layers = append(manifest.Layers, made(layer))
		}
		raw, err := json.Marshal(manifest)
		if err != nil {
			return nil, err
		}
		s.blobs[digestOf(raw)] = raw
		descriptor := v1.Descriptor{MediaType: types.DockerManifestSchema2, Digest: mustHash(digestOf(raw)), Size: int64(len(raw))}
		if len(item.RepoTags) == 0 {
			manifests = append(manifests, descriptor)
		}
		for _, tag := range item.RepoTags {
			ref, err := parseImageRef(tag)
			if err != nil {
				return nil, fmt.Errorf("normalize image ref %q: invalid reference format", tag)
			}
			descriptor.Annotations = map[string]string{"io.containerd.image.name": ref.String()}
			manifests = append(manifests, descriptor)
		}
	}
	return manifests, nil
}

// madeManifest is a manifest that the store makes itself. It orders its fields as containerd does, and so not as the tools
// that push images.
type madeManifest struct {
	SchemaVersion int              `json:"schemaVersion"`
	MediaType     types.MediaType  `json:"mediaType"`
	Config        madeDescriptor   `json:"config"`
	Layers        []madeDescriptor `json:"layers"`
}

type madeDescriptor struct {
	MediaType types.MediaType `json:"mediaType"`
	Digest    v1.Hash         `json:"digest"`
	Size      int64           `json:"size"`
}

func made(d v1.Descriptor) madeDescriptor { return madeDescriptor{d.MediaType, d.Digest, d.Size} }

// walk proves that manifests and indexes are there; configs and layers are leaves that it doesn't open.
func (s *containerdStore) walk(d v1.Descriptor, platform v1.Platform) error {
	children, err := s.children(d, platform)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := s.walk(child, platform); err != nil {
			return err
		}
	}
	return nil
}

// children returns what an index lists for a platform; a manifest has none that matter here.
func (s *containerdStore) children(d v1.Descriptor, platform v1.Platform) ([]v1.Descriptor, error) {
	if !d.MediaType.IsIndex() && !d.MediaType.IsImage() {
		return nil, nil
	}
	raw, ok := s.blobs[d.Digest.String()]
	if !ok {
		return nil, missingContent(d.Digest.String())
	}
	if !d.MediaType.IsIndex() {
		return nil, nil
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(index.Manifests, func(m v1.Descriptor) bool {
		return m.Platform != nil && !samePlatform(*m.Platform, platform)
	}), nil
}

// best returns the manifest of an image for a platform, or nil. Where the descriptor names no platform the config does.
func (s *containerdStore) best(target v1.Descriptor, platform v1.Platform) *v1.Descriptor {
	candidates := []v1.Descriptor{target}
	if target.MediaType.IsIndex() {
		candidates, _ = s.children(target, platform)
	}
	for _, c := range candidates {
		if c.Platform == nil {
			_, config, err := s.read(c)
			if err != nil || !samePlatform(*config.Platform(), platform) {
				continue
			}
		}
		return &c
	}
	return nil
}

// read returns a manifest and its config.
func (s *containerdStore) read(d v1.Descriptor) (*v1.Manifest, *v1.ConfigFile, error) {
	raw, ok := s.blobs[d.Digest.String()]
	if !ok {
		return nil, nil, missingContent(d.Digest.String())
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, err
	}
	raw, ok = s.blobs[manifest.Config.Digest.String()]
	if !ok {
		return nil, nil, missingContent(manifest.Config.Digest.String())
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, err
	}
	return manifest, config, nil
}

// missing returns why a manifest isn't fully there, or nil.
func (s *containerdStore) missing(d v1.Descriptor) error {
	manifest, _, err := s.read(d)
	if err != nil {
		return err
	}
	for _, layer := range manifest.Layers {
		if _, ok := s.blobs[layer.Digest.String()]; !ok {
			return missingContent(layer.Digest.String())
		}
	}
	return nil
}

// unpack makes the snapshots of an image. A manifest or config that can't be read is no error to the engine: it takes
// the thing for something other than an image; and snapshots that exist already hide a layer that is missing.
func (s *containerdStore) unpack(target v1.Descriptor, platform v1.Platform) error {
	d := s.best(target, platform)
	if d == nil {
		return nil
	}
	manifest, config, err := s.read(*d)
	if err != nil {
		return nil
	}
	chain := chainIDs(config.RootFS.DiffIDs)
	if len(chain) == 0 || s.snapshots[chain[len(chain)-1]] {
		return nil
	}
	if len(chain) != len(manifest.Layers) {
		return errors.New("mismatched image rootfs and manifest layers")
	}
	for i, layer := range manifest.Layers {
		if s.snapshots[chain[i]] {
			continue
		}
		compressed, ok := s.blobs[layer.Digest.String()]
		if !ok {
			return fmt.Errorf("failed to extract layer %s: failed to get reader from content store: %w", config.RootFS.DiffIDs[i],
				missingContent(layer.Digest.String()))
		}
		got, err := unpackLayer(compressed, true)
		if err != nil {
			return fmt.Errorf("failed to extract layer %s: %w", config.RootFS.DiffIDs[i], err)
		}
		if got != config.RootFS.DiffIDs[i].String() {
			return fmt.Errorf("wrong diff id calculated on extraction %q", got)
		}
		s.snapshots[chain[i]] = true
	}
	return nil
}

// collect removes the content and the snapshots that no name reaches.
func (s *containerdStore) collect() {
	keep, snapshots := map[string]bool{}, map[string]bool{}
	var reach func(d v1.Descriptor)
	reach = func(d v1.Descriptor) {
		keep[d.Digest.String()] = true
		if d.MediaType.IsIndex() {
			var index v1.IndexManifest
			if json.Unmarshal(s.blobs[d.Digest.String()], &index) == nil {
				for _, m := range index.Manifests {
					reach(m)
				}
			}
			return
		}
		manifest, err := v1.ParseManifest(bytes.NewReader(s.blobs[d.Digest.String()]))
		if err != nil {
			return
		}
		keep[manifest.Config.Digest.String()] = true
		for _, layer := range manifest.Layers {
			keep[layer.Digest.String()] = true
		}
		if _, config, err := s.read(d); err == nil {
			for _, id := range chainIDs(config.RootFS.DiffIDs) {
				snapshots[id] = true
			}
		}
	}
	for _, target := range s.names {
		reach(target)
	}
	maps.DeleteFunc(s.blobs, func(id string, _ []byte) bool { return !keep[id] && !s.leased[id] })
	maps.DeleteFunc(s.snapshots, func(id string, _ bool) bool { return !snapshots[id] })
}

func (s *containerdStore) count() int { return len(s.targets()) }

// targets returns the digests that names point to, each with its names in order.
func (s *containerdStore) targets() map[string][]string {
	targets := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(s.names)) {
		id := s.names[name].Digest.String()
		targets[id] = append(targets[id], name)
	}
	return targets
}

// resolve knows digests of manifests and indexes, their beginnings, repositories with such a digest, and tags.
func (s *containerdStore) resolve(ref string) (string, error) {
	targets := s.targets()
	if parsed, err := parseImageRef(ref); err == nil && parsed.digest != "" {
		for _, name := range targets[parsed.digest] {
			if named, err := parseImageRef(name); err == nil && named.repository == parsed.repository {
				return parsed.digest, nil
			}
		}
		return "", noSuchImage(ref)
	} else if d, ok := s.names[parsed.String()]; ok && err == nil {
		return d.Digest.String(), nil
	}
	if hex, ok := isImageID(ref); ok {
		for id := range targets {
			if strings.HasPrefix(id, "sha256:"+hex) {
				return id, nil
			}
		}
	}
	return "", noSuchImage(ref)
}

func (s *containerdStore) target(id string) v1.Descriptor { return s.names[s.targets()[id][0]] }

func (s *containerdStore) config(id string) (*v1.ConfigFile, error) {
	best := s.best(s.target(id), hostPlatform())
	if best == nil {
		return nil, refusal(http.StatusNotFound, "image with reference %s was found but does not provide any platform", id)
	}
	_, config, err := s.read(*best)
	if err != nil {
		return nil, refusal(http.StatusNotFound, "%v", err)
	}
	if err := s.missing(*best); err != nil && s.engine.api.atLeast(48) {
		return nil, err
	} else if err != nil {
		return nil, refusal(http.StatusNotFound, "%v", err)
	}
	return config, nil
}

func (s *containerdStore) inspect(r *engineRequest, ref string) (map[string]any, error) {
	id, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	withManifests := r.flag("manifests") && r.api.atLeast(48)
	wanted, err := r.platform(49)
	if err != nil {
		return nil, err
	}
	target := s.target(id)
	platform := hostPlatform()
	if wanted != nil {
		platform = *wanted
	}
	best, err := s.shown(target, platform)
	if err != nil {
		return nil, err
	}
	if best == nil && wanted != nil {
		return nil, refusal(http.StatusNotFound, "image with reference %s was found but does not provide the specified platform (%s)",
			ref, formatPlatform(*wanted))
	}
	names, digests := s.shownNames(id)
	doc := map[string]any{
		"Id": id, "RepoTags": names, "RepoDigests": digests, "Size": target.Size, "Created": "",
		"Config": nil, "Architecture": "", "Os": "", "RootFS": map[string]any{},
	}
	if withManifests {
		doc["Manifests"] = s.manifests(target)
	}
	if best != nil {
		manifest, config, err := s.read(*best)
		if err != nil {
			return nil, err
		}
		describeConfig(doc, config, s.blobs[manifest.Config.Digest.String()])
	}
	return doc, nil
}

// shown returns the manifest that an inspection describes. Engines before 28 refuse to describe an image whose manifest
// or config isn't there; 28 describes nothing where anything is missing; 29 looks only for what it describes.
func (s *containerdStore) shown(target v1.Descriptor, platform v1.Platform) (*v1.Descriptor, error) {
	best := s.best(target, platform)
	if best == nil {
		if s.engine.api.atLeast(48) {
			return nil, nil
		}
		if _, _, err := s.read(target); err != nil && !target.MediaType.IsIndex() {
			return nil, refusal(http.StatusNotFound, "%v", err)
		}
		return nil, refusal(http.StatusNotFound, "image with reference %s was found but does not provide any platform", target.Digest)
	}
	_, _, err := s.read(*best)
	if err == nil && s.engine.api.atLeast(48) && !s.engine.api.atLeast(52) {
		err = s.missing(*best)
	}
	if err != nil && !s.engine.api.atLeast(48) {
		return nil, refusal(http.StatusNotFound, "%v", err)
	}
	if err != nil {
		return nil, nil
	}
	return best, nil
}

func (s *containerdStore) manifests(target v1.Descriptor) []map[string]any {
	all := []v1.Descriptor{target}
	if target.MediaType.IsIndex() {
		var index v1.IndexManifest
		if json.Unmarshal(s.blobs[target.Digest.String()], &index) != nil {
			return nil
		}
		all = index.Manifests
	}
	list := []map[string]any{}
	for _, d := range all {
		entry := map[string]any{
			"ID": d.Digest.String(), "Descriptor": d, "Available": s.missing(d) == nil, "Kind": "image",
			"Size": map[string]any{"Content": d.Size, "Total": d.Size},
		}
		_, config, err := s.read(d)
		switch {
		case d.Annotations["vnd.docker.reference.type"] != "":
			entry["Kind"] = "attestation"
			entry["AttestationData"] = map[string]string{"For": d.Annotations["vnd.docker.reference.digest"]}
		case d.Platform != nil:
			entry["ImageData"] = map[string]any{"Platform": d.Platform}
		case err == nil:
			entry["ImageData"] = map[string]any{"Platform": config.Platform()}
		default:
			entry["Kind"] = "unknown"
		}
		list = append(list, entry)
	}
	return list
}

// dangling reports whether an image has no name but the one that keeps it.
func (s *containerdStore) dangling(id string) bool {
	return !slices.ContainsFunc(s.targets()[id], func(name string) bool { return !strings.HasPrefix(name, danglingPrefix) })
}

// shownNames returns RepoTags and RepoDigests of an image.
func (s *containerdStore) shownNames(id string) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, name := range s.targets()[id] {
		if strings.HasPrefix(name, danglingPrefix) {
			continue
		}
		ref, err := parseImageRef(name)
		if err != nil || ref.digest == "" || s.engine.api.atLeast(48) {
			tags = append(tags, familiarName(name))
		}
		if err == nil {
			digests = append(digests, imageRef{repository: ref.repository, digest: id}.familiar())
		}
	}
	slices.Sort(digests)
	return tags, slices.Compact(digests)
}

func familiarName(name string) string {
	if id, dangling := strings.CutPrefix(name, danglingPrefix); dangling {
		return id
	}
	ref, err := parseImageRef(name)
	if err != nil {
		return name
	}
	return ref.familiar()
}

// labels are those of the image that this host would run.
func (s *containerdStore) labels(id string) map[string]string {
	if best := s.best(s.target(id), hostPlatform()); best != nil {
		if _, config, err := s.read(*best); err == nil {
			return config.Config.Labels
		}
	}
	return nil
}

func (s *containerdStore) list(labels []string) []map[string]any {
	list := []map[string]any{}
	for _, id := range slices.Sorted(maps.Keys(s.targets())) {
		if own := s.labels(id); labelled(own, labels) {
			names, digests := s.shownNames(id)
			list = append(list, map[string]any{"Id": id, "RepoTags": names, "RepoDigests": digests, "Labels": own})
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
	user := s.engine.user(id)
	parsed, err := parseImageRef(ref)
	_, named := s.names[parsed.String()]
	if err == nil && named && len(s.targets()[id]) > 1 {
		delete(s.names, parsed.String())
		return []map[string]string{{"Untagged": parsed.familiar()}}, nil
	}
	if user != nil && (user.live() || !force) {
		return nil, refusal(http.StatusConflict, "conflict: unable to delete %s - container %s is using its referenced image %s",
			ref, shortID(user.id), shortID(id))
	}
	return s.drop(id), nil
}

func (s *containerdStore) drop(id string) []map[string]string {
	var deleted []map[string]string
	for _, name := range s.targets()[id] {
		if !strings.HasPrefix(name, danglingPrefix) {
			deleted = append(deleted, map[string]string{"Untagged": familiarName(name)})
		}
		delete(s.names, name)
	}
	return append(deleted, map[string]string{"Deleted": id})
}

// prune ends the leases of aborted loads, too.
func (s *containerdStore) prune(all bool, labels []string) []map[string]string {
	defer s.collect()
	clear(s.leased)
	var deleted []map[string]string
	for _, id := range slices.Sorted(maps.Keys(s.targets())) {
		if s.engine.user(id) == nil && (all || s.dangling(id)) && labelled(s.labels(id), labels) {
			deleted = append(deleted, s.drop(id)...)
		}
	}
	return deleted
}

// breakImage takes away the last layer: the image is named, and can't be used.
func (s *containerdStore) breakImage(id string) {
	best := s.best(s.target(id), hostPlatform())
	if best == nil {
		return
	}
	manifest, config, err := s.read(*best)
	if err != nil || len(manifest.Layers) == 0 {
		return
	}
	delete(s.blobs, manifest.Layers[len(manifest.Layers)-1].Digest.String())
	chain := chainIDs(config.RootFS.DiffIDs)
	delete(s.snapshots, chain[len(chain)-1])
}

func (s *containerdStore) all() []ImageInfo {
	var list []ImageInfo
	for id := range s.targets() {
		info := ImageInfo{ID: id}
		info.Names, _ = s.shownNames(id)
		if best := s.best(s.target(id), hostPlatform()); best != nil && s.missing(*best) == nil {
			_, config, err := s.read(*best)
			if err != nil {
				continue
			}
			info.Layers = diffIDs(config)
		}
		list = append(list, info)
	}
	return list
}

// mustHash turns a digest of ours into ggcr's type.
func mustHash(id string) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: strings.TrimPrefix(id, "sha256:")}
}
