package main

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/layout"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/rtmr"
)

type digestOpts struct {
	program  *program
	output   output
	platform platform
}

// described is what a reference names.
type described struct {
	Reference   string        `json:"reference"`
	Digest      digest.Digest `json:"digest"` // what to vote for
	MediaType   string        `json:"media_type"`
	EventDigest string        `json:"event_digest"` // hex; what RTMR3 is extended with when it is measured
	// Of the image that is pulled on this machine; null where an index has none for it.
	Platform     *string        `json:"platform"`
	ConfigDigest *digest.Digest `json:"config_digest"`
	SizeBytes    *int64         `json:"size_bytes"`
	Layers       *int           `json:"layers"`

	Platforms []platformImage `json:"platforms"` // every image that can run somewhere
}

type platformImage struct {
	Platform       string         `json:"platform"`
	ManifestDigest digest.Digest  `json:"manifest_digest"`
	ConfigDigest   *digest.Digest `json:"config_digest"` // null where there is an error
	SizeBytes      int64          `json:"size_bytes"`
	Layers         int            `json:"layers"`
	Error          string         `json:"error,omitempty"` // why it can't be used
}

func (p *program) newDigestCmd() *cobra.Command {
	o := &digestOpts{program: p}
	cmd := &cobra.Command{
		Use:   "digest REF…",
		Short: "What to vote for: resolve a tag or digest to the manifest digest",
		Long: `Resolves tags and digests, and prints sha256:… for each and nothing else, in their order. What a tag names is taken on
the registry's word; everything below the digest that is printed was proved.

oci:DIR or oci:FILE is an OCI image layout, a directory or a tar: the digest of each image in its index.json, all proved.

An index has one digest for several platforms. Approving it approves all of them, so a warning says whether there is more than
one that can run, or none for this machine.`,
		Example: `  launcher digest nearone/mpc-node:main
  launcher digest --platform linux/arm64 nearone/mpc-node:main
  launcher digest -o json ghcr.io/nearone/mpc-node:3.9.0 \
      nearone/mpc-node@sha256:…`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(cmd, errors.New("at least one reference is needed"))
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              o.runDigest,
	}
	addOutput(cmd, &o.output)
	addPlatform(cmd, &o.platform, "of an index, print the digest of the image for this platform alone")
	return cmd
}

func (o *digestOpts) runDigest(cmd *cobra.Command, args []string) error {
	p := o.program
	s, err := p.read(cmd)
	if err != nil {
		return err
	}
	var refs []name.Reference
	for _, arg := range args {
		if isLayout(arg) {
			refs = append(refs, nil)
			continue
		}
		ref, err := parseReference(arg)
		if err != nil {
			if quoted := fmt.Sprintf("%.100q", arg); !strings.HasPrefix(err.Error(), quoted) {
				err = fmt.Errorf("%s: %w", quoted, err)
			}
			return usageError(cmd, err)
		}
		refs = append(refs, ref)
	}
	ctx, c, over := p.attend(cmd, s)
	defer over()
	client := registry.Client{
		Insecure: s.launch.Insecure, ForbiddenHelperDirs: s.launch.Unmeasured(),
		Log: c.log, Tuning: registry.Tuning{Sleep: p.sleep},
	}
	// All or nothing: half a list is easily taken for the whole.
	var all []described
	for i, ref := range refs {
		var found []*image.Described
		if ref == nil {
			found, err = inLayout(args[i])
		} else {
			var one *image.Described
			one, err = client.Describe(ctx, ref)
			found = []*image.Described{one}
		}
		if err != nil {
			return err
		}
		for _, got := range found {
			if o.platform.OS != "" {
				if got, err = only(got, o.platform.Platform, args[i]); err != nil {
					return err
				}
			}
			d := describe(args[i], got)
			if o.platform.OS == "" { // else it is known what is wanted
				d.warn(c.log, got)
			}
			all = append(all, d)
		}
	}
	if o.output == "json" {
		return p.printJSON(all)
	}
	for _, d := range all {
		if _, err := fmt.Fprintln(p.stdout, d.Digest); err != nil {
			return err
		}
	}
	return nil
}

// isLayout reports whether an argument names an image layout. No tag of an image that is called oci
// has a slash or begins with a dot.
func isLayout(arg string) bool {
	at, ok := strings.CutPrefix(arg, "oci:")
	return ok && (strings.HasPrefix(at, ".") || strings.Contains(at, "/"))
}

