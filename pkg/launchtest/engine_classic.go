package launchtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// classicStore keeps images as the graph drivers do: by the digest of their config, with tags beside them, and with
// layers that live as long as an image has them.
type classicStore struct {
	engine *Engine
	images map[string]*classicImage
	tags   map[string]string // full reference → ID
}

type classicImage struct {
	raw    []byte
	config *v1.ConfigFile
	broken bool
}

func newClassicStore(e *Engine) *classicStore {
	return &classicStore{engine: e, images: map[string]*classicImage{}, tags: map[string]string{}}
}

func (s *classicStore) count() int       { return len(s.images) }
func (s *classicStore) aborted(*archive) {} // the spool is removed

func (s *classicStore) load(r *engineRequest, a *archive, say *loadAnswer) error {
	var items []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	index, ok := a.files["manifest.json"]
	if !ok {
		return s.legacyFailure(a)
	}
	if err := json.NewDecoder(bytes.NewReader(index)).Decode(&items); err != nil {
		return err
	}
	if items == nil && !s.engine.api.atLeast(42) {
		say.line(struct{}{}) // nothing was loaded, and nothing says so
		return nil
	}
	if items == nil {
		return fmt.Errorf("invalid manifest, manifest cannot be null (but can be [])")
	}
	wanted, err := r.platform(48)
	if err != nil {
		return err
	}
	for _, item := range items {
		raw, err := a.file(s.engine, item.Config)
		if err != nil {
			return err
		}
		config, err := parseClassicConfig(raw)
		if err != nil {
			return err
		}
		if config.OS != "" && config.OS != "linux" {
			return fmt.Errorf("cannot load %s image on linux", config.OS)
		}
		if wanted != nil && !samePlatform(*config.Platform(), *wanted) {
			continue
		}
		if got, want := len(config.RootFS.DiffIDs), len(item.Layers); got != want {
			return fmt.Errorf("invalid manifest, layers length mismatch: expected %d, got %d", want, got)
		}
		if err := s.unpack(r, a, config, item.Layers, say); err != nil {
			return err
		}
		id := digestOf(raw)
		s.images[id] = &classicImage{raw: raw, config: config}
		say.loaded = append(say.loaded, id)
		if err := s.nameLoaded(id, item.RepoTags, say); err != nil {
			return err
		}
	}
	return nil
}

// unpack proves the layers that the store hasn't got; one that is sent although it is there is never read.
func (s *classicStore) unpack(r *engineRequest, a *archive, config *v1.ConfigFile, layers []string, say *loadAnswer) error {
	chain := chainIDs(config.RootFS.DiffIDs)
	present := s.layers()
	for i, diffID := range config.RootFS.DiffIDs {
		if present[chain[i]] {
			continue
		}
		compressed, err := a.file(s.engine, layers[i])
		if err != nil {
			return err
		}
		say.progress(shortID(diffID.String()), len(compressed))
		got, err := unpackLayer(compressed, s.engine.api.atLeast(42))
		if err != nil {
			return errors.New(s.engine.tarFailure(err))
		}
		if got != diffID.String() {
			return fmt.Errorf("invalid diffID for layer %d: expected %q, got %q", i, diffID, got)
		}
	}
	return nil
}

func (s *classicStore) nameLoaded(id string, repoTags []string, say *loadAnswer) error {
	for _, repoTag := range repoTags {
		ref, err := parseImageRef(repoTag)
		if err != nil {
			return err
		}
		if ref.digest != "" {
			return fmt.Errorf("invalid tag %q", repoTag)
		}
		if previous, ok := s.tags[ref.String()]; ok && previous != id {
			say.stream("The image %s already exists, renaming the old one with ID %s to empty string\n", ref.familiar(), previous)
		}
		s.tags[ref.String()] = id
		say.stream("Loaded image: %s\n", ref.familiar())
	}
	if len(repoTags) == 0 {
		say.stream("Loaded image ID: %s\n", id)
	}
	return nil
}

// legacyFailure is what comes of a tar without manifest.json: the store takes it for the oldest form of all, in which
// each folder is a layer.
func (s *classicStore) legacyFailure(a *archive) error {
	missing := "repositories"
	for _, name := range slices.Sorted(maps.Keys(a.files)) {
		if dir, _, below := strings.Cut(name, "/"); below {
			missing = dir + "/json"
			break
		}
	}
	return s.engine.notInSpool(missing)
}

