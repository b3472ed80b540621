package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/state"
)

const (
	// stopGrace is how long a workload may take to end before it is killed.
	stopGrace = 10 * time.Second
	// startGrace is how long a workload must run to count as started.
	startGrace = 3 * time.Second
	startPoll  = 200 * time.Millisecond
	// lastLines and lastBytes bound what is kept or shown of a workload's log.
	lastLines = 1000
	lastBytes = 256 << 10
)

// settings opens the shared directory and takes the lock. It is the directory's own: it dies with this process, and
// nothing that the workload does to the entries of its volume can take it away.
func (r *run) settings(ctx context.Context) (string, error) {
	shared, err := files.OpenDir(r.Settings.SharedDir)
	if err != nil {
		return "", &exit.Error{Code: exit.Config, Err: fmt.Errorf("shared directory: %w", err),
			Hint: []string{"mount the shared volume there, or name its place with --shared-dir"}}
	}
	r.shared = shared
	if err := shared.Lock(ctx, r.Sleep); errors.Is(err, files.ErrLocked) {
		return "", &exit.Error{Code: exit.Busy, Err: fmt.Errorf("another launcher is at work here: %w", err),
			Hint: []string{
				"wait until it has ended, or stop it",
				"if there is none, a workload of an earlier boot holds the lock of its volume: docker stop " + compose.Name,
			}}
	} else if err != nil {
		return "", &exit.Error{Code: exit.Config, Err: fmt.Errorf("shared directory: %w", err)}
	}
	r.own = state.In(shared)
	if err := r.own.Make(); err != nil {
		return "", &exit.Error{Code: exit.Config, Err: fmt.Errorf("our own directory: %w", err),
			Hint: []string{"remove what stands in its place; nothing of value is kept there"}}
	}
	r.report.open(r.Settings.Report, r.own, shared)
	r.engine, err = docker.New(r.Settings.DockerHost)
	if err != nil {
		return "", &exit.Error{Code: exit.Usage, Err: err}
	}
	if r.tee() {
		r.agent = &rtmr.Agent{Socket: r.Settings.AgentSocket, Logger: r.Log, Now: r.Now, Sleep: r.Sleep}
	}
	return "platform " + string(r.Settings.Platform), nil
}

func (r *run) tee() bool { return r.Settings.Platform == config.TEE }

// probe asks, before anything is touched, whether a measurement could end well.
func (r *run) probe(ctx context.Context) (string, error) {
	if !r.tee() {
		return "no measurement outside a CVM", errSkipped
	}
	log, err := r.agent.Log(ctx)
	if err != nil {
		return "", err
	}
	if log, err = r.unfinished(ctx, log); err != nil {
		return "", err
	}
	if len(log.Images()) == 0 {
		if err := log.Replays(); err != nil {
			return "", err
		}
		if err := r.agent.CanEmit(ctx); err != nil {
			return "", err
		}
		return "the agent can measure, no image is measured yet", nil
	}
	decision, err := r.selectImage()
	if err != nil {
		return "", err
	}
	if _, err := log.Measured(decision.Digest); err != nil {
		return "", err
	}
	if err := r.ours(decision.Digest); err != nil {
		return "", err
	}
	if err := r.attributable(ctx, decision.Digest); err != nil {
		return "", err
	}
	r.conclude(decision.Digest)
	r.present, r.decision = true, decision
	r.measured(log.Replay(), decision.Digest, true)
	return decision.Digest.String() + " is measured already", nil
}

// decide reads the user config and the approved list and selects the digest to run. Where an image is measured already, the probe did so:
// the workload can change the list at any time, and what was admitted is what has to run.
func (r *run) decide(context.Context) (string, error) {
	decision := r.decision
	if !r.present {
		var err error
		if decision, err = r.selectImage(); err != nil {
			return "", err
		}
		r.decision = decision
	}
	r.ref, r.retry = r.config.Image.At(decision.Digest), r.config.Retry
	r.report.Image = &ImageReport{Reference: r.config.Image.String(), Digest: decision.Digest, Reason: string(decision.Reason)}
	r.Log.Info("image selected", "reference", r.config.Image.String(), "digest", decision.Digest, "reason", decision.Reason)
	return fmt.Sprintf("%s (%s)", decision.Digest, decision.Reason), nil
}