// inLayout describes the images that a layout's index.json names, all proved.
func inLayout(arg string) ([]*image.Described, error) {
	refused := func(err error) error {
		return &exit.Error{Code: exit.Refused, Err: fmt.Errorf("%.200s: %w", arg, err)}
	}
	at, err := filepath.Abs(strings.TrimPrefix(arg, "oci:"))
	if err != nil {
		return nil, refused(err)
	}
	opened, err := layout.Open(at)
	if err != nil {
		return nil, refused(err)
	}
	defer opened.Close()
	digests, err := opened.Images()
	if err == nil && len(digests) == 0 {
		err = errors.New("index.json names no image")
	}
	if err != nil {
		return nil, refused(err)
	}
	// Only messages show it, and they say the argument instead.
	repository, err := name.NewRepository("layout.invalid/image")
	if err != nil {
		return nil, err
	}
	get := func(d image.Document) ([]byte, error) {
		data, err := opened.Document(d.Digest, image.MaxManifest)
		if err != nil {
			return nil, refused(err)
		}
		return data, nil
	}
	var all []*image.Described
	for _, h := range digests {
		data, err := get(image.Document{Digest: h})
		if err != nil {
			return nil, err
		}
		if digest.Of(data) != h {
			return nil, &image.Error{Kind: image.Mismatch, Ref: arg, Part: image.PartManifest, Err: fmt.Errorf("got %s, want %s", digest.Of(data), h)}
		}
		described, err := image.Describe(repository.Digest(h.String()), data, get)
		var e *image.Error
		if errors.As(err, &e) {
			e.Ref = arg
		}
		if err != nil {
			return nil, err
		}
		all = append(all, described)
	}
	return all, nil
}

// parseReference reads what Docker takes: a name with a tag, "latest" if there is none, or with a digest.
func parseReference(s string) (name.Reference, error) {
	if strings.Contains(s, "@") {
		return parseDigestReference(s)
	}
	if _, err := digest.Parse(s); err == nil {
		return nil, errors.New("a digest alone names no repository: write name@" + s) // and not the repository sha256
	}
	image, err := config.ParseImage(s)
	if err != nil {
		return nil, err
	}
	tag := image.Tag
	if tag == "" {
		tag = name.DefaultTag
	}
	return image.Repository.Tag(tag), nil
}

// only leaves of what a reference names the image for one platform, as if that had been named.
func only(got *image.Described, want v1.Platform, reference string) (*image.Described, error) {
	for _, i := range got.Images {
		if i.Platform.OS != want.OS || i.Platform.Architecture != want.Architecture {
			continue
		}
		if i.Err != nil {
			return nil, i.Err
		}
		return &image.Described{
			Digest: i.ManifestDigest, MediaType: i.MediaType, Images: []image.DescribedImage{i},
		}, nil
	}
	return nil, &exit.Error{
		Code: exit.Refused, Err: fmt.Errorf("%.200s: no image for %s", reference, want),
		Hint: []string{"`launcher digest -o json` lists the platforms that there are"},
	}
}

func describe(reference string, got *image.Described) described {
	d := described{
		Reference: reference, Digest: got.Digest, MediaType: string(got.MediaType),
		EventDigest: rtmr.DigestV1(rtmr.EventName, got.Digest[:]).String(), Platforms: []platformImage{},
	}
	for _, i := range got.Images {
		d.Platforms = append(d.Platforms, platformOf(i))
	}
	here := got.Here
	if here == nil && !got.IsIndex() {
		here = &got.Images[0]
	}
	if here != nil {
		i := platformOf(*here)
		d.Platform, d.ConfigDigest, d.SizeBytes, d.Layers = &i.Platform, i.ConfigDigest, &i.SizeBytes, &i.Layers
	}
	return d
}

func platformOf(s image.DescribedImage) platformImage {
	i := platformImage{
		Platform: s.Platform.String(), ManifestDigest: s.ManifestDigest, SizeBytes: s.Size, Layers: s.Layers,
	}
	if s.Err != nil {
		i.Error = s.Err.Error()
	} else {
		i.ConfigDigest = &s.ConfigDigest
	}
	return i
}

// warn says what voters should know.
func (d *described) warn(log *slog.Logger, got *image.Described) {
	var runnable []string
	for _, p := range d.Platforms {
		if p.Error != "" {
			log.Warn("the index holds an image that can't be used", "reference", d.Reference,
				"platform", p.Platform, "error", p.Error)
			continue
		}
		runnable = append(runnable, p.Platform)
	}
	attributes := []any{"reference", d.Reference, "platforms", strings.Join(runnable, ", ")}
	if got.IsIndex() && len(runnable) > 1 {
		log.Warn("the index holds several images that can run: approving its digest approves them all", attributes...)
	}
	if got.Here == nil {
		log.Warn("there is no image for this machine, linux/"+runtime.GOARCH, attributes...)
	}
}
