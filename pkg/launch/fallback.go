package launch

import (
	"context"
	"errors"
	"sync"
	"time"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
)

// remindEvery is how often it is said that an older image than the newest approved one runs.
const remindEvery = time.Hour

// failed remembers what an attempt's failure says of the digest that it was for.
func (m *machine) failed(code exit.Code, err error) {
	var of approval.Decision // of none, where it ended before one was known
	if m.chosen != nil {
		of = m.chosen.Decision
	}
	var e *image.Error
	if errors.As(err, &e) {
		m.silent += e.Silent
	}
	// What counts passes by a clock that stands still while no source answers.
	m.failing = m.failing.Failed(m.Settings, of, code, answered(err), m.Now().Add(-m.silent))
	if of.Reason == approval.Newest {
		m.newest = err
	}
	m.chosen = nil
}

// answered reports whether a pull ended with something that a source said. Only a source that isn't
// available may have said nothing.
func answered(err error) bool {
	var e *image.Error
	return errors.As(err, &e) && (e.Kind != image.Unavailable || e.Answered)
}

// remind says at once and every hour that an older image runs, where that is so, until it is told
// that this is over.
func (m *machine) remind(ctx context.Context) (over func()) {
	if m.chosen.From.IsZero() {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var reminding sync.WaitGroup
	reminding.Go(func() {
		for {
			m.Log.Warn("this is not the newest approved image", "digest", m.chosen.Digest, "fallback_from", m.chosen.From,
				"because", m.newest, "hint", "push that one or mend the way to it, then reboot the CVM: until then this one stays")
			if m.Sleep(ctx, remindEvery) != nil || ctx.Err() != nil {
				return
			}
		}
	})
	return func() {
		cancel()
		reminding.Wait()
	}
}
