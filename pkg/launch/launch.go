// Package launch is the boot sequence: the one place that orders effects.
//
// It guarantees the order of the steps: nothing runs before it was measured, nothing is measured before everything that can
// fail has succeeded, and after a failure nothing later happens. It guarantees that the container which starts after a measurement
// has never run before, and that the supervision restarts no other. It doesn't decide what is approved (package approval), doesn't
// prove (image, docker) and doesn't speak to the register (rtmr): it calls who does.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

// Settings is what flags and environment say. In a CVM they are measured with the compose file that holds them.
type Settings struct {
	Platform      config.Platform
	DefaultDigest v1.Hash // runs where there is no approved list
	ConfigFile    string
	SharedDir     string   // where the launcher sees the shared volume
	AgentSocket   string   // of the guest agent; TEE only
	DockerHost    string   // "unix://" and an absolute path
	Compose       string   // the command; empty: found
	Insecure      []string // registries that may be spoken to over plain http; empty: loopback only
	Supervise     Supervise
	Report        string // path of the launch report; empty: in our own directory; NoReport: none
}

// Supervise says who looks after a workload that ends: this process, or the engine by its restart policy. The engine does so at
// its own start too, before anything was measured.
type Supervise string

// The values of Supervise; the empty one is SuperviseAuto.
const (
	SuperviseAuto Supervise = "auto" // on in TEE mode, off outside
	SuperviseOn   Supervise = "on"
	SuperviseOff  Supervise = "off"
)

func (s Settings) supervised() bool {
	return s.Supervise == SuperviseOn || s.Supervise != SuperviseOff && s.Platform == config.TEE
}

// NoReport is the value of Settings.Report that asks for none.
const NoReport = "none"

// Progress is shown while layers move.
type Progress interface {
	docker.Progress
	Stop() // the load has ended, well or not
}

// Launcher runs the boot sequence. The zero values of the fields below Settings stand for the real thing.
type Launcher struct {
	Settings Settings
	Log      *slog.Logger                               // nil: none
	Progress Progress                                   // nil: none
	Output   io.Writer                                  // gets the last lines of a workload that doesn't start; nil: nobody
	BootID   string                                     // empty: the kernel's
	SelfID   string                                     // the launcher's own container; empty: found out
	Now      func() time.Time                           // nil: time.Now
	Sleep    func(context.Context, time.Duration) error // nil: sleep, or end early with the context's cause
}

// run is one run of the sequence: what the steps find out and hand on.
type run struct {
	*Launcher
	report  *report
	shared  *files.Dir // locked
	own     state.Dir  // our own directory in it
	engine  *docker.Engine
	agent   *rtmr.Agent // nil outside a CVM
	present bool        // this boot's image event stands already

	config   *config.Config
	decision approval.Decision
	ref      name.Digest // what to pull
	retry    config.Retry
	image    *image.Verified
	source   *registry.Source
	id       docker.ImageID
	workload compose.Workload
	proved   docker.Container // the workload's container, checked
	running  bool             // it runs already, so that all that follows stands
	started  bool             // it runs, or is about to: a signal doesn't end the run any more
}

// Run does the whole sequence once. Its error, if any, says by its type which exit code it ends in; the report says at
// which step.
//
// Everything that can fail comes before the one thing that can't be undone, the measurement.
func (l *Launcher) Run(ctx context.Context) error {
	r, err := l.newRun()
	if err != nil {
		return err
	}
	defer r.close()
	err = r.sequence(ctx, []step{
		{"settings", r.settings},   // the lock: from here on no other launcher acts
		{"probe", r.probe},         // could a measurement end well? Nothing has been touched yet
		{"gate", r.gate},           // no old workload runs from here on
		{"config", r.decide},       // which digest, and why
		{"pull", r.pull},           // manifest and config proved
		{"load", r.load},           // layers proved on their way into the engine; the result proved
		{"create", r.create},       // the workload's container, not started
		{"measure", r.measure},     // the commit point
		{"start", r.start},         // that container, checked again
		{"supervise", r.supervise}, // that container, as long as it runs
	})
	r.report.finish(err)
	return err
}