func (r *run) selectImage() (approval.Decision, error) {
	data, err := files.ReadFile(r.Settings.ConfigFile, config.MaxSize)
	if err != nil {
		return approval.Decision{}, &exit.Error{Code: exit.Config, Err: fmt.Errorf("user config: %w", err),
			Hint: []string{"write the user config there, or name its place with --config"}}
	}
	cfg, warnings, err := config.Parse(r.Settings.ConfigFile, data, r.Settings.Platform)
	if err != nil {
		return approval.Decision{}, err
	}
	if r.config == nil {
		for _, w := range warnings {
			r.Log.Warn(w.String())
		}
	}
	r.config = cfg
	var list *approval.List
	data, err = r.shared.Read(approval.File, approval.MaxSize)
	switch {
	case err == nil:
		parsed, err := approval.Parse(data)
		if err != nil {
			return approval.Decision{}, fmt.Errorf("%s: %w", approval.File, err)
		}
		list = &parsed
	case !errors.Is(err, fs.ErrNotExist): // there, but unreadable: never the default
		return approval.Decision{}, &exit.Error{Code: exit.Config, Err: fmt.Errorf("approved list: %w", err)}
	}
	return approval.Select(list, cfg.Override, r.Settings.DefaultDigest)
}

// pull proves manifest and config: from the copy that an earlier boot kept, if the engine has the image, or from the registry.
func (r *run) pull(ctx context.Context) (string, error) {
	client := &registry.Client{
		Insecure: r.Settings.Insecure, Rounds: r.retry.Rounds,
		Interval: max(r.retry.Interval, 1), MaxDelay: max(r.retry.MaxDelay, 1), // zero would mean the default
		ForbiddenHelperDirs: []string{"/tapp", r.Settings.SharedDir}, // unmeasured: a helper there could be anybody's
		Log:                 r.Log,
		Tuning:              registry.Tuning{Sleep: r.Sleep},
	}
	r.report.Pull = &PullReport{}
	info, err := r.engine.Info(ctx)
	if err != nil {
		return "", err
	}
	r.source = client.Source(r.ref)
	kept, err := r.own.Restore(r.ref)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Log.Warn("the kept manifest is of no use", "error", err)
	}
	if err == nil {
		id, err := r.engine.Prove(ctx, info, kept)
		if err == nil {
			r.image, r.id = kept, id
			r.report.Pull.Source, r.report.Pull.BytesReused = "engine", kept.Size()
			return "the engine has the image", errSkipped
		}
		r.image = kept
		return fmt.Sprintf("kept by an earlier run: %d layers, %d bytes", len(kept.Layers()), kept.Size()), nil
	}
	r.image, err = r.source.Resolve(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d layers, %d bytes", len(r.image.Layers()), r.image.Size()), nil
}

// load has the engine take the image, unless it has it.
func (r *run) load(ctx context.Context) (string, error) {
	if !r.id.IsZero() {
		r.engine.ForgetPrefixes(ctx, r.image) // of a run that was killed just before it would have
		return r.id.String(), errSkipped
	}
	info, err := r.engine.Info(ctx)
	if err != nil {
		return "", err
	}
	r.id, err = r.engine.Prove(ctx, info, r.image)
	var unproved *inspect.UnprovedError
	switch {
	case err == nil:
		r.report.Pull.Source, r.report.Pull.BytesReused = "engine", r.image.Size()
	case errors.Is(err, inspect.ErrNoImage), errors.As(err, &unproved):
		var loaded docker.Loaded
		loaded, err = r.engine.Load(ctx, r.image, r.source, docker.LoadOptions{Known: r.own.Known(r.ref.Context()), Space: r.space(ctx), Progress: r.Progress})
		r.Progress.Stop()
		r.id, r.report.Pull.BytesReused, r.report.Pull.Source = loaded.ID, loaded.Reused, "registry"
	}
	stats := r.source.Stats()
	r.report.Pull.BytesFetched, r.report.Pull.Requests, r.report.Pull.Resumes = stats.Fetched, stats.Requests, stats.Resumes
	if err != nil {
		return "", err
	}
	if r.shared != nil { // `launcher pull` may have none
		if err := r.own.Keep(r.image); err != nil {
			r.Log.Warn("manifest and config can't be kept; the next boot will need the registry", "error", err)
		}
	}
	return r.id.String(), nil
}

