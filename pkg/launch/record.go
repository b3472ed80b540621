package launch

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// recorder writes down that a run of this boot came as far as the gate, what it is about to measure and that it did. The workload
// can write there too, so nothing is emitted or started because of the record: it explains a state to people, and it can refuse.
type recorder struct {
	own    state.Dir
	bootID string
}

func (r *run) record() recorder { return recorder{own: r.own, bootID: r.BootID} }

// begun says that a run of this boot found no image event and hasn't come to its intent.
func (w recorder) begun() error { return w.write(state.Boot{ID: w.bootID}) }

// Intent says that the digest is about to be measured.
func (w recorder) Intent(digest v1.Hash) error {
	return w.write(state.Boot{ID: w.bootID, Digest: digest, Intent: now()})
}

// Done says that the measurement was read back.
func (w recorder) Done(m rtmr.Measurement) error { return w.done(m.Digest()) }

func (w recorder) done(digest v1.Hash) error {
	return w.write(state.Boot{ID: w.bootID, Digest: digest, Intent: now(), Done: true})
}

func (w recorder) write(b state.Boot) error {
	if err := w.own.WriteBoot(b); err != nil {
		return &exit.Error{Code: exit.Config, Err: fmt.Errorf("record of the measurement: %w", err)}
	}
	return nil
}

// recorded tells whether our record says that this boot's measurement of the digest was ours.
func (r *run) recorded(digest v1.Hash) bool {
	got, ok := r.own.Boot(r.BootID)
	return ok && got.Measured(digest)
}

// intended returns the digest that a run of this boot was about to measure when it came to its end.
func (r *run) intended() (v1.Hash, bool) {
	got, ok := r.own.Boot(r.BootID)
	return got.Digest, ok && got.Unfinished()
}

// ours refuses an image event that no run of this boot can have made: the record knows a run, but none that was about to
// measure this. Without a record of this boot nothing is known.
func (r *run) ours(digest v1.Hash) error {
	got, ok := r.own.Boot(r.BootID)
	if !ok || got.Explains(digest) {
		return nil
	}
	return notOurs(digest)
}

func notOurs(digest v1.Hash) error {
	return &exit.Error{Code: exit.Measurement, Err: fmt.Errorf("%s was measured in this boot, but not by a launcher", digest),
		Hint: []string{"reboot the CVM: whoever measured it may have passed for that image"}}
}

// unfinished expects the log as it was just read. Where a run of this boot came to its end between its intent and the reading
// back, its emit may still be under way, and the log is read until it arrives. That it doesn't is no proof that it never will, so
// nothing is emitted in this boot any more.
func (r *run) unfinished(ctx context.Context, log rtmr.Log) (rtmr.Log, error) {
	digest, ok := r.intended()
	if !ok || len(log.Images()) > 0 && log.Replays() == nil {
		return log, nil
	}
	r.Log.Warn("an earlier run of this boot may be measuring still, reading the log until that shows", "digest", digest)
	log, err := r.agent.Await(ctx)
	if err != nil {
		return log, err
	}
	if len(log.Images()) == 0 {
		return log, underWay(digest)
	}
	return log, nil
}

// underWay refuses to emit where somebody else's emit may still be under way.
func underWay(digest v1.Hash) error {
	return &exit.Error{Code: exit.Measurement,
		Err:  fmt.Errorf("an earlier run of this boot was about to measure %s, and the log doesn't show it", digest),
		Hint: []string{"reboot the CVM: if that is still under way, a second one would make two, which no verifier accepts"}}
}

// conclude completes the record of a run that was killed before it could: the log shows that its intent became true.
func (r *run) conclude(digest v1.Hash) {
	if _, ok := r.intended(); !ok {
		return
	}
	if err := r.record().done(digest); err != nil {
		r.Log.Warn("the record of the measurement can't be completed; the log is what counts", "error", err)
	}
}

// forget takes back the intent to a measurement that certainly didn't happen.
func (r *run) forget() {
	if err := r.record().begun(); err != nil {
		r.Log.Warn("the record of a measurement that didn't happen stays; it will refuse further runs of this boot", "error", err)
	}
}
