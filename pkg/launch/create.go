package launch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/state"
)

const (
	// stopGrace is how long a workload may take to end before it is killed.
	stopGrace = 10 * time.Second
	// endTries is how often more an engine that fails is asked to end one, and endPause between.
	endTries = 20
	endPause = 250 * time.Millisecond
	// unseenTries is how often it is asked for the containers, as long as it can't tell of one.
	unseenTries = 4
	// startGrace is how long a workload must run to count as started.
	startGrace = 3 * time.Second
	startPoll  = 200 * time.Millisecond
	// lastLines and lastBytes bound what is kept or shown of a workload's log.
	lastLines = 1000
	lastBytes = 256 << 10
)

// proved is the workload's container, which was checked against what it must be.
type proved struct {
	docker.Container
	want    admission.Workload
	unused  bool // it must never have been started, because what is about to be measured is its image
	running bool // it runs already, so that all that follows stands
}

// create writes the node config and has Compose create the container, which isn't started yet. From
// here on the image is in use, so that nothing can prune it.
func (m *machine) create(found alone, chosen choice, loaded imaged) step[proved] {
	return func(ctx context.Context) (proved, string, error) {
		facts, err := m.around(ctx, m.facts())
		if err != nil {
			return proved{}, "", err
		}
		info, err := m.info(ctx)
		if err != nil {
			return proved{}, "", err
		}
		want := m.workload(chosen, loaded, facts.Self, info)
		if stays, _ := facts.Sort(want, found.measured); admission.Running(stays, found.measured) {
			m.report.note(stays.Container)
			return proved{Container: stays.Container, want: want, running: true}, "the workload runs already", errSkipped
		}
		nodeConfig, err := chosen.config.NodeConfig(m.Settings.Platform, chosen.Digest)
		if err != nil {
			return proved{}, "", err
		}
		if err := m.shared.Write(compose.NodeConfig, nodeConfig, 0o600); err != nil {
			return proved{}, "", state.NodeConfig(err)
		}
		held, err := m.hold(ctx, loaded)
		if err != nil {
			return proved{}, "", err
		}
		want.ID = held.id
		tool, err := compose.Find(ctx, m.Settings.Compose, m.Settings.DockerHost, m.Settings.Unmeasured(), m.Exec)
		if err != nil {
			return proved{}, "", err
		}
		m.Log.Debug("compose found", "command", tool.String(), "version", tool.Version())
		if err := m.clear(ctx, found, want); err != nil {
			return proved{}, "", err
		}
		for _, odd := range state.Oddities(ctx, m.engine.Engine) {
			m.Log.Warn("the workload gets something that isn't as the engine makes it", "what", odd)
		}
		if err := tool.Create(ctx, want.Workload, want.ID); err != nil {
			return proved{}, "", m.blamed(ctx, err)
		}
		c, err := m.engine.Container(ctx, compose.Name)
		if inspect.NotFound(err) {
			return proved{}, "", &compose.Error{Command: tool.String(), Err: errors.New("it reported success, but there is no container " + compose.Name)}
		}
		if err != nil {
			return proved{}, "", err
		}
		m.report.note(c)
		if err := want.Check(c); err != nil {
			return proved{}, "", otherwise(err, tool, info)
		}
		m.unstage(ctx, proved{want: want}, facts.Containers)
		return proved{Container: c, want: want, unused: m.Settings.TEE() && !found.measured}, c.ShortID(), nil
	}
}

// blamed is why Compose failed. It says in words alone that the engine went away, and then it is the
// engine that has to come back: one that takes no new connection, as long as it is on its way down too.
func (m *machine) blamed(ctx context.Context, err error) error {
	engine, away := docker.New(m.Settings.DockerHost)
	if away == nil {
		_, away = engine.Info(ctx)
	}
	if away == nil || ctx.Err() != nil {
		return err
	}
	m.Log.Warn("Compose failed, and the engine is away", "error", err)
	return fmt.Errorf("the engine went away while Compose was at work: %w", away)
}

// otherwise is a container that was just made, and not as Compose was told to make it: the next one
// would be like it.
func otherwise(err error, tool compose.Tool, info inspect.Info) error {
	return &exit.Error{Code: exit.Workload, Err: err, Hint: []string{fmt.Sprintf(
		"that was not asked for: look at what Compose %s, engine %s or its daemon.json add to every container",
		tool.Version(), info.Version)}}
}

// workload is the container that is to be created. The compose file of a container may have put the
// agent's socket elsewhere than on the host.
func (m *machine) workload(chosen choice, loaded imaged, self docker.Container, info inspect.Info) admission.Workload {
	w := compose.Workload{Reference: chosen.config.Image.String(), Digest: chosen.Digest, Supervised: m.Settings.Supervised()}
	for _, p := range chosen.config.Ports {
		w.Ports = append(w.Ports, compose.Port(p))
	}
	if m.Settings.TEE() {
		w.Agent, w.Boot = self.HostPath(m.Settings.AgentSocket), m.BootID
	}
	return admission.Workload{Workload: w, ID: loaded.id, Base: loaded.image.ConfigFile().Config, Runtime: info.Runtime}
}