// create writes the node config and has Compose create the container, which isn't started yet. From here on the image is in
// use, so that nobody can prune it.
func (r *run) create(ctx context.Context) (string, error) {
	r.workload = compose.Workload{
		Reference: r.config.Image.String(), Digest: r.decision.Digest, Supervised: r.Settings.supervised(),
	}
	for _, p := range r.config.Ports {
		r.workload.Ports = append(r.workload.Ports, compose.Port(p))
	}
	if r.tee() {
		// The compose file of a container may have put the socket elsewhere than on the host.
		self, err := r.self(ctx)
		if err != nil {
			return "", err
		}
		r.workload.Agent, r.workload.Boot = self.HostPath(r.Settings.AgentSocket), r.BootID
	}
	if r.present {
		c, err := r.engine.Container(ctx, compose.Name)
		if err == nil && c.Status == "running" && r.ofThisBoot(c) && r.check(c) == nil {
			r.proved, r.running = c, true
			return "the workload runs already", errSkipped
		}
	}
	nodeConfig, err := r.config.NodeConfig(r.Settings.Platform, r.decision.Digest)
	if err != nil {
		return "", err
	}
	if err := r.shared.Write(compose.NodeConfig, nodeConfig, 0o644); err != nil {
		return "", &exit.Error{Code: exit.Config, Err: fmt.Errorf("node config: %w", err)}
	}
	if err := r.hold(ctx); err != nil {
		return "", err
	}
	tool, err := compose.Find(ctx, r.Settings.Compose, r.Settings.DockerHost)
	if err != nil {
		return "", err
	}
	r.Log.Debug("compose found", "command", tool.String(), "version", tool.Version())
	if err := r.clear(ctx); err != nil {
		return "", err
	}
	if err := tool.Create(ctx, r.workload, r.id); err != nil {
		return "", err
	}
	r.proved, err = r.engine.Container(ctx, compose.Name)
	if inspect.NotFound(err) {
		return "", &compose.Error{Command: tool.String(), Err: errors.New("it reported success, but there is no container " + compose.Name)}
	}
	if err != nil {
		return "", err
	}
	if err := r.check(r.proved); err != nil {
		return "", err
	}
	r.release(ctx, "")
	return r.proved.ShortID(), nil
}

func (r *run) check(c docker.Container) error {
	return r.workload.Check(c, r.id, r.image.ConfigFile().Config)
}

// measure is the commit point: the last look around, then the one effect that can't be undone.
func (r *run) measure(ctx context.Context) (string, error) {
	if !r.tee() {
		return "no measurement outside a CVM", errSkipped
	}
	if r.running {
		return "stands already", errSkipped
	}
	if !r.present {
		if err := r.quiet(ctx); err != nil {
			return "", err
		}
		if err := r.fresh(ctx); err != nil {
			return "", err
		}
		if intended, ok := r.intended(); ok {
			return "", underWay(intended) // planted since the probe, or not: it can only refuse
		}
	}
	m, err := r.agent.Measure(ctx, r.decision.Digest, r.record())
	if err != nil {
		var failed *rtmr.MeasureError
		if errors.As(err, &failed) && failed.Outcome == rtmr.NotEmitted {
			r.forget() // nothing is under way: a further run may try again
		}
		return "", err
	}
	if m.AlreadyPresent() && !r.present {
		r.forget() // whoever did it may have removed what we wrote
		return "", notOurs(m.Digest())
	}
	r.measured(m.RTMR3(), m.Digest(), m.AlreadyPresent())
	if m.AlreadyPresent() {
		return "stands already", errSkipped
	}
	return "RTMR3 is " + m.RTMR3().String(), nil
}

