package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/registry"
)

type renderOpts struct {
	program *program
	output  output
}

func (p *program) newRenderCmd() *cobra.Command {
	o := &renderOpts{program: p}
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Print the compose file and the node config that run would use",
		Long: `Prints the compose file and the node config that run would use, and writes neither. The node config holds
the node's secrets: this is the one place where they are shown. The image is named as the engine would,
or by the digest of its config where there is no engine.`,
		Example: `  export PLATFORM=TEE DOCKER_CONTENT_TRUST=1 DEFAULT_IMAGE_DIGEST=sha256:…
  launcher render -o json | jq -r .compose`,
		Args: noArguments,
		RunE: o.runRender,
	}
	addOutput(cmd, &o.output)
	return cmd
}

func (o *renderOpts) runRender(cmd *cobra.Command, _ []string) error {
	p := o.program
	s, err := p.read(cmd)
	if err != nil {
		return err
	}
	ctx, c, over := p.attend(cmd, s)
	defer over()
	rendered, err := preflight.Render(ctx, preflight.Options{
		Settings: s.launch, Log: c.log, Tuning: registry.Tuning{Sleep: p.sleep},
	})
	if err != nil {
		return err
	}
	if o.output == "json" {
		return p.printJSON(rendered)
	}
	_, err = fmt.Fprintf(p.stdout, "# compose file\n%s\n# %s/%s\n%s", rendered.Compose, compose.SharedDir, compose.NodeConfig, rendered.NodeConfig)
	return err
}
