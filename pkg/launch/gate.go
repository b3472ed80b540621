package launch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
)

// holderPrefix begins the names of the containers that hold volumes and image while the workload's is replaced.
const holderPrefix = "mpc-node-holder-"

// others returns all containers but the launcher's own, and that, the zero value where it runs as a plain binary.
func (r *run) others(ctx context.Context) (containers []docker.Container, self docker.Container, err error) {
	if self, err = r.self(ctx); err != nil {
		return nil, self, err
	}
	if containers, err = r.engine.Containers(ctx); err != nil {
		return nil, self, err
	}
	return slices.DeleteFunc(containers, func(c docker.Container) bool { return c.ID == self.ID }), self, nil
}

// gate sees to it, early, that no old workload runs beside what is measured later.
func (r *run) gate(ctx context.Context) (string, error) {
	if !r.tee() {
		return "nothing to guard outside a CVM", errSkipped
	}
	if r.present {
		return "the image is measured already", errSkipped
	}
	// From here on an image event that no intent of ours preceded is somebody else's, for a later run too. Once more when the old workload
	// has ended: until then it can remove what we write. It must end even if we can't write.
	begun := r.record().begun()
	if err := r.quiet(ctx); err != nil {
		return "", err
	}
	if begun == nil {
		begun = r.record().begun()
	}
	return "no old workload runs", begun
}

// quiet stops what runs of the workload, and refuses where somebody else holds the agent's socket: whoever holds it can emit
// an event in our name.
func (r *run) quiet(ctx context.Context) error {
	containers, _, err := r.others(ctx)
	if err != nil {
		return err
	}
	for _, c := range containers {
		if !c.Live() || !compose.OfWorkload(c) {
			continue
		}
		r.Log.Warn("stopping a workload that nobody has measured in this boot", "container", c.Name, "id", c.ShortID(), "status", c.Status)
		if err := r.end(ctx, c); err != nil {
			return err
		}
	}
	containers, self, err := r.others(ctx)
	if err != nil {
		return err
	}
	for _, c := range containers {
		if !c.Live() {
			continue
		}
		if compose.OfWorkload(c) {
			return &exit.Error{Code: exit.Measurement, Err: fmt.Errorf("container %s (%s) of the workload can't be stopped: it is %s", c.Name, c.ShortID(), c.Status),
				Hint: []string{"end it and start the launcher again: docker kill " + c.ShortID()}}
		}
	}
	return r.unheld(ctx, containers, self)
}

// unheld refuses where somebody else than the workload holds the agent's socket.
func (r *run) unheld(ctx context.Context, containers []docker.Container, self docker.Container) error {
	for _, c := range containers {
		if !c.Live() || compose.OfWorkload(c) || compose.SameProject(c, self) {
			continue
		}
		source, err := r.engine.Reaches(ctx, c, self.HostPath(r.Settings.AgentSocket))
		if err != nil {
			return err
		}
		if source != "" {
			return &exit.Error{Code: exit.Measurement,
				Err:  fmt.Errorf("container %s (%s) holds the guest agent's socket through its mount of %s", c.Name, c.ShortID(), source),
				Hint: []string{"whoever holds it can measure in the launcher's name; stop it, and reboot the CVM if it isn't yours"}}
		}
	}
	return nil
}

// end ends a container of the workload. That it is gone is as good.
func (r *run) end(ctx context.Context, c docker.Container) error {
	// The policy first: between a stop and a late change of it the engine may start it again.
	if err := r.engine.ForbidRestart(ctx, c.ID); err != nil && !inspect.NotFound(err) {
		return err
	}
	if err := r.engine.Stop(ctx, c.ID, stopGrace); err != nil && !inspect.NotFound(err) {
		return err
	}
	return nil
}

// self returns the launcher's own container; the zero value where it runs as a plain binary.
func (r *run) self(ctx context.Context) (docker.Container, error) {
	if r.SelfID != "" {
		return r.engine.Container(ctx, r.SelfID)
	}
	mounts, err := files.ReadFile("/proc/self/mountinfo", inspect.MaxMountinfo)
	if err != nil {
		return docker.Container{}, fmt.Errorf("finding our own container: %w", err)
	}
	return r.engine.Self(ctx, mounts)
}