func (r *run) measured(register rtmr.Register, digest v1.Hash, already bool) {
	r.report.Measurement = &MeasurementReport{Event: rtmr.EventName, Digest: digest, RTMR3: register.String(), AlreadyPresent: already}
}

// fresh refuses a container that isn't as it was created: one that ran before may hold another program than its image.
func (r *run) fresh(ctx context.Context) error {
	c, err := r.again(ctx)
	if err != nil {
		return err
	}
	if !c.NeverStarted() {
		return &compose.DeviationError{Container: c.Name, What: "status", Got: c.Status, Want: "never started"}
	}
	return nil
}

// again looks at the container that was checked, and checks it once more.
func (r *run) again(ctx context.Context) (docker.Container, error) {
	c, err := r.engine.Container(ctx, r.proved.ID)
	if inspect.NotFound(err) {
		return c, &exit.Error{Code: exit.Workload, Err: fmt.Errorf("container %s (%s) was removed by somebody", r.proved.Name, r.proved.ShortID()),
			Hint: []string{"start the launcher again"}}
	}
	if err == nil {
		err = r.check(c)
	}
	return c, err
}

// start starts the very container that was checked, and looks whether it stays.
func (r *run) start(ctx context.Context) (string, error) {
	if r.running {
		r.started = true
		return r.proved.ShortID() + " runs already", errSkipped
	}
	c, err := r.again(ctx)
	if err != nil {
		return "", err
	}
	if r.tee() && !r.present && !c.NeverStarted() {
		return "", &compose.DeviationError{Container: c.Name, What: "status", Got: c.Status, Want: "never started"}
	}
	r.proved, r.started = c, true
	switch c.Status {
	case "running":
		return c.ShortID() + " runs already", errSkipped
	case "paused":
		return "", &exit.Error{Code: exit.Workload, Err: fmt.Errorf("container %s is paused", c.Name), Hint: []string{"docker unpause " + c.Name}}
	}
	// Not to be interrupted: nobody can say of a start that is given up whether it happens.
	if err := r.engine.Start(context.WithoutCancel(ctx), c.ID); err != nil {
		return "", &exit.Error{Code: exit.Workload, Err: err, Hint: []string{"free what it names and start the launcher again; the measurement stands"}}
	}
	return r.settle(ctx)
}

// settle watches the container for the grace period, or until a signal comes.
func (r *run) settle(ctx context.Context) (string, error) {
	for deadline := r.Now().Add(startGrace); ; {
		c, err := r.engine.Container(context.WithoutCancel(ctx), r.proved.ID)
		if err != nil {
			return "", &exit.Error{Code: exit.Workload, Err: err}
		}
		r.proved = c
		switch {
		case c.Status == "exited" && c.ExitCode == 0:
			return c.ShortID() + " ended with 0", nil
		case c.Status != "running":
			r.lastWords(ctx, c)
			if !r.Settings.supervised() {
				return "", &exit.Error{Code: exit.Workload, Err: fmt.Errorf("container %s is %s with exit code %d", c.Name, c.Status, c.ExitCode),
					Hint: []string{"look at its log: docker logs " + c.Name}}
			}
			return fmt.Sprintf("%s is %s with exit code %d", c.ShortID(), c.Status, c.ExitCode), nil
		case !r.Now().Before(deadline):
			return c.ShortID() + " runs", nil
		}
		if r.Sleep(ctx, startPoll) != nil {
			return c.ShortID() + " runs", nil
		}
	}
}

// lastWords shows people the last lines of a workload that didn't stay.
func (r *run) lastWords(ctx context.Context, c docker.Container) {
	if log, err := r.engine.Logs(ctx, c.ID, 20, 16<<10); err == nil && len(log) > 0 {
		lines := sanitize.Lines(string(log), 16<<10)
		fmt.Fprintf(r.Output, "last lines of %s:\n  %s\n", c.Name, strings.Join(lines, "\n  "))
	}
}
