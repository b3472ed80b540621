package main

import (
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/launch"
)

type runOpts struct {
	program *program
}

func (o *runOpts) newCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Boot: select, pull, prove, load, measure and start the workload",
		Long: `Does the whole boot sequence once: settings, probe, gate, config, pull, load, create, measure, start,
supervise. A failure ends it; nothing later happens. Supervised, as it is in TEE mode, it stays: it restarts a
workload that fails, respects one that was stopped, and ends both on SIGTERM. Run again in the same boot, it ends in the same state:
what is already there is not downloaded, loaded, emitted, recreated or restarted again.`,
		Example: `  PLATFORM=TEE DOCKER_CONTENT_TRUST=1 DEFAULT_IMAGE_DIGEST=sha256:… launcher run
  launcher run --platform NONTEE --docker-content-trust 1 --default-image-digest sha256:… \
      --config ./user_config --shared-dir /srv/shared`,
		Args: noArguments,
		RunE: o.runRun,
	}
}

func (o *runOpts) runRun(cmd *cobra.Command, _ []string) error {
	p := o.program
	s, err := p.read(cmd, true)
	if err != nil {
		return err
	}
	l, log := p.launcher(s)
	if s.launch.Platform == config.TEE && s.launch.Supervise == admission.SuperviseOff {
		log.Warn("not supervised: after a power loss the engine may start the old workload before anything is measured")
	}
	return l.Run(cmd.Context())
}

// launcher wires a launcher to stderr, where log, progress and the last words of a workload share the screen.
func (p *program) launcher(s settings) (*launch.Launcher, *slog.Logger) {
	screen := &screen{w: p.stderr}
	log := s.log(screen)
	var output io.Writer = screen
	if s.logFormat == "json" {
		output = recorded{log}
	}
	return &launch.Launcher{
		Settings: s.launch, Log: log, Output: output,
		Progress: newProgress(s.progress, p.terminal, screen, log),
		Now:      p.now, Sleep: p.sleep,
	}, log
}

// recorded makes a record of each line that is written to it.
type recorded struct{ log *slog.Logger }

func (r recorded) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		r.log.Warn(line)
	}
	return len(p), nil
}
