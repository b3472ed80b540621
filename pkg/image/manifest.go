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
	"tee-launcher/pkg/sanitize"
)

// dockerLayerZstd is what BuildKit calls a zstd layer in a Docker manifest.
const dockerLayerZstd types.MediaType = "application/vnd.docker.image.rootfs.diff.tar.zstd"

// document is a manifest or an index, of which exactly one reading exists.
type document struct {
	mediaType types.MediaType
	manifests []descriptor // of an index; nil for a manifest
	config    descriptor   // of a manifest
	layers    []descriptor // of a manifest
}

// isIndex tells the two apart. An index without an entry is refused, as is a manifest without a layer.
func (d *document) isIndex() bool { return d.manifests != nil }

type descriptor struct {
	mediaType   types.MediaType
	digest      digest.Digest
	size        int64
	platform    *v1.Platform
	attestation bool
}

// runnable reports whether an entry of an index is an image, and not what describes one.
func (d *descriptor) runnable() bool {
	return !d.attestation && d.platform != nil && d.platform.OS != "unknown" && d.mediaType.IsImage()
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
		return nil, errors.New("it is an index and a manifest at once")
	case hasManifests:
		return parseIndex(head.MediaType, object["manifests"])
	case hasLayers && hasConfig:
		return parseManifest(head.MediaType, object["config"], object["layers"])
	}
	return nil, errors.New("it is neither an index nor the manifest of an image")
}

func parseIndex(mediaType types.MediaType, entries json.RawMessage) (*document, error) {
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
	for i, m := range manifests {
		if m.size > MaxManifest {
			return nil, fmt.Errorf("manifests[%d]: %d bytes are over the limit of %d", i, m.size, MaxManifest)
		}
	}
	return &document{mediaType: mediaType, manifests: manifests}, nil
}

func parseManifest(mediaType types.MediaType, config, layers json.RawMessage) (*document, error) {
	switch mediaType {
	case "":
		mediaType = types.OCIManifestSchema1
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
	default:
		return nil, fmt.Errorf("it has layers but calls itself %.100q", mediaType)
	}
	d := &document{mediaType: mediaType}
	var err error
	if d.config, err = parseDescriptor(config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if !d.config.mediaType.IsConfig() {
		return nil, fmt.Errorf("config: %.100q is not the config of an image", d.config.mediaType)
	}
	if d.config.size > MaxManifest {
		return nil, fmt.Errorf("config: %d bytes are over the limit of %d", d.config.size, MaxManifest)
	}
	if d.layers, err = parseDescriptors("layers", layers, maxLayers); err != nil {
		return nil, err
	}
	for i, l := range d.layers {
		if compressionOf(l.mediaType) == unsupported {
			return nil, fmt.Errorf("layers[%d]: %.100q is not a layer that can be pulled", i, l.mediaType)
		}
	}
	return d, nil
}

func parseDescriptors(field string, data json.RawMessage, limit int) ([]descriptor, error) {
	array, err := strictjson.Parse(data, freeNames()...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	elements, err := array.Array(limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	if len(elements) == 0 {
		return nil, fmt.Errorf("%s: there is none", field)
	}
	all := make([]descriptor, 0, len(elements))
	for i, element := range elements {
		d, err := parseDescriptor(element.Raw())
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
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
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return descriptor{}, plain(err)
	}
	if _, ok := object["urls"]; ok {
		return descriptor{}, errors.New("it has urls: content from elsewhere is not fetched")
	}
	d := descriptor{mediaType: raw.MediaType, size: raw.Size}
	if d.digest, err = digest.Parse(raw.Digest); err != nil {
		return descriptor{}, err
	}
	if d.size <= 0 || d.size > maxLayer {
		return descriptor{}, fmt.Errorf("size is %d, want 1 to %d", d.size, int64(maxLayer))
	}
	if _, ok := object["data"]; ok {
		// Readers may take what is embedded for the content itself.
		if err := checkBytes(raw.Data, d.digest, d.size); err != nil {
			return descriptor{}, fmt.Errorf("data: %w", err)
		}
	}
	d.attestation = raw.Annotations["vnd.docker.reference.type"] == "attestation-manifest"
	if platform, ok := object["platform"]; ok {
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

// parseConfig reads the config of an image as far as the proof needs it, and whole for those who look at it.
func parseConfig(data []byte) (config *v1.ConfigFile, diffIDs []digest.Digest, err error) {
	object, err := parseObject(data, "architecture", "variant", "os", "os.version", "os.features", "config", "rootfs", "history", "created")
	if err != nil {
		return nil, nil, err
	}
	if _, err := parseObject(object["rootfs"], "type", "diff_ids"); err != nil {
		return nil, nil, fmt.Errorf("rootfs: %w", err)
	}
	var exact struct {
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
		History []struct{} `json:"history"` // to be counted
	}
	if err := json.Unmarshal(data, &exact); err != nil {
		return nil, nil, plain(err)
	}
	if len(exact.History) > maxHistory {
		return nil, nil, fmt.Errorf("history: %d entries are over the limit of %d",
			len(exact.History), maxHistory)
	}
	if exact.RootFS.Type != "layers" {
		return nil, nil, fmt.Errorf("rootfs: type is %.100q, want \"layers\"", exact.RootFS.Type)
	}
	for i, id := range exact.RootFS.DiffIDs {
		diffID, err := digest.Parse(id)
		if err != nil {
			return nil, nil, fmt.Errorf("rootfs: diff_ids[%d]: %w", i, err)
		}
		diffIDs = append(diffIDs, diffID)
	}
	config = new(v1.ConfigFile)
	if err := json.Unmarshal(data, config); err != nil {
		return nil, nil, plain(err)
	}
	return config, diffIDs, nil
}

// choose returns the one entry of an index that `docker pull` would run on platform.
func choose(entries []descriptor, platform v1.Platform) (descriptor, error) {
	var found []descriptor
	var offered []string
	for _, e := range entries {
		if !e.runnable() {
			continue
		}
		if s := sanitize.Line(e.platform.String(), 40); !slices.Contains(offered, s) {
			offered = append(offered, s)
		}
		if runs(*e.platform, platform) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return descriptor{}, &noPlatformError{want: platform, offered: offered}
	}
	return descriptor{}, fmt.Errorf("%d entries are for %s, want one", len(found), platform)
}

// runs reports whether an image for have runs on want, with the variants that stand for the architecture itself.
func runs(have, want v1.Platform) bool {
	return have.OS == want.OS && have.Architecture == want.Architecture && variant(have) == variant(want)
}

func variant(p v1.Platform) string {
	if p.Architecture == "amd64" && p.Variant == "v1" || p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "8") {
		return ""
	}
	return p.Variant
}

// noPlatformError is an index or a config without the wanted platform.
type noPlatformError struct {
	want    v1.Platform
	offered []string
}

func (e *noPlatformError) Error() string {
	if len(e.offered) == 0 {
		return fmt.Sprintf("there is no image for %s", e.want)
	}
	const most = 10
	offered := e.offered
	if len(offered) > most {
		offered = append(slices.Clone(offered[:most]), "…")
	}
	return fmt.Sprintf("there is no image for %s, only for %s", e.want, strings.Join(offered, ", "))
}

// compression is how a layer's tar is packed.
type compression int

const (
	unsupported compression = iota
	uncompressed
	gzipped
	zstandard
)

func compressionOf(t types.MediaType) compression {
	switch t {
	case types.OCILayer, types.DockerLayer:
		return gzipped
	case types.OCILayerZStd, dockerLayerZstd:
		return zstandard
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer:
		return uncompressed
	}
	return unsupported
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
