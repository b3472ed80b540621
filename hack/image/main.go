// Command image builds the launcher's image from this repository and what its modules pin, without a base image and without a
// container engine. `make image` runs it.
//
//	go run ./hack/image -version v1.0.0 -out dist
//
// It writes an OCI layout, OUT/image, and an archive for `docker load`, OUT/image.tar, and prints the manifest digest on stdout. Equal
// sources, version and commit make equal bytes, whoever builds them where and when: the binaries are built by one release of Go in an
// environment made from nothing, and no file, clock, user or mode of this machine gets into a layer.
//
// With -release it also builds the launcher for the machines that people have: OUT/release/launcher-OS-ARCH, and NOTICES with them.
//
// It doesn't push, and it doesn't verify the Go toolchain, which is Go's own to do.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
)

func main() {
	var o options
	flag.StringVar(&o.Root, "root", ".", "the repository")
	flag.StringVar(&o.Out, "out", "dist", "where image and image.tar go")
	flag.StringVar(&o.Version, "version", "unreleased", "the version that the launcher and the image's labels name")
	flag.StringVar(&o.Commit, "commit", "", "the commit that they name; none where the tree is not exactly one")
	flag.StringVar(&o.Arch, "arch", "amd64", "the architecture")
	flag.BoolVar(&o.Release, "release", false, "also build the launcher for Linux and macOS")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// options is what an image may depend on besides the sources, and where it goes.
type options struct {
	Root, Out       string
	Version, Commit string
	Arch            string
	Release         bool
}

// check refuses what would not get through a linker's flag or a label unchanged.
func (o options) check() error {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$`).MatchString(o.Version) {
		return fmt.Errorf("version %.120q: must be letters, digits, dots and dashes", o.Version)
	}
	if !regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})?$`).MatchString(o.Commit) {
		return fmt.Errorf("commit %.120q: must be a full commit hash, or empty", o.Commit)
	}
	if o.Arch != "amd64" && o.Arch != "arm64" {
		return fmt.Errorf("architecture %.20q: must be amd64 or arm64", o.Arch)
	}
	return nil
}

func run(ctx context.Context, o options, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return err
	}
	o.Root = root
	built, err := build(ctx, o, stderr)
	if err != nil {
		return err
	}
	img, err := assemble(o, built)
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	files, err := content(img, o.Version)
	if err != nil {
		return err
	}
	if err := writeLayout(filepath.Join(o.Out, "image"), files); err != nil {
		return err
	}
	if err := writeArchive(filepath.Join(o.Out, "image.tar"), files); err != nil {
		return err
	}
	if o.Release {
		if err := release(ctx, o, filepath.Join(o.Out, "release"), built.notices, stderr); err != nil {
			return err
		}
	}
	size, err := transferred(img)
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "image %s for linux/%s, built by %s: launcher %s, compose %s, %s compressed\n",
		o.Version, o.Arch, toolchain, megabytes(len(built.launcher)), megabytes(len(built.compose)), megabytes(int(size)))
	if runtime.Version() != toolchain {
		fmt.Fprintf(stderr, "(this program itself runs on %s, which changes nothing)\n", runtime.Version())
	}
	_, err = fmt.Fprintln(stdout, digest)
	return err
}

func megabytes(n int) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
