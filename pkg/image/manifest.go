package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/internal/strictjson"
)

const (
	// dockerLayerZstd is what BuildKit calls a zstd layer in a Docker manifest.
	dockerLayerZstd    types.MediaType = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeignPlain types.MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociRestrictedZstd  types.MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
)

// document is a manifest or an index, of which exactly one reading exists.
type document struct {
	mediaType types.MediaType
	untyped   bool         // it doesn't name its type itself
	manifests []descriptor // of an index; nil for a manifest
	config    descriptor   // of a manifest
	layers    []descriptor // of a manifest
}

// isIndex tells the two apart. An index without an entry is refused.
func (d *document) isIndex() bool { return d.manifests != nil }

type descriptor struct {
	index       int // among its like
	mediaType   types.MediaType
	digest      digest.Digest
	size        int64
	platform    *v1.Platform // nil: it names none
	attestation bool
	artifact    bool // it says that it is another thing than an image
	urls        bool
}

// runnable reports whether an entry of an index may be an image, and not what describes one.
func (d *descriptor) runnable() bool {
	described := d.attestation || d.platform == nil && d.artifact || d.platform != nil && d.platform.OS == "unknown"
	return !described && (d.mediaType.IsImage() || d.mediaType.IsIndex())
}

// parseDocument types a proved manifest or index from its bytes alone. Everything that two readers could understand in
// two ways is an error: the digest would approve both readings.
func parseDocument(data []byte) (*document, error) {
	object, err := parseObject(data, "schemaVersion", "mediaType", "config", "layers", "manifests",
		"fsLayers", "history", "signatures", "annotations", "subject", "artifactType")
	if err != nil {
		return nil, err
	}
	var head struct {
		SchemaVersion int64           `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, plain(err)
	}
	if head.SchemaVersion != 2 {
		return nil, fmt.Errorf("schemaVersion is %d, want 2", head.SchemaVersion)
	}
	for _, old := range []string{"fsLayers", "signatures"} {
		if _, ok := object[old]; ok {
			return nil, fmt.Errorf("it has %s, which belongs to schema 1", old)
		}
	}
	_, hasLayers := object["layers"]
	_, hasConfig := object["config"]
	_, hasManifests := object["manifests"]
	switch {
	case hasManifests && (hasLayers || hasConfig):
		return nil, errors.New("it can be read in two ways: as an index and as a manifest")
	case hasManifests:
		return parseIndex(head.MediaType, object["manifests"])
	case hasLayers && hasConfig:
		return parseManifest(head.MediaType, object["config"], object["layers"])
	}
	return nil, fmt.Errorf("it is neither an index nor the manifest of an image%s", called(head.MediaType))
}

// called names a type that a document gives itself.
func called(t types.MediaType) string {
	if t == "" {
		return ""
	}
	return fmt.Sprintf(", and calls itself %.100q", t)
}

func parseIndex(mediaType types.MediaType, entries json.RawMessage) (*document, error) {
	untyped := mediaType == ""
	switch mediaType {
	case "":
		mediaType = types.OCIImageIndex
	case types.OCIImageIndex, types.DockerManifestList:
	default:
		return nil, fmt.Errorf("it has manifests but calls itself %.100q", mediaType)
	}
	manifests, err := parseDescriptors("manifests", entries, maxEntries)
	if err != nil {
		return nil, err
	}
	if len(manifests) == 0 {
		return nil, errors.New("it is an index without an entry")
	}
	for i, m := range manifests {
		if m.size > MaxManifest {
			return nil, fmt.Errorf("manifests[%d]: %d bytes are over the limit of %d", i, m.size, MaxManifest)
		}
	}
	return &document{mediaType: mediaType, untyped: untyped, manifests: manifests}, nil
}

func parseManifest(mediaType types.MediaType, config, layers json.RawMessage) (*document, error) {
	d := &document{mediaType: mediaType}
	switch mediaType {
	case "":
		d.mediaType, d.untyped = types.OCIManifestSchema1, true
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
	default:
		return nil, fmt.Errorf("it has layers but calls itself %.100q", mediaType)
	}
	var err error
	if d.config, err = parseDescriptor(config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if t := d.config.mediaType; !t.IsConfig() && !isLoose(t) {
		return nil, fmt.Errorf("it is %s, not an image: its config is of type %.100q", thing(t), t)
	}
	if d.config.size > MaxManifest {
		return nil, fmt.Errorf("config: %d bytes are over the limit of %d", d.config.size, MaxManifest)
	}
	if d.layers, err = parseDescriptors("layers", layers, maxLayers); err != nil {
		return nil, err
	}
	for i, l := range d.layers {
		if err := layerForm(l); err != nil {
			return nil, fmt.Errorf("layers[%d]: %w", i, err)
		}
	}
	return d, nil
}

// thing names what has a config of this type.
func thing(config types.MediaType) string {
	if strings.HasPrefix(string(config), "application/vnd.cncf.helm.") {
		return "a Helm chart"
	}
	return "an artifact"
}

// layerForm returns why a layer of this form can't be used.
func layerForm(l descriptor) error {
	t := l.mediaType
	switch {
	case isLayer(t) || isLoose(t):
		return nil // what is elsewhere too is fetched from the source all the same
	case isRestricted(t):
		if l.urls {
			return fmt.Errorf("%.100q with urls is content from elsewhere, which is not fetched", t)
		}
		return nil
	case strings.HasSuffix(string(t), "+encrypted"):
		return fmt.Errorf("it is encrypted (%.100q), and there is no key for it", t)
	}
	return fmt.Errorf("%.100q is not the layer of an image", t)
}

func parseDescriptors(field string, data json.RawMessage, limit int) ([]descriptor, error) {
	if string(data) == "null" {
		return nil, nil // as Go reads it, and so every tool that people have
	}
	array, err := strictjson.Parse(data, freeNames()...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	elements, err := array.Array(limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	all := make([]descriptor, 0, len(elements))
	for i, element := range elements {
		d, err := parseDescriptor(element.Raw())
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		d.index = i
		all = append(all, d)
	}
	return all, nil
}

func parseDescriptor(data json.RawMessage) (descriptor, error) {
	object, err := parseObject(data, "mediaType", "size", "digest", "urls", "data", "annotations", "platform", "artifactType")
	if err != nil {
		return descriptor{}, err
	}
	var raw struct {
		MediaType   types.MediaType   `json:"mediaType"`
		Size        int64             `json:"size"`
		Digest      string            `json:"digest"`
		Data        []byte            `json:"data"`
		Annotations map[string]string `json:"annotations"`
		URLs        []string          `json:"urls"`
		Artifact    string            `json:"artifactType"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return descriptor{}, plain(err)
	}
	d := descriptor{
		mediaType: raw.MediaType, size: raw.Size, urls: len(raw.URLs) > 0,
		// Tools name the config's type here, where it is an image.
		artifact: raw.Artifact != "" && !types.MediaType(raw.Artifact).IsConfig(),
	}
	if d.digest, err = digest.Parse(raw.Digest); err != nil {
		return descriptor{}, err
	}
	if d.size <= 0 || d.size > maxLayer {
		return descriptor{}, fmt.Errorf("size is %d, want 1 to %d", d.size, int64(maxLayer))
	}
	if _, ok := object["data"]; ok {
		// Readers may take what is embedded for the content itself.
		if err := checkBytes(raw.Data, d.digest, d.size); err != nil {
			return descriptor{}, contradiction("data: %v", err)
		}
	}
	d.attestation = raw.Annotations["vnd.docker.reference.type"] == "attestation-manifest"
	if platform, ok := object["platform"]; ok && string(platform) != "null" {
		if _, err := parseObject(platform, "architecture", "os", "os.version", "os.features", "variant", "features"); err != nil {
			return descriptor{}, fmt.Errorf("platform: %w", err)
		}
		d.platform = new(v1.Platform)
		if err := json.Unmarshal(platform, d.platform); err != nil {
			return descriptor{}, fmt.Errorf("platform: %w", plain(err))
		}
	}
	return d, nil
}