// holdTries bounds how often an image is loaded again that is gone before a container could hold
// it.
const holdTries = 5

// hold sees to it that the volumes and the image are in use while the workload's container is
// replaced, and after it too, whoever removes that container: dstack prunes both at boot, and the
// data volume holds keys. What holds them stays until the next create has another. An image that is
// gone is loaded once more.
func (m *machine) hold(ctx context.Context, img imaged) (imaged, error) {
	for try := 1; ; try++ {
		id, err := holder(ctx, m.engine, img.id, img.image.ConfigFile().Config)
		if err == nil {
			err = m.stillThere(ctx, img.image)
		}
		if err == nil {
			m.release(ctx, id)
			return img, nil
		}
		if !inspect.NotFound(err) && !errors.Is(err, inspect.ErrNoImage) || try == holdTries {
			return imaged{}, err
		}
		m.Log.Warn("the image is gone, loading it once more", "error", err)
		if img, _, err = m.load(imaged{image: img.image, source: img.source})(ctx); err != nil && !errors.Is(err, errSkipped) {
			return imaged{}, err
		}
	}
}

// stillThere looks whether the engine has the image that a container was just made of. A prune that
// had already found it unused takes it all the same.
func (m *machine) stillThere(ctx context.Context, v *image.Verified) error {
	info, err := m.engine.Info(ctx)
	if err != nil {
		return err
	}
	if _, err = m.engine.Prove(ctx, info, v); errors.Is(err, inspect.ErrNoImage) {
		return &exit.Error{Code: exit.Engine, Err: err, Hint: []string{"something is removing images right now; try again"}}
	}
	return err
}

// holder makes a container of the proved image that is never started and mounts the volumes, which
// are made with it where they are missing.
func holder(ctx context.Context, engine *docker.Engine, image docker.ImageID, base v1.Config) (id string, err error) {
	return engine.Hold(ctx, admission.HolderPrefix+now().Format("20060102150405.000"), image,
		[]string{compose.SharedVolume, compose.DataVolume}, base.Volumes)
}

// release removes the holders but one, those of earlier runs included.
func (m *machine) release(ctx context.Context, but string) {
	containers, err := m.engine.Containers(ctx)
	for _, c := range containers {
		if strings.HasPrefix(c.Name, admission.HolderPrefix) && c.ID != but && c.NeverStarted() {
			err = errors.Join(err, m.engine.Discard(ctx, c.ID))
		}
	}
	if err != nil {
		m.Log.Warn("a container that only holds volumes can't be removed; it does no harm", "error", err)
	}
}

// clear removes what stands in the way of the workload's container, after saving the end of its
// log.
func (m *machine) clear(ctx context.Context, found alone, want admission.Workload) error {
	facts, err := m.around(ctx, m.facts())
	if err != nil {
		return err
	}
	if found.measured { // nothing that runs is ended where nothing may be started in its place
		if err := facts.Holders().Err(); err != nil {
			return err
		}
	}
	_, replaced := facts.Sort(want, found.measured)
	for _, c := range replaced {
		if c.Live() {
			if err := m.end(ctx, c.Container); err != nil {
				return err
			}
		}
		if c.Name == compose.Name || strings.HasPrefix(c.Name, compose.ImpostorPrefix) {
			m.saveLog(ctx, c.Container)
		}
		m.Log.Info("replacing a container; its volumes stay", "container", c.Name, "id", c.ShortID(),
			"because", facts.Stays(c, want, found.measured))
		if err := m.engine.Remove(ctx, c.ID); err != nil {
			return err
		}
	}
	return nil
}

// saveLog keeps the end of the log of a container that is about to be removed, and shows it: from
// outside a CVM nothing can be read but the logs of the containers that are there. That it can't be kept
// must not keep the node down.
func (m *machine) saveLog(ctx context.Context, c docker.Container) {
	if m.saved[c.ID] { // by an attempt that couldn't remove it
		return
	}
	log, err := m.engine.Logs(ctx, c.ID, lastLines, lastBytes)
	if len(log) > 0 {
		if m.saved == nil {
			m.saved = map[string]bool{}
		}
		m.saved[c.ID] = true
		ended, boot := c.FinishedAt, c.Labels[compose.BootLabel]
		if now, again := m.engine.Container(ctx, c.ID); again == nil { // it was ended only now
			ended = now.FinishedAt
		}
		if boot == "" { // older launchers had none
			boot = m.BootID
		}
		name, kept := m.own.KeepLog(boot, ended, log)
		err = errors.Join(err, kept)
		m.Log.Info("these are the last lines of the workload before", "container", c.Name, "kept", name)
		m.foreign(compose.Name+" before", log)
	}
	if err != nil {
		m.Log.Warn("the replaced container's log can't be kept", "container", c.Name, "error", err)
	}
}
