package launch

import (
	"context"
	"errors"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/state"
)

// alone is what the probe found, once no old workload runs any more.
type alone struct {
	standing
}

// endImpostors ends what the engine started as the workload before anybody measured it. Its new name
// comes first: a launcher that is killed after it leaves the evidence, and one that is killed before
// it leaves the container as it was.
//
// It asks the engine for nothing but the containers, one by one: whatever else is broken, even another
// of them, is told once those were ended that can be.
func (m *machine) endImpostors(ctx context.Context) error {
	if !m.Settings.TEE() {
		return nil
	}
	_, broken := m.info(ctx)
	if !m.Settings.Supervised() {
		return broken
	}
	told := map[string]bool{} // to end, by ID
	var errs []error          // of those that couldn't be
	for left := unseenTries; ; {
		facts := m.facts()
		var unseen error
		facts.Containers, unseen = state.Containers(ctx, m.engine.Engine, state.SelfID(m.Proc))
		if broken != nil && len(facts.Containers) == 0 { // there was no asking it, which is told once
			return errors.Join(append(errs, broken)...)
		}
		late := false // one shows only now, and is ended before anything is refused
		var unended []error
		for _, c := range facts.Impostors() {
			if told[c.ID] {
				unended = append(unended, admission.Unended(c))
				continue
			}
			late, told[c.ID] = true, true
			m.Log.Warn("ending a workload that nobody has measured in this boot",
				"container", c.Name, "id", c.ShortID(), "status", c.Status, "policy", c.RestartPolicy)
			errs = append(errs, m.endImpostor(context.WithoutCancel(ctx), c.Container, facts.ImpostorName(c)))
		}
		if late {
			continue
		}
		// What the engine can't tell of now may be one, too.
		if left--; unseen != nil && left > 0 && m.Sleep(ctx, endPause) == nil {
			continue
		}
		if err := errors.Join(errs...); err != nil {
			return errors.Join(err, broken, unseen)
		}
		return errors.Join(append(unended, broken, unseen)...)
	}
}

// endImpostor ends one, under its new name. Half ended is running, so that no signal interrupts it, and
// one that can't get the name is ended all the same, and then asked for it again.
func (m *machine) endImpostor(ctx context.Context, c docker.Container, name string) error {
	unnamed := m.rename(ctx, c, name)
	err := m.end(ctx, c)
	if unnamed != nil {
		unnamed = m.rename(ctx, c, name)
	}
	return errors.Join(unnamed, err)
}

// rename gives a container a name, unless it has it or is gone.
func (m *machine) rename(ctx context.Context, c docker.Container, name string) error {
	if c.Name == name {
		return nil
	}
	err := m.engine.Rename(ctx, c.ID, name)
	if err == nil || inspect.NotFound(err) {
		return nil
	}
	// Another launcher may be doing the same.
	if now, again := m.engine.Container(ctx, c.ID); again == nil && now.Name == name {
		return nil
	}
	return err
}

// gate sees to it, early, that no old workload runs beside what is measured later.
func (m *machine) gate(found standing) step[alone] {
	return func(ctx context.Context) (alone, string, error) {
		if !m.Settings.TEE() {
			return alone{found}, "nothing to guard outside a CVM", errSkipped
		}
		if found.measured {
			return alone{found}, "the image is already measured", errSkipped
		}
		// From here on an image event that no intent of ours preceded is something else's, for a
		// later run too. Once more when the old workload has ended: until then it can remove what we
		// write. It must end even if we can't write.
		begun := m.begin()
		if err := m.quiet(ctx, found); err != nil {
			return alone{}, "", err
		}
		if begun == nil {
			begun = m.begin()
		}
		return alone{found}, "no old workload runs", begun
	}
}

// begin records that no image is measured yet. What an earlier attempt wrote and still stands isn't
// written again: a full disk may be what it waits for.
func (m *machine) begin() error {
	if m.report.Attempt > 1 && m.facts().Record == (admission.Record{ID: m.BootID}) {
		return nil
	}
	return m.record().begun()
}

// quiet stops what runs of the workload, and refuses where something else could emit an event in our
// name, or may be about to.
func (m *machine) quiet(ctx context.Context, found standing) error {
	facts := m.facts()
	facts.Log = found.log
	facts, err := m.around(ctx, facts)
	if err != nil {
		return err
	}
	for _, c := range admission.Decide(facts).Old {
		m.Log.Warn("stopping a workload that isn't measured in this boot", "container", c.Name, "id", c.ShortID(), "status", c.Status)
		if err := m.end(ctx, c.Container); err != nil {
			return err
		}
	}
	if facts, err = m.around(ctx, facts); err != nil {
		return err
	}
	verdict := admission.Decide(facts)
	for _, c := range verdict.Old {
		return admission.Unstopped(c)
	}
	return verdict.Err()
}

// end ends a container of the workload. That it is gone is as good.
//
// An engine that is about to start it again may refuse a new policy (20.10 answers 500), and what it
// starts then runs under the old one. So both are asked for again.
func (m *machine) end(ctx context.Context, c docker.Container) error {
	for left := endTries; ; left-- {
		err := m.endOnce(ctx, c)
		var answer *docker.Error
		if !errors.As(err, &answer) || answer.Status < 500 || left == 0 {
			return err
		}
		m.Log.Warn("the engine can't end a container, asking again",
			"container", c.Name, "id", c.ShortID(), "error", err)
		if m.Sleep(ctx, endPause) != nil {
			return err
		}
	}
}

func (m *machine) endOnce(ctx context.Context, c docker.Container) error {
	// The policy first: between a stop and a late change of it the engine may start it again. One that
	// takes no policy while it runs is stopped all the same.
	forbidden := m.engine.ForbidRestart(ctx, c.ID)
	stopped := m.engine.Stop(ctx, c.ID, stopGrace)
	if forbidden != nil && !inspect.NotFound(forbidden) {
		forbidden = m.engine.ForbidRestart(ctx, c.ID)
	}
	var errs []error
	for _, err := range []error{forbidden, stopped} {
		if err != nil && !inspect.NotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
