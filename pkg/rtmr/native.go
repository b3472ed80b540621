package rtmr

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"tee-launcher/pkg/digest"
)

// Native measures where the agent can't: it extends the kernel's register and appends the line that
// dstack's agent reads for every quote, under dstack's own lock. That is what the agent's emit comes
// to, so a verifier sees no difference.
//
// An extension without its line, or a line without its extension, spoils every quote of the boot. So
// nothing is extended unless register, log and agent agree, and whoever dies between the two leaves
// a register that is ahead of the log by an event which only its hash can prove.
type Native struct {
	*Agent // asked what verifiers will see
	Mounts
}

// Settle completes the line of an event that is in the register already. Whoever had the lock is
// dead or done, so that whatever isn't in the register then was never extended.
func (n *Native) Settle(ctx context.Context, left Earlier) (log Log, over bool, err error) {
	held, seen, err := n.hold(ctx)
	if err != nil {
		return Log{}, false, err
	}
	defer held.close() // which the agent's answer needs, too: nobody is half done meanwhile
	_, rest, err := seen.judge(left.Images)
	if err == nil && len(rest) > 0 {
		n.logger().Warn("completing the line of an event that an earlier run put into the register")
		if err = held.complete(rest); err == nil {
			seen, err = n.look()
		}
	}
	if err == nil {
		log, err = n.agrees(ctx, seen)
	}
	return log, err == nil, err
}

// emitOnce extends once, and again only where the kernel refused to and a new quote shows that nothing
// happened: after a write that failed, the register's file may show what it held before.
func (n *Native) emitOnce(ctx context.Context, image digest.Digest) (Measurement, error) {
	var refused error
	emits, outcome := 0, NotEmitted
	failed := func(err error) (Measurement, error) {
		return Measurement{}, &MeasureError{image, outcome, emits, follows(refused, err)}
	}
	held, seen, err := n.hold(ctx)
	if err != nil {
		return failed(err)
	}
	defer held.close()
	event, line := DigestV1(EventName, image[:]), logLine(image)
	for {
		log, err := n.agrees(ctx, seen)
		present := false
		if err == nil {
			present, err = log.Measured(image)
		}
		if err == nil && !present {
			err = held.reserve(len(line))
		}
		switch {
		case err != nil:
			return failed(err)
		case present: // where nothing was extended, by somebody who had the lock before
			return Measurement{image: image, rtmr3: seen.register, already: emits == 0}, nil
		case emits > 0 && refused == nil: // what was done is never done again
			return failed(errUnseen)
		case emits == maxEmits:
			outcome = NotEmitted
			return failed(errUnseen)
		}
		emits, outcome = emits+1, Unclear
		n.logger().Info("emitting", "event", EventName, "digest", image.String(), "emit", emits)
		refused = n.extend(event)
		n.at("reading back")
		now, err := n.register()
		switch want := Extend(seen.register, event); {
		case err != nil:
		case now == want:
			refused, err = nil, held.complete(line)
		case now != seen.register:
			outcome, err = Poisoned, &Rejection{WrongRegister, "", now.String(), want.String()}
		}
		if err == nil {
			seen, err = n.look()
		}
		if err != nil {
			return failed(err)
		}
	}
}

// agrees returns the agent's log, which is what verifiers will see, if it comes with the register that
// the kernel shows and the log here replays to.
func (n *Native) agrees(ctx context.Context, s sight) (Log, error) {
	n.at("comparing")
	if _, _, err := s.judge(nil); err != nil {
		return Log{}, err
	}
	log, err := n.Log(ctx)
	if quoted, _ := log.Reported(); err == nil && quoted != s.register {
		entry := "the agent quotes another register than the kernel's"
		err = &Rejection{WrongRegister, entry, quoted.String(), s.register.String()}
	}
	return log, err
}

// judge returns the log, if it replays to the register. If the register is ahead by exactly one
// event of one of these images, the log has that, and rest is what its line still lacks: the hash
// proves which image it is.
func (s sight) judge(images []digest.Digest) (log Log, rest []byte, err error) {
	log = Log{events: s.events, reported: &s.register}
	wrong := log.Replays()
	if wrong == nil && len(s.tail) == 0 {
		return log, nil, nil
	}
	for _, image := range images {
		line := logLine(image)
		event := Event{Type: EventType, Name: EventName, Payload: image[:], Version: 1}
		ahead := Log{events: append(slices.Clip(s.events), event), reported: &s.register}
		if len(log.Images()) == 0 && bytes.HasPrefix(line, s.tail) && ahead.Replays() == nil {
			return ahead, line[len(s.tail):], nil
		}
	}
	if len(s.tail) > 0 {
		wrong = &NativeError{Unreadable, fmt.Errorf("half a line: %.100q", s.tail)}
	}
	return Log{}, nil, wrong
}
