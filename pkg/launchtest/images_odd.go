package launchtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Outcome is what has to become of an image.
type Outcome int

// The outcomes, by the exit code that they are for a pull.
const (
	Taken   Outcome = 0
	Refused Outcome = 5 // the image is in a form that can't be used
	Lied    Outcome = 6 // its documents contradict each other
)

// OddImage is an image in a form that some puller or other stumbled over.
type OddImage struct {
	Name      string
	Root      []byte   // what is approved
	Manifests [][]byte // that it leads to
	Blobs     [][]byte
	Runs      string // for an index: the content of the file "hello" of the image that runs

	Classic      Outcome // with a classic store
	Classic29    Outcome // with that of an engine from 29 on
	Containerd   Outcome // with containerd's
	Containerd26 Outcome // with that of an engine before 28
	Says         string  // part of what a refusal says
}

// On returns what has to become of it on an engine that speaks up to version 1.api.
func (o OddImage) On(containerd bool, api int) Outcome {
	switch {
	case containerd && api < 48:
		return o.Containerd26
	case containerd:
		return o.Containerd
	case api >= 52:
		return o.Classic29
	}
	return o.Classic
}

// Push stores the image under its digest and tags.
func (o OddImage) Push(r *Registry, repository string, tags ...string) (name.Digest, error) {
	for _, blob := range o.Blobs {
		if _, err := r.PushBlob(repository, blob); err != nil {
			return name.Digest{}, err
		}
	}
	for _, manifest := range o.Manifests {
		if _, err := r.PushManifest(repository, manifest); err != nil {
			return name.Digest{}, err
		}
	}
	return r.PushManifest(repository, o.Root, tags...)
}

// Has reports whether the image has a manifest of this digest.
func (o OddImage) Has(digest string) bool {
	return slices.ContainsFunc(o.Manifests, func(m []byte) bool { return digestOf(m) == digest })
}

// object is a JSON object. It is written with its names in order, so that it has one digest.
type object = map[string]any

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// oddMaker makes one image and keeps what it consists of.
type oddMaker struct{ OddImage }

func (m *oddMaker) blob(data []byte) object {
	m.Blobs = append(m.Blobs, data)
	return object{"size": len(data), "digest": digestOf(data)}
}

// parts are an image before its documents are written.
type parts struct {
	plain, packed []byte // of the one layer
	layer         object // its descriptor
	config        object
	manifest      object // without config and layers, which are set at last
	configType    any
}

// text is the content of a file, which no other odd image has: engines take what they hold already
// without a look at what it is called.
func (m *oddMaker) text(content string) string { return m.Name + ": " + content }

// image makes an image whose file "hello" holds content, changed before its documents are written,
// and returns its descriptor.
func (m *oddMaker) image(content string, change func(p *parts)) object {
	p := &parts{configType: ociConfig, manifest: object{"schemaVersion": 2, "mediaType": ociManifest}}
	p.plain = must(FileLayer(File{Path: "hello", Data: []byte(m.text(content)), Mode: 0o755}))
	p.packed = gzipOf(p.plain)
	p.layer = object{"mediaType": ociLayer + "+gzip"}
	p.config = object{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2024-01-02T03:04:05Z",
		"config": object{"Cmd": []string{"/hello"}},
		"rootfs": object{"type": "layers", "diff_ids": []string{digestOf(p.plain)}},
	}
	if change != nil {
		change(p)
	}
	if p.layer != nil {
		for k, v := range m.blob(p.packed) {
			if _, set := p.layer[k]; !set {
				p.layer[k] = v
			}
		}
		p.manifest["layers"] = []object{p.layer}
	}
	config := m.blob(must(json.Marshal(p.config)))
	if p.configType != nil {
		config["mediaType"] = p.configType
	}
	if _, set := p.manifest["config"]; !set {
		p.manifest["config"] = config
	}
	return m.document(p.manifest)
}

// document adds a manifest or index, and returns its descriptor.
func (m *oddMaker) document(o object) object {
	data := must(json.Marshal(o))
	m.Manifests = append(m.Manifests, data)
	m.Root = data // the last one is the one that is approved
	mediaType, named := o["mediaType"]
	if !named {
		mediaType = ociManifest
	}
	return object{"mediaType": mediaType, "size": len(data), "digest": digestOf(data)}
}

// index makes an index of entries.
func (m *oddMaker) index(entries ...object) object {
	return m.document(object{"schemaVersion": 2, "mediaType": ociIndex, "manifests": entries})
}

// with is an entry of an index with these fields too.
func with(entry, more object) object {
	entry = maps.Clone(entry)
	maps.Copy(entry, more)
	return entry
}

// on is an entry of an index for this architecture, with these fields of the platform too.
func on(entry object, more ...object) object {
	platform := object{"os": "linux", "architecture": runtime.GOARCH}
	for _, o := range more {
		maps.Copy(platform, o)
	}
	return with(entry, object{"platform": platform})
}

