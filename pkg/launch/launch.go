// Package launch is the boot sequence: the one place that orders effects.
//
// It guarantees the order of the steps: nothing runs before it was measured, nothing is measured
// before everything that can fail has succeeded, and after a failure nothing later happens. It
// guarantees that the container which starts after a measurement has never run before, and that the
// supervision restarts no other. It doesn't decide what is approved (package approval), doesn't
// prove (image, docker) and doesn't speak to the register (rtmr): it calls what does.
package launch

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/stage"
	"tee-launcher/pkg/state"
)

// Progress is shown while a run is at work. Its methods may be called at the same time from several
// goroutines.
type Progress interface {
	docker.Progress
	Step(name string, number, of int) // a step has begun
	Fetched(n int64)                  // n more bytes of layers arrived
	Stop(done bool)                   // the load has ended, well or not
}

// Launched is the line that near/mpc's own checks of a start wait for.
const Launched = "MPC launched successfully."

// Launcher runs the boot sequence. The zero values of the fields below Settings stand for the real
// thing.
type Launcher struct {
	Settings admission.Settings
	Stage    stage.Settings                                 // what the next boot will run is fetched ahead; zero: isn't
	Log      *slog.Logger                                   // nil: none
	Progress Progress                                       // nil: none
	Output   io.Writer                                      // gets the line Launched, those of the status, and what Foreign is for where that is nil; nil: nothing
	Foreign  func(from, line string)                        // shows a line that somebody else wrote; nil: on Output, behind who did
	BootID   string                                         // empty: the kernel's
	Proc     string                                         // where the kernel shows processes; empty: /proc
	Now      func() time.Time                               // nil: time.Now
	Sleep    func(context.Context, time.Duration) error     // nil: sleep, or end early with the context's cause
	Random   func(most time.Duration) time.Duration         // nil: evenly spread from 0 on
	Exec     func(*exec.Cmd) error                          // runs Compose; nil: as a process that doesn't outlive us
	Disk     func(path string) (free, all int64, err error) // nil: the file system is asked

	// What the run says of itself; none of it decides anything.
	Version       string        // the launcher's
	StatusEvery   time.Duration // how often at least; 0: whenever something changes
	MetricsListen string        // the address for /metrics and /healthz; empty: none
	Temporary     string        // where the socket for health checks is made; empty: there is none
}

func (l *Launcher) newRun() *run {
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
	filled.Output = &whole{w: filled.Output}
	if filled.Foreign == nil {
		filled.Foreign = func(from, line string) { fmt.Fprintf(filled.Output, "%s: %s\n", from, line) }
	}
	if filled.Now == nil {
		filled.Now = time.Now
	}
	if filled.Sleep == nil {
		filled.Sleep = sleep
	}
	if filled.Proc == "" {
		filled.Proc = state.Proc
	}
	var unnamed error
	if filled.BootID == "" {
		filled.BootID, unnamed = state.BootID(filled.Proc)
	}
	r := &run{
		Launcher: &filled, report: &report{log: filled.Log, progress: filled.Progress},
		unnamed: unnamed,
	}
	r.report.Version, r.report.BootID, r.report.StartedAt = ReportVersion, filled.BootID, now()
	r.report.Platform, r.report.Attempt = filled.Settings.Platform, 1
	r.report.status = outside{teller: r.teller(), version: filled.Version, silence: func() {}}
	return r
}

func (r *run) close() {
	r.report.status.silence()
	if r.opened != nil {
		r.opened.Close()
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

func (noProgress) Missing(int64, bool)   {}
func (noProgress) Sent(int64)            {}
func (noProgress) Unpacked(int64)        {}
func (noProgress) Step(string, int, int) {}
func (noProgress) Fetched(int64)         {}
func (noProgress) Stop(bool)             {}

// StepError is the error of a step.
type StepError struct {
	Step admission.Step
	Err  error
}

func (e *StepError) Error() string { return string(e.Step) + ": " + e.Err.Error() }

// Unwrap returns why the step failed.
func (e *StepError) Unwrap() error { return e.Err }

// Pull does the steps pull and load alone: it has the engine hold the image that ref names, and
// returns the report's parts about the image and the pull. Where there is a shared directory,
// manifest and config are cached in it. A platform that isn't zero is the one whose image is wanted
// instead of this machine's; no boot here needs that one, so nothing of it is cached.
func (l *Launcher) Pull(ctx context.Context, ref name.Digest, platform v1.Platform) (*ImageReport, *PullReport, error) {
	r := l.newRun()
	defer r.close()
	r.report.status.teller = nil // it is no boot
	m := &machine{run: r, platform: platform}
	var err error
	if m.engine, err = docker.New(r.Settings.DockerHost); err != nil {
		return nil, nil, &exit.Error{Code: exit.Usage, Err: err}
	}
	hash, err := digest.Parse(ref.DigestStr())
	if err != nil {
		return nil, nil, &exit.Error{Code: exit.Usage, Err: err}
	}
	foreign := platform.OS != "" && platform.String() != "linux/"+runtime.GOARCH
	if shared, err := files.OpenDir(r.Settings.SharedDir); err == nil && !foreign {
		m.shared, m.own, r.opened = shared, state.In(shared), shared
	}
	r.report.Image = &ImageReport{Reference: ref.String(), Digest: hash}
	r.report.plan(admission.AtPull, admission.AtLoad)
	pulled := do(ctx, r, admission.AtPull, m.pull(choice{ref: ref, retry: config.DefaultRetry(), config: new(config.Config)}))
	do(ctx, r, admission.AtLoad, m.load(pulled))
	return r.report.Image, r.report.Pull, r.err
}