func (e *Engine) notInSpool(name string) error {
	return fmt.Errorf("open %s: no such file or directory", path.Join(e.o.Root, "tmp/docker-import-000000000", name))
}

func (a *archive) file(e *Engine, name string) ([]byte, error) {
	data, ok := a.files[path.Clean(name)]
	if !ok {
		return nil, e.notInSpool(name)
	}
	return data, nil
}

func parseClassicConfig(raw []byte) (*v1.ConfigFile, error) {
	var probe struct {
		RootFS *json.RawMessage `json:"rootfs"`
	}
	if err := json.Unmarshal(raw, &probe); err != nil {
		return nil, err
	}
	if probe.RootFS == nil {
		return nil, fmt.Errorf("invalid image JSON, no RootFS key")
	}
	return v1.ParseConfigFile(bytes.NewReader(raw))
}

// layers returns the chain IDs of all layers that some image has.
func (s *classicStore) layers() map[string]bool {
	present := map[string]bool{}
	for _, image := range s.images {
		for _, id := range chainIDs(image.config.RootFS.DiffIDs) {
			present[id] = true
		}
	}
	return present
}

func (s *classicStore) names(id string) []string {
	names := []string{}
	for _, tag := range slices.Sorted(maps.Keys(s.tags)) {
		if s.tags[tag] == id {
			ref, err := parseImageRef(tag)
			if err == nil {
				tag = ref.familiar()
			}
			names = append(names, tag)
		}
	}
	return names
}

