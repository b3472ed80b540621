package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launch"
)

type pullOpts struct {
	program *program
	output  output
}

func (p *program) newPullCmd() *cobra.Command {
	o := &pullOpts{program: p}
	cmd := &cobra.Command{
		Use:   "pull REF@sha256:…",
		Short: "Pull, prove and load an image, and print the engine's ID of it",
		Long: `Does the steps pull and load of run alone. Where there is a shared directory, the manifest and config are cached in it,
so that a later boot needs no network.`,
		Example: `  launcher pull nearone/mpc-node@sha256:…
  launcher pull -o json ghcr.io/nearone/mpc-node:main@sha256:…`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError(cmd, fmt.Errorf("one reference is needed, got %d", len(args)))
			}
			return nil
		},
		RunE: o.runPull,
	}
	addOutput(cmd, &o.output)
	return cmd
}

func (o *pullOpts) runPull(cmd *cobra.Command, args []string) error {
	s, err := o.program.read(cmd, false)
	if err != nil {
		return err
	}
	ref, err := parseDigestReference(args[0])
	if err != nil {
		return usageError(cmd, err)
	}
	l, _ := o.program.launcher(s)
	image, pull, err := l.Pull(cmd.Context(), ref)
	if err != nil {
		return err
	}
	if o.output == "json" {
		return o.program.printJSON(struct {
			Image *launch.ImageReport `json:"image"`
			Pull  *launch.PullReport  `json:"pull"`
		}{image, pull})
	}
	_, err = fmt.Fprintln(o.program.stdout, image.ImageID)
	return err
}

// parseDigestReference reads what Docker takes before an @, and a digest after it.
func parseDigestReference(s string) (name.Digest, error) {
	before, after, ok := strings.Cut(s, "@")
	if !ok {
		return name.Digest{}, errors.New("the reference has no digest: it must end with @sha256:…")
	}
	image, err := config.ParseImage(before)
	if err != nil {
		return name.Digest{}, err
	}
	hash, err := digest.Parse(after)
	if err != nil {
		return name.Digest{}, err
	}
	return image.At(hash), nil
}
