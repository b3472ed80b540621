package launch

import (
	"context"
	"errors"
	"slices"
	"time"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/layout"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/stage"
	"tee-launcher/pkg/state"
	"tee-launcher/pkg/waiting"
)

const (
	// aheadWorkers is how many connections fetch for a later boot: there is time, and each costs memory.
	aheadWorkers = 4
	// aheadEnd is how long a staging that was told to end is waited for.
	aheadEnd = time.Second
)

// ahead is what is different where a machine fetches an image for the next boot. Nil: it fetches for
// this one.
type ahead struct {
	rate    int64
	running digest.Digest
	ask     stage.May
}

// tame keeps a client from taking what the workload needs, and from what that could have put there for
// the engine to unpack.
func (a *ahead) tame(c *registry.Client, shared string) {
	if a == nil {
		return
	}
	c.Rate, c.Tuning.Workers = a.rate, aheadWorkers
	c.Sources = slices.DeleteFunc(slices.Clone(c.Sources), func(s config.Source) bool {
		return s.Layout != "" && layout.Below(s.Layout, shared)
	})
}

// spared returns the images whose cached manifests stay: the next boot may want the present one.
func (a *ahead) spared() []digest.Digest {
	if a == nil {
		return nil
	}
	return []digest.Digest{a.running}
}

// may returns why an image can't be loaded of which the engine lacks so many bytes.
func (a *ahead) may(ctx context.Context, info inspect.Info, v *image.Verified, missing int64) error {
	if a == nil {
		return nil
	}
	return a.ask(ctx, info, inspect.ID(info.Store, v).String(), missing)
}

// stageAhead has what the next boot will run fetched while the workload runs, until ended is called.
func (m *machine) stageAhead(ctx context.Context, runs proved) (ended func()) {
	if !m.Stage.Wanted(m.Settings.Supervised()) {
		m.report.stage(&StagedReport{State: stage.Disabled})
		return func() {}
	}
	ctx, cancel := context.WithCancel(waiting.With(ctx, &waiting.Board{})) // nobody waits for it
	s := stage.Stager{
		Settings: m.Stage, Engine: m.engine, Running: staging(runs),
		Choose: m.next, Ready: m.ready, Fetch: m.fetchAhead(runs.want.Digest), Disk: m.disk,
		Log: m.Log, Report: m.report.staged, Now: m.Now, Sleep: m.Sleep, Random: m.Random,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	return func() {
		cancel()
		late := time.NewTimer(aheadEnd)
		defer late.Stop()
		select {
		case <-done:
		case <-late.C: // what it leaves, the next one clears
		}
	}
}

func staging(runs proved) stage.Running {
	return stage.Running{Approved: runs.want.Digest, ID: runs.want.ID, Volumes: runs.want.Base.Volumes}
}

// next returns what the next boot would run as files are now: whatever is measured in this one.
func (m *machine) next() (stage.Candidate, error) {
	chosen, _, err := m.wanted(m.facts())
	if err == nil {
		_, err = chosen.config.NodeConfig(m.Settings.Platform, chosen.Digest)
	}
	if err != nil {
		return stage.Candidate{}, err
	}
	return stage.Candidate{Digest: chosen.Digest, Ref: chosen.ref, Config: chosen.config}, nil
}

// ready looks whether the next boot would find an image and its manifest here, and changes nothing.
func (m *machine) ready(ctx context.Context, c stage.Candidate) (docker.ImageID, bool) {
	v, err := m.own.Restore(c.Ref)
	if err != nil {
		return docker.ImageID{}, false
	}
	info, err := m.engine.Info(ctx)
	if err != nil {
		return docker.ImageID{}, false
	}
	id, err := m.engine.Engine.Prove(ctx, info, v)
	return id, err == nil
}

// disk looks at the engine's.
func (m *machine) disk(ctx context.Context) (*stage.Disk, error) {
	info, err := m.engine.Info(ctx)
	if err != nil {
		return nil, err
	}
	self, err := m.self(ctx)
	if err != nil {
		return nil, err
	}
	free, all, known := state.Disk(info, self, m.Settings, m.Disk)
	if !known {
		return nil, nil
	}
	return &stage.Disk{Free: free, All: all}, nil
}

// fetchAhead does the steps pull and load for a later boot, of which this one's report tells nothing.
func (m *machine) fetchAhead(running digest.Digest) stage.Fetch {
	return func(ctx context.Context, c stage.Candidate, may stage.May) (stage.Fetched, error) {
		l := *m.Launcher
		l.Log, l.Progress = m.Log.With("staging", c.Digest), noProgress{}
		r := &run{Launcher: &l, report: &report{log: l.Log, progress: l.Progress}}
		r.report.Image = &ImageReport{}
		other := &machine{run: r, shared: m.shared, own: m.own, engine: m.engine, platform: m.platform, ledger: m.ledger}
		other.ahead = &ahead{rate: m.Stage.Rate, running: running, ask: may}
		pulled, _, err := other.pull(choice{ref: c.Ref, retry: c.Config.Retry, config: c.Config})(ctx)
		if err == nil || errors.Is(err, errSkipped) {
			pulled, _, err = other.load(pulled)(ctx)
		}
		if err != nil && !errors.Is(err, errSkipped) {
			return stage.Fetched{}, err
		}
		return stage.Fetched{ID: pulled.id, Image: pulled.image}, nil
	}
}

// unstage gives up what was staged, as far as it was for the image that the workload's container has
// now, or for nothing any more.
func (m *machine) unstage(ctx context.Context, made proved, containers []admission.Container) {
	var all []docker.Container
	for _, c := range containers {
		all = append(all, c.Container)
	}
	stages := m.Stage.Wanted(m.Settings.Supervised())
	if err := stage.Release(ctx, m.engine, m.Log, all, staging(made), stages); err != nil {
		m.Log.Warn("what was staged can't be removed; it does no harm", "error", err)
	}
}

// StagedReport says how far the image is that the next boot will run.
type StagedReport struct {
	Digest *digest.Digest `json:"digest"` // null where staging is off
	State  stage.State    `json:"state"`
	Error  *string        `json:"error"` // why it isn't staged; null where nothing is wrong
	At     time.Time      `json:"at"`    // when that became so
}

// staged takes over what staging says.
func (r *report) staged(now stage.State, of digest.Digest, why error) {
	if now == "" {
		r.stage(nil)
		return
	}
	s := &StagedReport{State: now}
	if !of.IsZero() {
		s.Digest = &of
	}
	if why != nil {
		text := shown(why, sanitize.MaxLine)
		s.Error = &text
	}
	r.stage(s)
}
