package launch

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

// measure is the commit point: the last look around, then the one effect that can't be undone.
func (m *machine) measure(found alone, chosen choice, made proved) step[measured] {
	return func(ctx context.Context) (measured, string, error) {
		switch {
		case !m.Settings.TEE():
			return measured{made}, "no measurement outside a CVM", errSkipped
		case made.running:
			return measured{made}, "already measured", errSkipped
		case !found.measured:
			if err := m.quiet(ctx, found.standing); err != nil {
				return measured{}, "", err
			}
			if _, err := m.again(ctx, made); err != nil {
				return measured{}, "", err
			}
		default: // and is started all the same, because what ran, if anything did, couldn't stay
			facts, err := m.around(ctx, m.facts())
			if err == nil {
				err = facts.Holders().Err()
			}
			if err != nil {
				return measured{}, "", err
			}
		}
		// From here on a signal waits, and explains no failure any more.
		m.committed = true
		proof, err := rtmr.Measure(ctx, m.backend, chosen.Digest, m.record())
		if err != nil {
			var failed *rtmr.MeasureError
			if errors.As(err, &failed) && failed.Outcome == rtmr.NotEmitted {
				m.forget() // nothing is under way: a further run may try again
			}
			return measured{}, "", err
		}
		if proof.AlreadyPresent() && !found.measured {
			m.forget() // what did it may have removed what we wrote
			return measured{}, "", admission.NotOurs(proof.Digest())
		}
		m.committed = false
		m.report.measured(proof.RTMR3(), proof.Digest(), proof.AlreadyPresent())
		if proof.AlreadyPresent() {
			return measured{made}, "already measured", errSkipped
		}
		return measured{made}, "RTMR3 is " + proof.RTMR3().String(), nil
	}
}

// measured is a container that may be started: its image is measured, or this is no CVM.
type measured struct {
	proved
}

// again looks at the container that was checked, and checks it once more. One that ran before may
// hold another program than its image.
func (m *machine) again(ctx context.Context, made proved) (docker.Container, error) {
	c, err := m.engine.Container(ctx, made.ID)
	if inspect.NotFound(err) {
		return c, &exit.Error{Code: exit.Workload, Err: fmt.Errorf("container %s (%s) was removed", made.Name, made.ShortID()),
			Hint: []string{"start the launcher again"}}
	}
	if err == nil {
		err = made.want.Check(c)
	}
	if err == nil && made.unused {
		err = admission.Unused(c)
	}
	return c, err
}

// recorder writes down that a run of this boot came as far as the gate, what it is about to measure
// and that it did. The workload can write there too, so nothing is emitted or started because of
// the record: it explains a state to people, and it can refuse.
type recorder struct {
	own    state.Dir
	bootID string
}

func (m *machine) record() recorder { return recorder{own: m.own, bootID: m.BootID} }

// begun says that a run of this boot found no image event and hasn't come to its intent.
func (w recorder) begun() error { return w.own.WriteRecord(admission.Record{ID: w.bootID}) }

// Intent says that the digest is about to be measured.
func (w recorder) Intent(digest digest.Digest) error {
	return w.own.WriteRecord(admission.Record{ID: w.bootID, Digest: digest, Intent: now()})
}

// Done says that the measurement was read back.
func (w recorder) Done(m rtmr.Measurement) error { return w.done(m.Digest()) }

func (w recorder) done(digest digest.Digest) error {
	return w.own.WriteRecord(admission.Record{ID: w.bootID, Digest: digest, Intent: now(), Done: true})
}

// conclude completes the record of a run that was killed before it could: the log shows that its
// intent became true.
func (m *machine) conclude(digest digest.Digest) {
	if !m.own.Record(m.BootID).Unfinished() {
		return
	}
	if err := m.record().done(digest); err != nil {
		m.Log.Warn("the record of the measurement can't be completed; the log is what counts", "error", err)
	}
}

// forget takes back the intent to a measurement that certainly didn't happen.
func (m *machine) forget() {
	if err := m.record().begun(); err != nil {
		m.Log.Warn("the record of a measurement that didn't happen can't be taken back; further runs of this boot will refuse to measure", "error", err)
	}
}
