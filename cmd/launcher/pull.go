package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launch"
)

type pullOpts struct {
	program  *program
	output   output
	platform platform
	to       target
}

// target is the value of --to.
type target string

func (d *target) String() string { return string(*d) }
func (d *target) Type() string   { return "oci:DIR" }
func (d *target) Set(s string) error {
	dir, ok := strings.CutPrefix(s, "oci:")
	if !ok || dir == "" {
		return errors.New("must be oci:DIR, an OCI image layout in a directory")
	}
	*d = target(dir)
	return nil
}

func (p *program) newPullCmd() *cobra.Command {
	o := &pullOpts{program: p}
	cmd := &cobra.Command{
		Use:   "pull REF@sha256:…",
		Short: "Pull, prove and load an image, and print the engine's ID of it",
		Long: `Does the steps pull and load of run alone. Where there is a shared directory, the manifest and config are cached in it,
so that a later boot needs no network.

With --to it writes an OCI image layout instead, proved, and needs no engine: nodes can boot from that, as a source in their
user config, without any network. What is in the directory stays.`,
		Example: `  launcher pull nearone/mpc-node@sha256:…
  launcher pull -o json ghcr.io/nearone/mpc-node:main@sha256:…
  launcher pull --platform linux/arm64 nearone/mpc-node@sha256:…
  launcher pull --to oci:./images nearone/mpc-node@sha256:…`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError(cmd, fmt.Errorf("one reference is needed, got %d", len(args)))
			}
			return nil
		},
		RunE: o.runPull,
	}
	addOutput(cmd, &o.output)
	cmd.Flags().Var(&o.to, "to", "write an OCI image layout into this directory instead of loading the image")
	addPlatform(cmd, &o.platform, "of an index, load the image for this platform, whatever this machine is")
	return cmd
}

func (o *pullOpts) runPull(cmd *cobra.Command, args []string) error {
	if err := o.program.needsLinux(cmd); err != nil && o.to == "" {
		return err
	}
	s, err := o.program.read(cmd)
	if err != nil {
		return err
	}
	ref, err := parseDigestReference(args[0])
	switch {
	case errors.Is(err, errNoDigest):
		return usageError(cmd, err, fmt.Sprintf("`launcher digest %s` says which digest it has now", args[0]))
	case err != nil:
		return usageError(cmd, err)
	}
	ctx, c, over := o.program.attend(cmd, s)
	defer over()
	l := o.program.launcher(s, c)
	load := l.Pull
	if o.to != "" {
		load = func(ctx context.Context, ref name.Digest, platform v1.Platform) (*launch.ImageReport, *launch.PullReport, error) {
			return l.PullTo(ctx, ref, platform, string(o.to))
		}
	}
	image, pull, err := load(ctx, ref, o.platform.Platform)
	if err != nil {
		return err
	}
	if o.output == "json" {
		return o.program.printJSON(struct {
			Image *launch.ImageReport `json:"image"`
			Pull  *launch.PullReport  `json:"pull"`
		}{image, pull})
	}
	if o.to != "" {
		_, err = fmt.Fprintln(o.program.stdout, image.Digest)
		return err
	}
	_, err = fmt.Fprintln(o.program.stdout, image.ImageID)
	return err
}

var errNoDigest = errors.New("the reference has no digest: it must end with @sha256:…")

// platform is the value of --platform where that is an image's.
type platform struct{ v1.Platform }

func (p *platform) String() string { return p.Platform.String() }
func (p *platform) Type() string   { return "os/arch" }
func (p *platform) Set(s string) error {
	os, arch, ok := strings.Cut(s, "/")
	if !ok || os == "" || arch == "" || strings.ContainsAny(arch, "/:,") {
		return errors.New("must be os/arch, such as linux/arm64")
	}
	p.Platform = v1.Platform{OS: os, Architecture: arch}
	return nil
}

func addPlatform(cmd *cobra.Command, p *platform, usage string) {
	cmd.Flags().Var(p, "platform", usage)
	_ = cmd.RegisterFlagCompletionFunc("platform", cobra.FixedCompletions([]string{"linux/amd64", "linux/arm64"}, cobra.ShellCompDirectiveNoFileComp))
}

// parseDigestReference reads what Docker takes before an @, and a digest after it.
func parseDigestReference(s string) (name.Digest, error) {
	before, after, ok := strings.Cut(s, "@")
	image, err := config.ParseImage(before)
	switch {
	case err != nil:
		return name.Digest{}, err
	case !ok:
		return name.Digest{}, errNoDigest
	}
	hash, err := digest.Parse(after)
	if err != nil {
		return name.Digest{}, err
	}
	return image.At(hash), nil
}