// resolve knows IDs, their beginnings and tags. A reference by manifest digest is known only after a pull, which this
// engine can't do.
func (s *classicStore) resolve(ref string) (string, error) {
	if ref == "" {
		return "", refusal(http.StatusBadRequest, "invalid reference format")
	}
	if strings.HasPrefix(ref, "sha256:") && s.images[ref] != nil {
		return ref, nil
	}
	if parsed, err := parseImageRef(ref); err == nil && parsed.digest == "" && s.tags[parsed.String()] != "" {
		return s.tags[parsed.String()], nil
	}
	if hex, ok := isImageID(ref); ok {
		var found []string
		for id := range s.images {
			if strings.HasPrefix(id, "sha256:"+hex) {
				found = append(found, id)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		return "", noSuchImage(ref)
	}
	if _, err := parseImageRef(ref); err != nil {
		return "", err
	}
	return "", noSuchImage(ref)
}

func (s *classicStore) config(id string) (*v1.ConfigFile, error) { return s.images[id].config, nil }

func (s *classicStore) inspect(r *engineRequest, ref string) (map[string]any, error) {
	id, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	wanted, err := r.platform(49)
	if err != nil {
		return nil, err
	}
	image := s.images[id]
	if wanted != nil && !samePlatform(*image.config.Platform(), *wanted) {
		return nil, refusal(http.StatusNotFound, "image with reference %s was found but does not provide the specified platform (%s)",
			ref, formatPlatform(*wanted))
	}
	doc := map[string]any{
		"Id": id, "RepoTags": s.names(id), "RepoDigests": []string{}, "Parent": "", "Comment": "", "Size": len(image.raw),
		"GraphDriver": map[string]any{"Name": "overlay2", "Data": map[string]string{}},
		"Metadata":    map[string]any{"LastTagTime": stamp(image.config.Created.Time)},
	}
	if !r.api.atLeast(44) {
		doc["VirtualSize"] = len(image.raw)
	}
	describeConfig(doc, image.config, image.raw)
	if image.broken {
		doc["RootFS"] = map[string]any{"Type": "layers"}
	}
	return doc, nil
}

func (s *classicStore) list(r *engineRequest, filters map[string][]string) []map[string]any {
	list := []map[string]any{}
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		image, names := s.images[id], s.names(id)
		if !imageMatches(names, image.config.Config.Labels, filters) {
			continue
		}
		repoDigests := []string{}
		switch {
		case r.api.atLeast(43):
		case len(names) == 0:
			names, repoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		default:
			repoDigests = nil
		}
		entry := map[string]any{
			"Id": id, "ParentId": "", "RepoTags": names, "RepoDigests": repoDigests, "Created": image.config.Created.Unix(),
			"Size": len(image.raw), "SharedSize": -1, "Containers": -1, "Labels": image.config.Config.Labels,
		}
		if !r.api.atLeast(44) {
			entry["VirtualSize"] = len(image.raw)
		}
		list = append(list, entry)
	}
	return list
}

func imageMatches(names []string, labels map[string]string, filters map[string][]string) bool {
	for _, value := range filters["dangling"] {
		if (value == "true" || value == "1") != (len(names) == 0) {
			return false
		}
	}
	for _, value := range filters["label"] {
		key, want, valued := strings.Cut(value, "=")
		if got, ok := labels[key]; !ok || valued && got != want {
			return false
		}
	}
	if patterns := filters["reference"]; len(patterns) > 0 {
		return slices.ContainsFunc(names, func(name string) bool {
			repository, _, _ := strings.Cut(name, "@")
			if ref, err := parseImageRef(name); err == nil {
				repository = imageRef{repository: ref.repository}.familiar()
			}
			return slices.ContainsFunc(patterns, func(p string) bool { return wildcard(p, name) || wildcard(p, repository) })
		})
	}
	return true
}

func (s *classicStore) tag(id string, ref imageRef) error {
	if ref.digest != "" {
		return refusal(http.StatusBadRequest, "refusing to create a tag with a digest reference")
	}
	s.tags[ref.String()] = id
	return nil
}

func (s *classicStore) remove(r *engineRequest, ref string) ([]map[string]string, error) {
	id, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	force := r.flag("force")
	names := s.names(id)
	deleted := []map[string]string{}
	hex, byID := isImageID(ref)
	byID = byID && strings.HasPrefix(id, "sha256:"+hex)
	if !byID {
		parsed, err := parseImageRef(ref)
		if err != nil {
			return nil, err
		}
		if user := s.engine.user(id); user != nil && len(names) == 1 && !force {
			return nil, refusal(http.StatusConflict, "conflict: unable to remove repository reference %q (must force) - "+
				"container %s is using its referenced image %s", ref, shortID(user.id), shortID(id))
		}
		delete(s.tags, parsed.String())
		deleted = append(deleted, map[string]string{"Untagged": parsed.familiar()})
		if len(names) > 1 || s.engine.inUse(id, true) != nil {
			return deleted, nil
		}
	}
	if user := s.engine.inUse(id, true); user != nil {
		return nil, refusal(http.StatusConflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s",
			shortID(id), shortID(user.id))
	}
	if byID && len(names) > 1 && !force {
		return nil, refusal(http.StatusConflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories",
			shortID(id))
	}
	if user := s.engine.inUse(id, false); user != nil && !force {
		return nil, refusal(http.StatusConflict, "conflict: unable to delete %s (must be forced) - image is being used by stopped container %s",
			shortID(id), shortID(user.id))
	}
	return append(deleted, s.drop(id)...), nil
}

// drop removes an image with its tags, and the layers that no other image has.
func (s *classicStore) drop(id string) []map[string]string {
	var deleted []map[string]string
	for _, name := range s.names(id) {
		deleted = append(deleted, map[string]string{"Untagged": name})
	}
	maps.DeleteFunc(s.tags, func(_, tagged string) bool { return tagged == id })
	chain := chainIDs(s.images[id].config.RootFS.DiffIDs)
	delete(s.images, id)
	deleted = append(deleted, map[string]string{"Deleted": id})
	kept := s.layers()
	for _, layer := range slices.Backward(chain) {
		if !kept[layer] {
			deleted = append(deleted, map[string]string{"Deleted": layer})
		}
	}
	return deleted
}

func (s *classicStore) prune(all bool) []map[string]string {
	var deleted []map[string]string
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		if s.engine.user(id) == nil && (all || len(s.names(id)) == 0) {
			deleted = append(deleted, s.drop(id)...)
		}
	}
	return deleted
}

func (s *classicStore) breakImage(id string) {
	if image := s.images[id]; image != nil {
		image.broken = true
	}
}

func (s *classicStore) all() []ImageInfo {
	var list []ImageInfo
	for id, image := range s.images {
		info := ImageInfo{ID: id, Names: s.names(id)}
		for _, diffID := range image.config.RootFS.DiffIDs {
			if !image.broken {
				info.Layers = append(info.Layers, diffID.String())
			}
		}
		list = append(list, info)
	}
	return list
}

// user returns a container of an image, whatever its state.
func (e *Engine) user(id string) *container {
	if c := e.inUse(id, true); c != nil {
		return c
	}
	return e.inUse(id, false)
}
