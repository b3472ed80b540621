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
		Example: `  launcher render -o json | jq -r .compose`,
		Args:    noArguments,
		RunE:    o.runRender,
	}
	addOutput(cmd, &o.output)
	return cmd
}

func (o *renderOpts) runRender(cmd *cobra.Command, _ []string) error {
	p := o.program
	s, err := p.read(cmd, true)
	if err != nil {
		return err
	}
	rendered, err := preflight.Render(cmd.Context(), preflight.Options{
		Settings: s.launch, Log: s.log(p.stderr), Tuning: registry.Tuning{Sleep: p.sleep},
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
