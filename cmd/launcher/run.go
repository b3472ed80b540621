package main

import (
	"cmp"
	"os"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/stage"
)

type runOpts struct {
	program *program
}

func (o *runOpts) newCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Boot: select, pull, prove, load, measure and start the workload",
		Long: `Does the whole boot sequence once: settings, probe, gate, config, pull, load, create, measure, start,
supervise. A failure ends it; nothing later happens. Supervised, as it is in TEE mode, it waits and tries again where a
pull, load or create fails with exit code 4 to 7, and it stays: it restarts a workload that fails, respects one that was
stopped, fetches the image that the next boot will run, and ends all of it on SIGTERM. Run again in the same boot, it ends in the same state:
what is already there is not downloaded, loaded, emitted, recreated or restarted again.`,
		Example: `  PLATFORM=TEE DOCKER_CONTENT_TRUST=1 DEFAULT_IMAGE_DIGEST=sha256:… \
      launcher run
  launcher run --platform NONTEE --docker-content-trust 1 \
      --default-image-digest sha256:… \
      --config ./user_config --shared-dir ./shared`,
		Args: noArguments,
		RunE: o.runRun,
	}
}

func (o *runOpts) runRun(cmd *cobra.Command, _ []string) error {
	p := o.program
	if err := p.needsLinux(cmd); err != nil {
		return err
	}
	s, err := p.read(cmd)
	if err != nil {
		return err
	}
	ctx, c, over := p.attend(cmd, s)
	defer over()
	if s.launch.Platform == config.TEE && s.launch.Supervise == admission.SuperviseOff {
		c.log.Warn("not supervised: after a power loss the engine may start the old workload before anything is measured")
	}
	switch {
	case s.fallback && s.launch.Supervised():
		c.log.Warn("an older approved image may run than the newest: whoever controls the network can bring that about, for any that is still listed",
			"after", s.launch.FallbackAfter)
	case s.fallback:
		c.log.Warn("--fallback has no effect without supervision: the first failure is the end")
	}
	if s.stage.Mode == stage.On && !s.launch.Supervised() {
		c.log.Warn("nothing is staged: --stage=on needs a launcher that supervises")
	}
	return p.launcher(s, c).Run(ctx)
}

// launcher wires a launcher to the console.
func (p *program) launcher(s settings, c *console) *launch.Launcher {
	l := &launch.Launcher{
		Settings: s.launch, Stage: s.stage, Log: c.log, Output: c, Progress: c, Now: p.now, Sleep: p.sleep,
		Version: thisBuild().Version, StatusEvery: s.statusEvery, MetricsListen: s.metricsListen,
		Temporary: p.temporary(),
	}
	if s.logFormat == "json" {
		l.Foreign = c.foreign
	}
	c.log.Info("launcher started")
	return l
}

// temporary is the directory for temporary files.
func (p *program) temporary() string {
	return cmp.Or(p.environment()["TMPDIR"], os.TempDir())
}