func (l *Launcher) newRun() (*run, error) {
	filled := *l
	if filled.Log == nil {
		filled.Log = slog.New(slog.DiscardHandler)
	}
	if filled.Progress == nil {
		filled.Progress = noProgress{}
	}
	if filled.Output == nil {
		filled.Output = io.Discard
	}
	if filled.Now == nil {
		filled.Now = time.Now
	}
	if filled.Sleep == nil {
		filled.Sleep = sleep
	}
	if filled.BootID == "" {
		var err error
		if filled.BootID, err = state.ReadBootID(bootIDFile); err != nil {
			return nil, err
		}
	}
	r := &run{Launcher: &filled, report: &report{log: filled.Log}}
	r.report.Version, r.report.BootID, r.report.StartedAt = ReportVersion, filled.BootID, now()
	r.report.Platform = filled.Settings.Platform
	return r, nil
}

func (r *run) close() {
	if r.shared != nil {
		r.shared.Close()
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type noProgress struct{}

func (noProgress) Missing(int64, bool) {}
func (noProgress) Sent(int64)          {}
func (noProgress) Unpacked(int64)      {}
func (noProgress) Stop()               {}

// Pull does the steps pull and load alone: it has the engine hold the image that ref names, and returns the report's parts about
// the image and the pull. Where there is a shared directory, manifest and config are kept in it.
func (l *Launcher) Pull(ctx context.Context, ref name.Digest) (*ImageReport, *PullReport, error) {
	r, err := l.newRun()
	if err != nil {
		return nil, nil, err
	}
	defer r.close()
	if r.engine, err = docker.New(r.Settings.DockerHost); err != nil {
		return nil, nil, &exit.Error{Code: exit.Usage, Err: err}
	}
	hash, err := digest.Parse(ref.DigestStr())
	if err != nil {
		return nil, nil, &exit.Error{Code: exit.Usage, Err: err}
	}
	if shared, err := files.OpenDir(r.Settings.SharedDir); err == nil {
		r.shared, r.own = shared, state.In(shared)
	}
	r.ref, r.retry = ref, config.DefaultRetry()
	r.report.Image = &ImageReport{Reference: ref.String(), Digest: hash}
	err = r.sequence(ctx, []step{{"pull", r.pull}, {"load", r.load}})
	return r.report.Image, r.report.Pull, err
}

// step is a named part of the sequence. Its function returns what to tell people about what it did.
type step struct {
	name string
	do   func(context.Context) (detail string, err error)
}

// errSkipped is returned by a step that had nothing to do.
var errSkipped = errors.New("nothing to do")

// sequence does the steps in order up to the first that fails, and records each before and after.
func (r *run) sequence(ctx context.Context, steps []step) error {
	r.report.plan(steps)
	for i, s := range steps {
		if ctx.Err() != nil && !r.started {
			return context.Cause(ctx)
		}
		r.report.begin(i)
		r.Log.Info("step started", "step", s.name)
		detail, err := s.do(ctx)
		if err != nil && !errors.Is(err, errSkipped) {
			// What is wrong with the measurement, or its record, is no consequence of a signal.
			if ctx.Err() != nil && !r.started && !(s.name == "measure" && (exit.Of(err) == exit.Measurement || exit.Of(err) == exit.Config)) {
				err = context.Cause(ctx) // whatever broke, it broke because of the signal
			}
			r.report.end(i, r, failed, "")
			return fmt.Errorf("%s: %w", s.name, err)
		}
		outcome := done
		if err != nil {
			outcome = skipped
		}
		r.report.end(i, r, outcome, detail)
		r.Log.Info("step "+string(outcome), "step", s.name, "detail", detail)
	}
	return nil
}
