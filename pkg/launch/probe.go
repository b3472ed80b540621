package launch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

// machine is what a run acts on once it has the lock.
type machine struct {
	*run
	shared  *files.Dir // locked
	own     state.Dir  // our own directory in it
	engine  *docker.Engine
	backend rtmr.Backend // nil outside a CVM

	platform v1.Platform // whose image is wanted; zero: this machine's
	ahead    *ahead      // what it fetches is for the next boot; nil: for this one
	// What is remembered from one attempt to the next: what the latest one found, how many waits of
	// each kind there were, that no image was measured yet, and whose logs were kept.
	seen          surroundings
	pauses, rests int
	unmeasured    bool
	// Of the newest approved digest: for how long it couldn't be had, and why the latest time.
	failing admission.Failing
	newest  error
	silent  time.Duration    // in which no source answered, of all attempts
	chosen  *choice          // in this attempt; nil: not yet
	costly  bool             // an attempt since the latest wait was
	saved   map[string]bool  // whose log was kept, by the container's ID
	ledger  *registry.Ledger // which sources lied
}

// settings ends what runs as the workload and isn't, so that no refusal leaves it running, and takes
// the lock of the shared directory. It is the directory's own: it dies with this process, and
// nothing that the workload does to the entries of its volume can take it away.
func (r *run) settings(ctx context.Context) (*machine, string, error) {
	m := &machine{run: r, ledger: new(registry.Ledger)}
	var err error
	if m.engine, err = docker.New(r.Settings.DockerHost); err != nil {
		return nil, "", &exit.Error{Code: exit.Usage, Err: err}
	}
	m.engine.Sleep = r.Sleep
	if r.Settings.TEE() {
		agent := &rtmr.Agent{Socket: r.Settings.AgentSocket, Logger: r.Log, Now: r.Now, Sleep: r.Sleep}
		m.backend = r.Settings.Native.Backend(agent)
	}
	// First of all, and even where there is nothing to go on with.
	ended := m.endImpostors(ctx)
	shared, err := state.OpenShared(r.Settings)
	if err == nil {
		r.opened = shared
	}
	if r.Settings.TEE() {
		err = errors.Join(r.unnamed, err)
	}
	if err := errors.Join(err, ended); err != nil {
		return nil, "", err
	}
	if err := m.isVolume(ctx); err != nil {
		return nil, "", err
	}
	if err := state.CanReport(r.Settings, shared); err != nil {
		return nil, "", err
	}
	if err := shared.Lock(ctx, r.Sleep); errors.Is(err, files.ErrLocked) {
		return nil, "", state.Locked(err)
	} else if err != nil {
		return nil, "", state.SharedDir(err)
	}
	m.shared, m.own = shared, state.In(shared)
	if err := m.own.Make(); err != nil {
		m.Log.Warn("the launcher's own directory in the shared volume can't be made: going on without report and record", "error", err)
	}
	r.report.open(r.Settings.Report, m.own, shared)
	m.speak()
	return m, "platform " + string(r.Settings.Platform), nil
}

// isVolume refuses a shared directory that isn't the volume. Outside a CVM it is the pull that first
// needs the engine, and that ends without one.
func (m *machine) isVolume(ctx context.Context) error {
	self, err := m.self(ctx)
	if err == nil {
		err = state.IsVolume(ctx, m.engine.Engine, self, m.opened, m.Proc)
	}
	var failed *docker.Error
	if !m.Settings.TEE() && errors.As(err, &failed) && failed.Status == 0 {
		return nil
	}
	return err
}

// choice is the image that this boot runs.
type choice struct {
	approval.Decision
	config *config.Config // an empty one for `launcher pull`
	ref    name.Digest    // the digest in the repository that the config names
	retry  config.Retry
}

// standing is what this boot's log says before anything was done.
type standing struct {
	log      *rtmr.Log // nil outside a CVM
	measured bool      // an image is
	choice   choice    // that image; nothing where none is
}