// imageConfig is the config of an image, as far as the proof needs it, and whole for those who look
// at it.
type imageConfig struct {
	file    *v1.ConfigFile
	diffIDs []digest.Digest
	strings []string // fields that are strings, where the specification has lists
}

func parseConfig(data []byte) (*imageConfig, error) {
	object, err := parseObject(data, "architecture", "variant", "os", "os.version", "os.features", "config", "rootfs", "history", "created")
	if err != nil {
		return nil, err
	}
	if _, err := parseObject(object["rootfs"], "type", "diff_ids"); err != nil {
		return nil, fmt.Errorf("rootfs: %w", err)
	}
	var exact struct {
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
		History []struct{} `json:"history"` // to be counted
	}
	if err := json.Unmarshal(data, &exact); err != nil {
		return nil, plain(err)
	}
	if len(exact.History) > maxHistory {
		return nil, fmt.Errorf("history: %d entries are over the limit of %d",
			len(exact.History), maxHistory)
	}
	if t := exact.RootFS.Type; t != "layers" && t != "" {
		return nil, fmt.Errorf("rootfs: type is %.100q, want \"layers\"", t)
	}
	c := &imageConfig{file: new(v1.ConfigFile)}
	for i, id := range exact.RootFS.DiffIDs {
		diffID, err := digest.Parse(id)
		if err != nil {
			return nil, fmt.Errorf("rootfs: diff_ids[%d]: %w", i, err)
		}
		c.diffIDs = append(c.diffIDs, diffID)
	}
	if data, c.strings, err = withLists(data, object); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, c.file); err != nil {
		return nil, plain(err)
	}
	return c, nil
}

