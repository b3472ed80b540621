package launchtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// classicStore keeps images as the graph drivers do: by the digest of their config, with tags
// beside them, and with layers that live as long as an image has them.
type classicStore struct {
	engine *Engine
	images map[string]*classicImage
	tags   map[string]string // name → ID
}

type classicImage struct {
	raw    []byte
	config *v1.ConfigFile
	broken bool
}

func newClassicStore(e *Engine) *classicStore {
	return &classicStore{engine: e, images: map[string]*classicImage{}, tags: map[string]string{}}
}

func (s *classicStore) aborted(*archive) {} // the spool is removed

func (s *classicStore) load(r *engineRequest, a *archive, say *loadAnswer) error {
	var items []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	index, ok := a.files["manifest.json"]
	if !ok {
		return notInSpool("repositories") // it is taken for the oldest form of all
	}
	if err := json.NewDecoder(bytes.NewReader(index)).Decode(&items); err != nil {
		return err
	}
	if items == nil {
		say.line(struct{}{}) // nothing was loaded, and nothing says so
	}
	wanted, err := r.platform(48)
	if err != nil {
		return err
	}
	for _, item := range items {
		raw, err := a.file(item.Config)
		if err != nil {
			return err
		}
		config, err := parseLoosely(raw)
		if err != nil {
			return err
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
		for _, tag := range item.RepoTags {
			s.tags[imageName(tag)] = id
			say.stream("Loaded image: %s\n", imageName(tag))
		}
		if len(item.RepoTags) == 0 {
			say.stream("Loaded image ID: %s\n", id)
		}
	}
	return nil
}

// parseLoosely reads a config in which a command may be a string.
func parseLoosely(raw []byte) (*v1.ConfigFile, error) {
	var document map[string]any
	if err := json.Unmarshal(raw, &document); err != nil {
		return nil, err
	}
	config, _ := document["config"].(map[string]any)
	for _, field := range []string{"Entrypoint", "Cmd"} {
		if text, ok := config[field].(string); ok {
			config[field] = []string{text}
		}
	}
	return v1.ParseConfigFile(bytes.NewReader(must(json.Marshal(document))))
}

// unpack proves the layers that the store hasn't got; one that is sent although it is there is
// never read.
func (s *classicStore) unpack(r *engineRequest, a *archive, config *v1.ConfigFile, layers []string,
	say *loadAnswer) error {
	chain := chainIDs(config.RootFS.DiffIDs)
	present := s.layers()
	for i, diffID := range config.RootFS.DiffIDs {
		if present[chain[i]] {
			continue
		}
		compressed, err := a.file(layers[i])
		if err != nil {
			return err
		}
		say.progress(shortID(diffID.String()), len(compressed))
		got, err := s.engine.unpackLayer(compressed, s.engine.api.atLeast(42))
		if err != nil {
			return fmt.Errorf("Error processing tar file(exit status 1): %w", err)
		}
		if got != diffID.String() {
			return fmt.Errorf("invalid diffID for layer %d: expected %q, got %q", i, diffID, got)
		}
	}
	return nil
}

func notInSpool(name string) error {
	return fmt.Errorf("open /var/lib/docker/tmp/docker-import-000000000/%s: no such file or directory", name)
}

func (a *archive) file(name string) ([]byte, error) {
	data, ok := a.files[name]
	if !ok {
		return nil, notInSpool(name)
	}
	return data, nil
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
			names = append(names, tag)
		}
	}
	return names
}

// resolve knows IDs, their beginnings and tags. A reference by manifest digest is known only after
// a pull, which this engine can't do.
func (s *classicStore) resolve(ref string) (string, error) {
	if id, ok := s.tags[imageName(ref)]; ok {
		return id, nil
	}
	if hex, ok := isImageID(ref); ok {
		for id := range s.images {
			if strings.HasPrefix(id, "sha256:"+hex) {
				return id, nil
			}
		}
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
		return nil, refusal(http.StatusNotFound,
			"image with reference %s was found but does not provide the specified platform (%s)",
			ref, wanted.String())
	}
	doc := map[string]any{
		"Id": id, "RepoTags": s.names(id), "RepoDigests": []string{}, "Size": len(image.raw),
	}
	describeConfig(doc, image.config, image.raw)
	if image.broken {
		doc["RootFS"] = map[string]any{"Type": "layers"}
	}
	return doc, nil
}

func (s *classicStore) list(labels []string) []map[string]any {
	list := []map[string]any{}
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		if own := s.images[id].config.Config.Labels; labelled(own, labels) {
			list = append(list, map[string]any{"Id": id, "RepoTags": s.names(id), "RepoDigests": []string{},
				"Labels": own})
		}
	}
	return list
}

func (s *classicStore) remove(ref string, force bool) ([]map[string]string, error) {
	id, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	user := s.engine.user(id)
	names := s.names(id)
	if name := imageName(ref); s.tags[name] == id {
		if user != nil && len(names) == 1 && !force {
			return nil, refusal(http.StatusConflict,
				"conflict: unable to remove repository reference %q (must force) - "+
					"container %s is using its referenced image %s", ref, shortID(user.id), shortID(id))
		}
		if len(names) > 1 || user != nil {
			delete(s.tags, name)
			return []map[string]string{{"Untagged": name}}, nil
		}
	} else if user != nil && (user.live() || !force) {
		return nil, refusal(http.StatusConflict,
			"conflict: unable to delete %s - image is being used by container %s",
			shortID(id), shortID(user.id))
	}
	return s.drop(id), nil
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

func (s *classicStore) prune(all bool, labels []string) []map[string]string {
	var deleted []map[string]string
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		dangling := len(s.names(id)) == 0
		if s.engine.user(id) == nil && (all || dangling) &&
			labelled(s.images[id].config.Config.Labels, labels) {
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

func (s *classicStore) fill(string) {}

func (s *classicStore) all() []ImageInfo {
	var list []ImageInfo
	for id, image := range s.images {
		info := ImageInfo{ID: id, Names: s.names(id)}
		if !image.broken {
			info.Layers = diffIDs(image.config)
		}
		list = append(list, info)
	}
	return list
}
