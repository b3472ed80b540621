package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// epoch is the one time that stands anywhere in the image.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// file is a file of the image, or a directory if it has no data.
type file struct {
	path string
	mode int64
	data []byte
}

// assemble makes the image. What changes least lies at the bottom, so that an upgrade of the launcher fetches only the launcher.
func assemble(o options, b binaries) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range []struct {
		comment string
		files   []file
	}{
		{"CA roots and mount points", []file{
			{path: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: b.roots},
			{path: "mnt/shared", mode: 0o755},
			{path: "tapp", mode: 0o755},
			{path: "tmp", mode: 0o1777},
			{path: "var/run", mode: 0o755},
		}},
		{"Docker Compose", []file{{path: "usr/local/bin/docker-compose", mode: 0o755, data: b.compose}}},
		{"launcher", []file{
			{path: "usr/local/bin/launcher", mode: 0o755, data: b.launcher},
			{path: "usr/share/doc/launcher/NOTICES", mode: 0o644, data: b.notices},
		}},
	} {
		compressed, err := packed(l.files)
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(compressed)), nil },
			tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: layer, MediaType: types.OCILayer, History: v1.History{Created: v1.Time{Time: epoch()}, CreatedBy: "hack/image", Comment: l.comment},
		})
		if err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", o.Arch, v1.Time{Time: epoch()}
	config.Config = v1.Config{
		Entrypoint: []string{"/usr/local/bin/launcher"}, Cmd: []string{"run"}, WorkingDir: "/", Env: []string{"PATH=/usr/local/bin"},
		// Docker's, which OCI's config has no word for and Docker heeds there too. There is no shell. A boot may
		// take its time, and a failure within that doesn't count.
		Healthcheck: &v1.HealthConfig{
			Test:     []string{"CMD", "/usr/local/bin/launcher", "status", "--self"},
			Interval: time.Minute, Timeout: 10 * time.Second, StartPeriod: 30 * time.Minute, Retries: 3,
		},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "launcher",
			"org.opencontainers.image.description": "Starts the approved workload of a confidential VM, measured exactly once",
			"org.opencontainers.image.version":     o.Version,
		},
	}
	if o.Commit != "" {
		config.Config.Labels["org.opencontainers.image.revision"] = o.Commit
	}
	return mutate.ConfigFile(img, config)
}

// packed returns the compressed layer of these files and the directories above them. The compressor is a pinned module's, because that of
// the standard library would change the image with the Go that runs this program.
func packed(files []file) ([]byte, error) {
	all := map[string]file{}
	for _, f := range files {
		for dir := path.Dir(f.path); dir != "."; dir = path.Dir(dir) {
			if _, known := all[dir]; !known {
				all[dir] = file{path: dir, mode: 0o755}
			}
		}
		all[f.path] = f
	}
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names) // a directory comes before what is in it
	var buf bytes.Buffer
	compressed, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(compressed)
	for _, name := range names {
		f := all[name]
		header := &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: name, Mode: f.mode, Size: int64(len(f.data)), ModTime: epoch()}
		if f.data == nil {
			header.Typeflag, header.Name = tar.TypeDir, name+"/"
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(w.Close(), compressed.Close()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// transferred is what a pull of the image transfers.
func transferred(img v1.Image) (int64, error) {
	m, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	size := m.Config.Size
	for _, l := range m.Layers {
		size += l.Size
	}
	return size, nil
}

// content is the image as files: an OCI layout, and what `docker load` wants besides. That is the one form that every engine loads under
// the image's own digests. What names the image comes last.
func content(img v1.Image, version string) ([]file, error) {
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	blob := func(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }
	var files []file
	var paths []string
	for i, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		paths = append(paths, blob(m.Layers[i].Digest))
		files = append(files, file{path: paths[i], data: data})
	}
	files = append(files, file{path: blob(m.Config.Digest), data: config}, file{path: blob(digest), data: manifest})
	name := "tee-launcher:" + tag(version)
	for _, document := range []struct {
		name string
		doc  any
	}{
		{dockerManifest, []any{map[string]any{"Config": blob(m.Config.Digest), "Layers": paths, "RepoTags": []string{name}}}},
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
		{"index.json", v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Digest: digest, Size: int64(len(manifest)),
			Annotations: map[string]string{"io.containerd.image.name": "docker.io/library/" + name, "org.opencontainers.image.ref.name": tag(version)},
		}}}},
	} {
		data, err := json.Marshal(document.doc)
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: document.name, data: data})
	}
	return files, nil
}

// dockerManifest is no part of an OCI layout.
const dockerManifest = "manifest.json"

// writeLayout writes an OCI layout in the place of what was there.
func writeLayout(dir string, files []file) error {
	building := dir + ".building"
	if err := os.RemoveAll(building); err != nil {
		return err
	}
	for _, f := range files {
		if f.path == dockerManifest {
			continue
		}
		name := filepath.Join(building, filepath.FromSlash(f.path))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, f.data, 0o644); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(building, dir)
}

// writeArchive writes an archive for `docker load`, in the place of what was there.
func writeArchive(name string, files []file) error {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		header := &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: f.path, Mode: 0o644, Size: int64(len(f.data)), ModTime: epoch()}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := w.Write(f.data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := os.WriteFile(name+".building", buf.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(name+".building", name)
}

// tag is a version in the grammar of tags.
func tag(version string) string { return strings.ReplaceAll(version, "+", "-") }