// probe asks, before anything is touched, whether a measurement could end well.
func (m *machine) probe(ctx context.Context) (found standing, detail string, err error) {
	if m.report.Attempt > 1 { // while it waited, the engine may have started what it likes
		if err := m.endImpostors(ctx); err != nil {
			return found, "", err
		}
		if err := m.isVolume(ctx); err != nil {
			return found, "", err
		}
	}
	if !m.Settings.TEE() {
		return found, "no measurement outside a CVM", errSkipped
	}
	facts := m.facts()
	left := rtmr.Earlier{Begun: facts.Record.Unfinished(), Images: state.Candidates(m.Settings, m.shared)}
	log, over, err := m.backend.Settle(ctx, left)
	if err != nil {
		return found, "", err
	}
	facts.Log = &log
	if over && left.Begun && !facts.AnImage() { // what was begun will never be
		m.forget()
		facts.Record = m.own.Record(m.BootID)
	}
	for _, objection := range log.Objections() {
		m.Log.Warn("verifiers would refuse this node", "reason", objection)
	}
	if err := admission.Decide(facts).Err(); err != nil {
		return found, "", err
	}
	found.log = &log
	if facts.AnImage() && m.unmeasured { // and this run has the lock, and hasn't come to its own emit
		m.forget() // what did it may have removed what we wrote
		image, _ := log.Images()[0].Image()
		return found, "", admission.NotOurs(image)
	}
	if !facts.AnImage() {
		m.unmeasured = true
		return found, "an image can be measured, and none is yet", m.backend.CanEmit(ctx)
	}
	if facts, err = m.around(ctx, facts); err != nil {
		return found, "", err
	}
	if err := admission.Decide(facts).Err(); err != nil { // whatever config and list say
		return found, "", err
	}
	if found.choice, err = m.read(facts); err != nil {
		return found, "", err
	}
	facts.Wanted = &found.choice.Decision
	verdict := admission.Decide(facts)
	if err := verdict.Err(); err != nil {
		return found, "", err
	}
	for _, c := range verdict.Excused {
		m.Log.Warn("an image is already measured and the engine may restart the workload by itself; only the record of this boot says that the measurement is the launcher's",
			"container", c.Name, "policy", c.RestartPolicy)
	}
	digest := found.choice.Digest
	m.conclude(digest)
	m.report.measured(log.Replay(), digest, true)
	found.measured = verdict.Measured
	return found, digest.String() + " is measured already", nil
}

// facts is what is known without asking anybody.
func (m *machine) facts() admission.Facts {
	return admission.Facts{Settings: m.Settings, Boot: m.BootID, Record: m.own.Record(m.BootID)}
}

// info asks the engine what it is.
func (m *machine) info(ctx context.Context) (inspect.Info, error) {
	info, err := m.engine.Info(ctx)
	if err == nil {
		err = admission.Engine(info)
	}
	return info, err
}

// around adds the containers to what is known.
func (m *machine) around(ctx context.Context, f admission.Facts) (_ admission.Facts, err error) {
	if f.Self, err = m.self(ctx); err == nil {
		f.Containers, err = state.Containers(ctx, m.engine.Engine, f.Self.ID)
	}
	if err == nil && m.Settings.TEE() {
		f.Containers, err = state.Holders(ctx, m.engine.Engine, m.Settings, f.Self, f.Containers)
	}
	return f, err
}

// self returns the launcher's own container; the zero value where it runs as a plain binary.
func (m *machine) self(ctx context.Context) (docker.Container, error) {
	return state.Self(ctx, m.engine.Engine, m.Proc)
}

// choose reads the user config and the approved list and selects the digest to run. Where an image
// is measured already, the probe did so: the workload can change the list at any time, and what was
// admitted is what has to run.
func (m *machine) choose(found alone) step[choice] {
	return func(context.Context) (choice, string, error) {
		chosen := found.choice
		if !found.measured {
			known := m.facts()
			known.Failing = m.failing
			var err error
			if chosen, err = m.read(known); err != nil {
				return choice{}, "", err
			}
		}
		reference := chosen.config.Image.String()
		m.report.Image = &ImageReport{Reference: reference, Digest: chosen.Digest, Reason: string(chosen.Reason)}
		m.Log.Info("image selected", "reference", reference, "digest", chosen.Digest, "reason", chosen.Reason)
		m.chosen = &chosen
		if !chosen.From.IsZero() {
			m.report.Image.FallbackFrom = &chosen.From
			m.Log.Warn("trying an older approved image than the newest", "digest", chosen.Digest, "fallback_from", chosen.From,
				"because", m.newest, "failing_for", m.failing.For.Round(time.Second))
		}
		return chosen, fmt.Sprintf("%s (%s)", chosen.Digest, chosen.Reason), nil
	}
}

// unread is why the files can't be read that say which image is wanted, or say none that may run.
type unread struct{ error }

func (e unread) Unwrap() error { return e.error }

// read reads those files. Its errors are unread.
func (m *machine) read(known admission.Facts) (_ choice, err error) {
	defer func() {
		if err != nil {
			err = unread{err}
		}
	}()
	m.seen.files = state.Fingerprint(m.Settings, m.shared)
	chosen, warnings, err := m.wanted(known)
	for _, w := range warnings {
		m.Log.Warn(w.String())
	}
	return chosen, err
}

// wanted is read without a word. The warnings are valid beside an error.
func (m *machine) wanted(known admission.Facts) (_ choice, warnings []config.Warning, err error) {
	cfg, warnings, err := state.UserConfig(m.Settings)
	if err != nil {
		return choice{}, nil, err
	}
	list, err := state.Approved(m.shared)
	if err != nil {
		return choice{}, warnings, err
	}
	decision, err := known.Select(list, cfg.Override)
	if err != nil {
		return choice{}, warnings, err
	}
	return choice{Decision: decision, config: cfg, ref: cfg.Image.At(decision.Digest), retry: cfg.Retry}, warnings, nil
}