// attributable refuses an image event that may be somebody else's: a container with a restart policy may have been started
// by the engine itself before this launcher was, and have emitted it.
func (r *run) attributable(ctx context.Context, digest v1.Hash) error {
	containers, self, err := r.others(ctx)
	if err != nil {
		return err
	}
	if !r.recorded(digest) {
		if err := r.unheld(ctx, containers, self); err != nil {
			return err
		}
	}
	for _, c := range containers {
		if !compose.OfWorkload(c) {
			continue
		}
		if c.Live() && !r.ofThisBoot(c) {
			return &exit.Error{Code: exit.Measurement,
				Err:  fmt.Errorf("an image is measured already, but container %s (%s) runs that no launcher of this boot created, and may have done that", c.Name, c.ShortID()),
				Hint: []string{"see to it that it doesn't start by itself, then reboot the CVM: docker update --restart=no " + c.ShortID()}}
		}
		if c.RestartPolicy == "no" {
			continue
		}
		if r.Settings.Supervise == SuperviseOff && r.ofThisBoot(c) && r.recorded(digest) {
			r.Log.Warn("an image event stands and the engine may restart the workload by itself; our record of this boot says that the event is ours",
				"container", c.Name, "policy", c.RestartPolicy)
			continue
		}
		return &exit.Error{Code: exit.Measurement,
			Err:  fmt.Errorf("an image is measured already, but container %s (%s) restarts by itself (%s) and may have done that", c.Name, c.ShortID(), c.RestartPolicy),
			Hint: []string{"have nobody start it, then reboot the CVM: docker update --restart=no " + c.ShortID()}}
	}
	return nil
}

// ofThisBoot tells whether a container may have been created in this boot.
func (r *run) ofThisBoot(c docker.Container) bool { return c.Labels[compose.BootLabel] == r.BootID }

// holdTries bounds how often an image is loaded again that is gone before a container could hold it.
const holdTries = 5

// hold sees to it that the volumes and the image are in use while the workload's container is replaced: dstack prunes both at
// boot, and the data volume holds keys. What holds them stays until release, and so beyond a run that fails in between.
func (r *run) hold(ctx context.Context) error {
	for try := 1; ; try++ {
		id, err := r.holder(ctx)
		if err == nil {
			err = r.stillThere(ctx)
		}
		if err == nil {
			r.release(ctx, id)
			return nil
		}
		if !inspect.NotFound(err) && !errors.Is(err, inspect.ErrNoImage) || try == holdTries {
			return err
		}
		r.Log.Warn("the image is gone, loading it once more", "error", err)
		r.id = docker.ImageID{}
		if _, err := r.load(ctx); err != nil && !errors.Is(err, errSkipped) {
			return err
		}
	}
}

// stillThere looks whether the engine has the image that a container was just made of. A prune that had already found it unused
// takes it all the same.
func (r *run) stillThere(ctx context.Context) error {
	info, err := r.engine.Info(ctx)
	if err != nil {
		return err
	}
	if _, err = r.engine.Prove(ctx, info, r.image); errors.Is(err, inspect.ErrNoImage) {
		return &exit.Error{Code: exit.Engine, Err: err, Hint: []string{"somebody removes images at this moment; try again"}}
	}
	return err
}

// holder makes a container of the proved image that is never started and mounts the volumes, which are made with it where they are
// missing.
func (r *run) holder(ctx context.Context) (id string, err error) {
	return r.engine.Hold(ctx, holderPrefix+now().Format("20060102150405.000"), r.id, []string{compose.SharedVolume, compose.DataVolume})
}

// release removes the holders but one, those of earlier runs included.
func (r *run) release(ctx context.Context, but string) {
	containers, err := r.engine.Containers(ctx)
	for _, c := range containers {
		if strings.HasPrefix(c.Name, holderPrefix) && c.ID != but && c.NeverStarted() {
			err = errors.Join(err, r.engine.Remove(ctx, c.ID))
		}
	}
	if err != nil {
		r.Log.Warn("a container that only holds volumes can't be removed; it does no harm", "error", err)
	}
}

// clear removes what stands in the way of the workload's container, after saving the end of its log. Where this boot's
// event stands already, and outside a CVM, an unchanged container stays; otherwise none does: a container keeps its writable
// layer, and one that ran before may hold another program than its image.
func (r *run) clear(ctx context.Context) error {
	containers, _, err := r.others(ctx)
	if err != nil {
		return err
	}
	for _, c := range containers {
		if !compose.OfWorkload(c) || strings.HasPrefix(c.Name, holderPrefix) && c.NeverStarted() {
			continue
		}
		reusable := (!r.tee() || r.present && r.ofThisBoot(c)) && c.Labels[compose.ProjectLabel] == compose.Name && r.check(c) == nil
		if reusable {
			continue
		}
		if c.Live() {
			if err := r.end(ctx, c); err != nil {
				return err
			}
		}
		if c.Name == compose.Name {
			r.saveLog(ctx, c)
		}
		r.Log.Info("replacing a container; its volumes stay", "container", c.Name, "id", c.ShortID())
		if err := r.engine.Remove(ctx, c.ID); err != nil {
			return err
		}
	}
	return nil
}

// saveLog keeps the end of a container's log. That it can't be kept must not keep the node down.
func (r *run) saveLog(ctx context.Context, c docker.Container) {
	log, err := r.engine.Logs(ctx, c.ID, lastLines, lastBytes)
	if err == nil && len(log) > 0 {
		err = r.own.Write("previous.log", log)
	}
	if err != nil {
		r.Log.Warn("the replaced container's log can't be kept", "error", err)
	}
}