// withLists returns a config in which Entrypoint and Cmd are lists, as Docker reads them where they
// are strings, and which of them were.
func withLists(data []byte, object map[string]json.RawMessage) ([]byte, []string, error) {
	if c := object["config"]; c == nil || string(c) == "null" {
		return data, nil, nil
	}
	inner, err := parseObject(object["config"], "Entrypoint", "Cmd")
	if err != nil {
		return nil, nil, fmt.Errorf("config: %w", err)
	}
	var strings []string
	for _, field := range []string{"Entrypoint", "Cmd"} {
		if text := inner[field]; len(text) > 0 && text[0] == '"' {
			inner[field] = slices.Concat(json.RawMessage("["), text, json.RawMessage("]"))
			strings = append(strings, field)
		}
	}
	if strings == nil {
		return data, nil, nil
	}
	if object["config"], err = json.Marshal(inner); err != nil {
		return nil, nil, err
	}
	data, err = json.Marshal(object)
	return data, strings, err
}

// isLayer reports whether every store takes a layer of type t.
func isLayer(t types.MediaType) bool {
	switch t {
	case types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer,
		types.DockerLayer, dockerLayerZstd, types.DockerUncompressedLayer:
		return true
	}
	return false
}

// isRestricted reports whether a layer of type t is one that a registry needn't have.
func isRestricted(t types.MediaType) bool {
	switch t {
	case types.OCIRestrictedLayer, types.OCIUncompressedRestrictedLayer, ociRestrictedZstd,
		types.DockerForeignLayer, dockerForeignPlain:
		return true
	}
	return false
}

// isLoose reports whether t says nothing of what has it. Registries and tools of old gave such types
// to configs and layers, and classic stores don't look at them.
func isLoose(t types.MediaType) bool {
	switch t {
	case "", "application/octet-stream", "application/json", "text/html":
		return true
	}
	return false
}

// checkBytes proves that data is what h and size say.
func checkBytes(data []byte, h digest.Digest, size int64) error {
	if int64(len(data)) != size {
		return fmt.Errorf("got %d bytes, want %d", len(data), size)
	}
	if got := digest.Of(data); got != h {
		return fmt.Errorf("got %s, want %s", got, h)
	}
	return nil
}

// freeNames are the objects whose keys people choose, which may differ in letter case.
func freeNames() []string { return []string{"annotations", "Labels", "Volumes", "ExposedPorts"} }

// parseObject returns the members of the one JSON object in data.
func parseObject(data []byte, known ...string) (map[string]json.RawMessage, error) {
	document, err := strictjson.Parse(data, freeNames()...)
	if err != nil {
		return nil, err
	}
	members, err := document.Object(known...)
	if err != nil {
		return nil, err
	}
	object := make(map[string]json.RawMessage, len(members))
	for name, member := range members {
		object[name] = member.Raw()
	}
	return object, nil
}

// plain words a JSON error without the names of our types.
func plain(err error) error {
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		return fmt.Errorf("%s is a JSON %s, want %s", kind.Field, kind.Value, kind.Type)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON document ends early")
	}
	return err
}
