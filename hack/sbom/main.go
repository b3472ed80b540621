// Command sbom lists what is in the launcher's image, as CycloneDX JSON. `make sbom` runs it.
//
//	go run ./hack/sbom -image dist/image -out dist/sbom.cdx.json
//
// It looks at nothing but the image: every file of every layer is hashed, a Go program is asked for the build information that Go put into it,
// the CA roots for the module that their first line names, and the notices for the licences. Equal images have equal lists. A file that it
// can't explain is an error, and a module without a licence.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	rootsFile   = "etc/ssl/certs/ca-certificates.crt"
	noticesFile = "usr/share/doc/launcher/NOTICES"
	// maxFile bounds a file of the image.
	maxFile = 256 << 20
)

func main() {
	image := flag.String("image", "dist/image", "the image, an OCI layout")
	out := flag.String("out", "", "where the list goes; stdout if empty")
	flag.Parse()
	if err := run(*image, *out, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(image, out string, stdout io.Writer) error {
	list, err := describe(image)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(list); err != nil {
		return err
	}
	if out == "" {
		_, err = stdout.Write(buf.Bytes())
		return err
	}
	return os.WriteFile(out, buf.Bytes(), 0o644)
}

// The parts of CycloneDX 1.6 that are used.
type (
	document struct {
		BOMFormat    string       `json:"bomFormat"`
		SpecVersion  string       `json:"specVersion"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Component component `json:"component"`
	}
	component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version,omitempty"`
		PURL       string     `json:"purl,omitempty"`
		Licenses   []license  `json:"licenses,omitempty"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	license struct {
		Expression string `json:"expression"` // SPDX
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn"`
	}
)

func describe(image string) (document, error) {
	var index v1.IndexManifest
	data, err := os.ReadFile(filepath.Join(image, "index.json"))
	if err != nil {
		return document{}, err
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return document{}, err
	}
	if len(index.Manifests) != 1 {
		return document{}, fmt.Errorf("index.json: got %d images, want 1", len(index.Manifests))
	}
	digest := index.Manifests[0].Digest
	var manifest v1.Manifest
	var config v1.ConfigFile
	if err := blob(image, digest, &manifest); err != nil {
		return document{}, err
	}
	if err := blob(image, manifest.Config.Digest, &config); err != nil {
		return document{}, err
	}
	l := list{modules: map[string]component{}, licences: map[string]string{}}
	self := component{Type: "container", Ref: digest.String(), Name: "launcher", Version: config.Config.Labels["org.opencontainers.image.version"],
		Hashes: []hash{{"SHA-256", digest.Hex}}}
	for _, layer := range manifest.Layers {
		var content []byte
		if content, err = read(image, layer.Digest); err != nil {
			return document{}, err
		}
		if err := l.layer(content); err != nil {
			return document{}, fmt.Errorf("layer %s: %w", layer.Digest, err)
		}
	}
	doc := document{BOMFormat: "CycloneDX", SpecVersion: "1.6", Version: 1, Metadata: metadata{self}, Components: l.files}
	own := dependency{Ref: self.Ref, DependsOn: []string{}}
	for _, f := range l.files {
		own.DependsOn = append(own.DependsOn, f.Ref)
	}
	doc.Dependencies = append([]dependency{own}, l.dependencies...)
	for _, m := range l.modules {
		expression, known := l.licences[m.Name+" "+m.Version]
		if !known {
			return document{}, fmt.Errorf("%s: nothing about %s %s", noticesFile, m.Name, m.Version)
		}
		m.Licenses = []license{{expression}}
		doc.Components = append(doc.Components, m)
	}
	slices.SortFunc(doc.Components[len(l.files):], func(a, b component) int { return strings.Compare(a.Ref, b.Ref) })
	return doc, nil
}

// read returns a blob that is what its digest says.
func read(image string, digest v1.Hash) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(image, "blobs", digest.Algorithm, digest.Hex))
	if err != nil {
		return nil, err
	}
	if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != digest.Hex {
		return nil, fmt.Errorf("blob: got sha256:%s, want %s", got, digest)
	}
	return data, nil
}

func blob(image string, digest v1.Hash, into any) error {
	data, err := read(image, digest)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// list is what was found in the layers.
type list struct {
	files        []component
	modules      map[string]component // by reference
	licences     map[string]string    // by name and version of a module
	dependencies []dependency
}

func (l *list) layer(compressed []byte) error {
	content, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return err
	}
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag == tar.TypeDir {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg || len(data) > maxFile {
			return fmt.Errorf("%s: not a file of a size to expect", header.Name)
		}
		if err := l.file(header.Name, data); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
}

func (l *list) file(name string, data []byte) error {
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	c := component{Type: "file", Ref: "file:/" + name, Name: "/" + name, Hashes: []hash{{"SHA-256", sum}}}
	needs := dependency{Ref: c.Ref, DependsOn: []string{}}
	switch name {
	case noticesFile:
		// Its second paragraph: a line for each module.
		parts := strings.SplitN(string(data), "\n\n", 3)
		if len(parts) != 3 {
			return errors.New("not notices as hack/image writes them")
		}
		for line := range strings.Lines(parts[1]) {
			words := strings.SplitN(strings.TrimSpace(line), " ", 3)
			if len(words) != 3 {
				return fmt.Errorf("%.200q: not a module, its version and its licences", line)
			}
			l.licences[words[0]+" "+words[1]] = words[2]
		}
	case rootsFile:
		line, _, _ := strings.Cut(string(data), "\n")
		words := strings.Fields(line)
		if len(words) != 4 || words[0] != "#" || !strings.HasPrefix(words[3], "h1:") {
			return errors.New("its first line names no module")
		}
		needs.DependsOn = append(needs.DependsOn, l.module(&debug.Module{Path: words[1], Version: words[2], Sum: words[3]}))
	default:
		info, err := buildinfo.Read(bytes.NewReader(data))
		if err != nil {
			return err
		}
		c.Type = "application"
		c.Properties = append(c.Properties, property{"go:package", info.Path})
		for _, s := range info.Settings {
			c.Properties = append(c.Properties, property{"go:build:" + s.Key, s.Value})
		}
		needs.DependsOn = append(needs.DependsOn, l.module(&debug.Module{Path: "std", Version: info.GoVersion}))
		if info.Main.Sum != "" { // a program of somebody else's module
			needs.DependsOn = append(needs.DependsOn, l.module(&info.Main))
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			if m.Sum == "" {
				return fmt.Errorf("module %s isn't pinned by hash", m.Path)
			}
			needs.DependsOn = append(needs.DependsOn, l.module(m))
		}
	}
	slices.Sort(needs.DependsOn)
	l.files = append(l.files, c)
	l.dependencies = append(l.dependencies, needs)
	return nil
}

// module notes a module and returns its reference. Its sum is Go's: of the names and contents of its files.
func (l *list) module(m *debug.Module) string {
	purl := "pkg:golang/" + m.Path + "@" + strings.ReplaceAll(m.Version, "+", "%2B")
	c := component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, PURL: purl}
	if m.Sum != "" {
		c.Properties = []property{{"go:sum", m.Sum}}
	}
	l.modules[purl] = c
	return purl
}