func gzipOf(data []byte) []byte {
	var buf bytes.Buffer
	w := must(gzip.NewWriterLevel(&buf, gzip.BestSpeed))
	must(w.Write(data))
	must(0, w.Close())
	return buf.Bytes()
}

func zstdOf(data []byte) []byte {
	w := must(zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1)))
	return w.EncodeAll(data, nil)
}

// OddImages returns the odd images, always the same ones on one architecture.
func OddImages() []OddImage {
	var all []OddImage
	add := func(name string, classic, containerd Outcome, says string, build func(m *oddMaker)) {
		m := &oddMaker{OddImage{
			Name: name, Says: says, Classic: classic, Classic29: classic, Containerd: containerd, Containerd26: containerd,
		}}
		build(m)
		all = append(all, m.OddImage)
	}
	single := func(name string, classic, containerd Outcome, says string, change func(p *parts)) {
		add(name, classic, containerd, says, func(m *oddMaker) { m.image("hello", change) })
	}
	taken := func(name string, change func(p *parts)) { single(name, Taken, Taken, "", change) }
	refused := func(name, says string, change func(p *parts)) { single(name, Refused, Refused, says, change) }
	lied := func(name, says string, change func(p *parts)) { single(name, Lied, Lied, says, change) }
	classic := func(name, says string, change func(p *parts)) { single(name, Taken, Refused, says, change) }
	layerType := func(t string) func(p *parts) { return func(p *parts) { p.layer["mediaType"] = t } }
	configType := func(t string) func(p *parts) { return func(p *parts) { p.configType = t } }

	taken("urls null", func(p *parts) { p.layer["urls"] = nil })
	taken("urls empty", func(p *parts) { p.layer["urls"] = []string{} })
	taken("urls of elsewhere on a layer that the registry has", func(p *parts) { p.layer["urls"] = []string{"http://127.0.0.1:9/x"} })
	taken("nondistributable layer that the registry has", layerType("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"))
	taken("foreign layer that the registry has", func(p *parts) {
		const docker = "application/vnd.docker."
		p.layer["mediaType"] = docker + "image.rootfs.foreign.diff.tar.gzip"
		p.manifest["mediaType"], p.configType = docker+"distribution.manifest.v2+json", docker+"container.image.v1+json"
	})
	taken("zstd in a Docker manifest", func(p *parts) { // as BuildKit makes it
		const docker = "application/vnd.docker."
		p.packed, p.layer["mediaType"] = zstdOf(p.plain), docker+"image.rootfs.diff.tar.zstd"
		p.manifest["mediaType"], p.configType = docker+"distribution.manifest.v2+json", docker+"container.image.v1+json"
	})
	all[len(all)-1].Containerd26, all[len(all)-1].Says = Refused, "diff.tar.zstd"
	taken("rootfs without type", func(p *parts) { delete(p.config["rootfs"].(object), "type") })
	taken("no layers", func(p *parts) {
		p.config["rootfs"].(object)["diff_ids"], p.manifest["layers"], p.layer = []string{}, []object{}, nil
	})
	taken("os empty", func(p *parts) { p.config["os"] = "" })
	taken("manifest without mediaType", func(p *parts) { delete(p.manifest, "mediaType") })
	taken("gzip called zstd", layerType(ociLayer+"+zstd"))
	if runtime.GOARCH == "amd64" {
		taken("architecture x86_64", func(p *parts) { p.config["architecture"] = "x86_64" })
		taken("config with a variant", func(p *parts) { p.config["variant"] = "v2" })
	}

	classic("layer octet-stream", "octet-stream", layerType("application/octet-stream"))
	classic("config octet-stream", "octet-stream", configType("application/octet-stream"))
	for _, field := range []string{"Entrypoint", "Cmd"} {
		classic(field+" a string", field, func(p *parts) { p.config["config"] = object{field: "/hello"} })
		all[len(all)-1].Classic29 = Refused
	}

	refused("architecture empty", "no architecture", func(p *parts) { p.config["architecture"] = "" })
	refused("os and architecture empty", "no architecture", func(p *parts) { p.config["architecture"], p.config["os"] = "", "" })
	refused("helm chart", "Helm chart", configType("application/vnd.cncf.helm.config.v1+json"))
	refused("artifact", "an artifact", configType("application/vnd.oci.empty.v1+json"))
	refused("encrypted layer", "encrypted", layerType(ociLayer+"+gzip+encrypted"))
	refused("layer of an unknown kind", "not the layer of an image", layerType(ociLayer+"+rar"))
	refused("layer x-gtar", "not the layer of an image", layerType("application/x-gtar"))
	refused("config x-gtar", "an artifact", configType("application/x-gtar"))
	refused("nondistributable layer with urls", "content from elsewhere", func(p *parts) {
		p.layer["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
		p.layer["urls"] = []string{"http://127.0.0.1:9/x"}
	})
	refused("config over 4 MiB", "over the limit of 4194304", func(p *parts) { p.config["x"] = strings.Repeat("y", 5_000_000) })
	refused("manifest over 4 MiB", "4194304 bytes, the limit", func(p *parts) { p.manifest["x"] = strings.Repeat("y", 5_000_000) })
	refused("a name twice", "in another letter case", func(p *parts) { p.manifest["Layers"] = []object{} })
	refused("config for another architecture", "only for linux/s390x", func(p *parts) { p.config["architecture"] = "s390x" })

	lied("size of the config", "what names it says 7", func(p *parts) {
		p.manifest["config"] = object{"mediaType": ociConfig, "size": 7, "digest": digestOf(must(json.Marshal(p.config)))}
	})
	lied("more diff_ids than layers", "diff_ids", func(p *parts) {
		rootfs := p.config["rootfs"].(object)
		rootfs["diff_ids"] = append(rootfs["diff_ids"].([]string), digestOf(nil))
	})

	index := func(name, runs string, build func(m *oddMaker)) {
		add(name, Taken, Taken, "", func(m *oddMaker) {
			build(m)
			m.Runs = m.text(runs)
		})
	}
	index("index: gzip and zstd", "first", func(m *oddMaker) {
		g := m.image("first", nil)
		z := m.image("first", func(p *parts) {
			p.packed, p.layer["mediaType"] = zstdOf(p.plain), ociLayer+"+zstd"
		})
		m.index(on(g), with(on(z), object{"annotations": object{"io.github.containers.compression.zstd": "true"}}))
	})
	index("index: the same entry twice", "first", func(m *oddMaker) {
		e := on(m.image("first", nil))
		m.index(e, e)
	})
	index("index: differing os.version", "first", func(m *oddMaker) {
		a, b := m.image("first", nil), m.image("second", nil)
		m.index(on(a, object{"os.version": "10.0.1"}), on(b, object{"os.version": "10.0.2"}))
	})
	index("index: differing features", "first", func(m *oddMaker) {
		a, b := m.image("first", nil), m.image("second", nil)
		m.index(on(a, object{"features": []string{"sse4"}}), on(b))
	})
	index("index: os.features first", "second", func(m *oddMaker) {
		a, b := m.image("first", nil), m.image("second", nil)
		m.index(on(a, object{"os.features": []string{"erofs"}}), on(b))
	})
	index("index: platform null first", "second", func(m *oddMaker) {
		a, b := m.image("first", nil), m.image("second", nil)
		m.index(with(a, object{"platform": nil}), on(b))
	})
	index("index: no platform at all", "first", func(m *oddMaker) { m.index(m.image("first", nil)) })
	index("index: an artifact without a platform beside", "second", func(m *oddMaker) {
		a := m.image("first", configType("application/vnd.oci.empty.v1+json"))
		m.index(with(a, object{"artifactType": "application/vnd.example.sbom"}), on(m.image("second", nil)))
	})
	index("index: an index without a platform beside", "second", func(m *oddMaker) {
		inner := m.index(on(m.image("first", nil)))
		m.index(inner, on(m.image("second", nil)))
	})
	index("index: nested", "inner", func(m *oddMaker) { m.index(on(m.index(on(m.image("inner", nil))))) })
	index("index: another platform's entry lies", "first", func(m *oddMaker) {
		a, b := m.image("first", nil), m.image("second", nil) // for this architecture, not for that
		m.index(on(a), on(b, object{"architecture": "s390x"}))
	})
	if runtime.GOARCH == "amd64" {
		variants := func(m *oddMaker, names ...string) {
			var entries []object
			for _, v := range names {
				entries = append(entries, on(m.image("amd64 "+v, func(p *parts) { p.config["variant"] = v }), object{"variant": v}))
			}
			m.index(entries...)
		}
		index("index: variants", "amd64 v1", func(m *oddMaker) { variants(m, "v3", "v2", "v1") })
		index("index: only v2", "amd64 v2", func(m *oddMaker) { variants(m, "v2") })
		add("index: only a variant that no processor has", Refused, Refused, "only for linux/amd64/v9",
			func(m *oddMaker) { variants(m, "v9") })
	}
	add("index: only for another architecture", Refused, Refused, "there is no image for linux/"+runtime.GOARCH+", only for linux/s390x",
		func(m *oddMaker) {
			other := func(p *parts) { p.config["architecture"] = "s390x" }
			m.index(on(m.image("first", other), object{"architecture": "s390x"}))
		})
	add("index: the config contradicts it", Lied, Lied, "it is for linux/s390x", func(m *oddMaker) {
		m.index(on(m.image("first", func(p *parts) { p.config["architecture"] = "s390x" })))
	})
	add("index: nested too deep", Refused, Refused, "nested more than", func(m *oddMaker) {
		e := on(m.image("first", nil))
		for range 4 {
			e = on(m.index(e))
		}
	})
	add("index: without an entry", Refused, Refused, "without an entry", func(m *oddMaker) { m.index([]object{}...) })
	for i, o := range all {
		if o.Root == nil {
			panic(fmt.Sprintf("image %d, %s, has no document", i, o.Name))
		}
	}
	return all
}
