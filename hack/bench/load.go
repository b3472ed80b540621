package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"tee-launcher/pkg/launchtest"
)

// unpacked is how many bytes of files the image has at least.
const unpacked = 1_200_000_000

// shares of the layers in it, in hundredths: a base that is large and others that aren't, as in most images.
func shares() []int64 { return []int64{25, 18, 14, 12, 10, 8, 7, 6} }

// folders are what the image is made of: programs, many small files, libraries.
func folders() []string {
	return []string{"/usr/bin", "/usr/sbin", "/usr/share", "/usr/lib", "/usr/include", "/usr/local"}
}

func (b *bench) load(ctx context.Context) error {
	layers, changed, err := b.systemLayers(ctx)
	if err != nil {
		return err
	}
	last := len(layers) - 1
	upgraded := append(slices.Clone(layers[:last]), changed)
	var images []v1.Image
	var sizes []string
	for _, of := range [][]v1.Layer{layers, upgraded} {
		img, err := systemImage(of)
		if err != nil {
			return err
		}
		images = append(images, img)
	}
	for _, l := range upgraded {
		size, err := l.Size()
		if err != nil {
			return err
		}
		sizes = append(sizes, strconv.FormatInt(size/1e6, 10))
	}
	rows, err := b.onLinks(ctx, []link{
		{"25 MB/s in all", launchtest.RegistryOptions{TotalRate: 25_000_000}},
		{"open", launchtest.RegistryOptions{}},
	}, b.loaders(), []string{"all layers", "last layer"}, images...)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.stdout, "\nLoad: system folders, over %d MB, in layers of %s MB (gzip); then an image of which only the last layer is another.\n\n",
		unpacked/b.scale/1e6, strings.Join(sizes, ", "))
	b.table(rows, dockerPull)
	return nil
}

func (b *bench) loaders() []tool {
	tools := []tool{
		{name: launcherPull, upgrades: true, engine: true, argv: func(ref name.Digest) []string {
			return []string{b.launcher, "pull", ref.String()}
		}},
		b.dockerPull(),
	}
	if b.skopeo != "" {
		tools = append(tools, tool{name: skopeoCopy, engine: true, argv: func(ref name.Digest) []string {
			// Without its own option it goes to the machine's engine, whatever DOCKER_HOST says.
			return b.skopeoCopy(ref, "docker-daemon:bench/skopeo:latest", "--dest-daemon-host", b.engine)
		}})
	}
	if b.crane != "" {
		tools = append(tools, tool{name: craneLoad, engine: true, client: true, argv: func(ref name.Digest) []string {
			return []string{"bash", "-c", `set -o pipefail; "$0" pull "$1" /dev/stdout | docker load -q`, b.crane, ref.String()}
		}})
	}
	return tools
}

// systemLayers returns layers of this machine's system folders, and another one in place of the last.
func (b *bench) systemLayers(ctx context.Context) (layers []v1.Layer, changed v1.Layer, err error) {
	dir := filepath.Join(b.cache, fmt.Sprintf("system-%dMB", unpacked/b.scale/1e6))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(b.stderr, "packing system folders into layers, once")
		if err := b.pack(ctx, dir); err != nil {
			return nil, nil, err
		}
	}
	for i := range shares() {
		layer, err := tarball.LayerFromFile(filepath.Join(dir, layerFile(i)))
		if err != nil {
			return nil, nil, err
		}
		layers = append(layers, layer)
	}
	changed, err = tarball.LayerFromFile(filepath.Join(dir, changedFile))
	return layers, changed, err
}

func systemImage(layers []v1.Layer) (v1.Image, error) {
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Cmd: []string{"/usr/bin/true"}, Labels: map[string]string{label: "load"}},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layers...)
}

func layerFile(i int) string { return fmt.Sprintf("layer-%d.tar.gz", i) }

// changedFile is the last layer of the other image.
const changedFile = "changed.tar.gz"

// pack makes the layers' files in dir, which is there only when they are whole.
func (b *bench) pack(ctx context.Context, dir string) error {
	building, err := os.MkdirTemp(b.dir, "pack-")
	if err != nil {
		return err
	}
	layers, err := cut(unpacked / b.scale)
	if err != nil {
		return err
	}
	for i, files := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := writeLayer(filepath.Join(building, layerFile(i)), files, "first"); err != nil {
			return err
		}
	}
	if err := writeLayer(filepath.Join(building, changedFile), layers[len(layers)-1], "second"); err != nil {
		return err
	}
	return os.Rename(building, dir)
}

// entry is a file, folder or link of this machine.
type entry struct {
	path string
	info fs.FileInfo
}

// cut finds files of so many bytes, or a little more, and deals them out to layers.
func cut(total int64) ([][]entry, error) {
	var layers [][]entry
	var current []entry
	var sum int64
	for _, folder := range folders() {
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			switch {
			case len(layers) == len(shares()):
				return fs.SkipAll
			case err != nil:
				return nil // not for us to see
			}
			info, err := d.Info()
			if err != nil {
				return nil
			}
			switch {
			case info.Mode().IsRegular():
				sum += info.Size()
			case !info.IsDir() && info.Mode().Type() != fs.ModeSymlink:
				return nil
			}
			current = append(current, entry{path, info})
			if sum >= total*shares()[len(layers)]/100 {
				layers = append(layers, current)
				current, sum = nil, 0
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(layers) < len(shares()) {
		return nil, fmt.Errorf("%s: not enough for an image of %d MB", strings.Join(folders(), ", "), total/1e6)
	}
	return layers, nil
}

// writeLayer writes a layer as builders do: gzip at its default level. The file with the edition in it makes it one of its own.
func writeLayer(path string, files []entry, edition string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	compressor := gzip.NewWriter(f)
	w := tar.NewWriter(compressor)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "edition", Mode: 0o644, Size: int64(len(edition))}); err != nil {
		return err
	}
	if _, err := io.WriteString(w, edition); err != nil {
		return err
	}
	for _, e := range files {
		if err := writeEntry(w, e); err != nil {
			return fmt.Errorf("%s: %w", e.path, err)
		}
	}
	return errors.Join(w.Close(), compressor.Close())
}

func writeEntry(w *tar.Writer, e entry) error {
	target := ""
	switch {
	case e.info.Mode().Type() == fs.ModeSymlink:
		var err error
		if target, err = os.Readlink(e.path); err != nil {
			return err
		}
	case e.info.Mode().IsRegular():
		f, err := os.Open(e.path)
		if err != nil {
			return nil // not for us to read
		}
		defer f.Close()
		if err := writeHeader(w, e, ""); err != nil {
			return err
		}
		_, err = io.CopyN(w, f, e.info.Size())
		return err
	}
	return writeHeader(w, e, target)
}

func writeHeader(w *tar.Writer, e entry, target string) error {
	h, err := tar.FileInfoHeader(e.info, target)
	if err != nil {
		return err
	}
	h.Name = strings.TrimPrefix(e.path, "/")
	if e.info.IsDir() {
		h.Name += "/"
	}
	return w.WriteHeader(h)
}
