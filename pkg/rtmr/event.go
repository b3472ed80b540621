// Package rtmr knows what is measured into RTMR3 and records the image there: event digests, replay of an event log, the
// NEAR verifier's rules, the guest agent's client, and the emit that happens exactly once.
//
// It guarantees that an image event is emitted only where a log was read, replays to its register and holds no image
// event yet; that no second emit follows a first one that may still happen; and that a Measurement exists only where
// the log was read back and a verifier would accept it for that digest. Log, Register and Event and all that is computed
// from them are pure functions of their input.
//
// It does not check a quote's signature, and it believes the agent's log: the agent and the register are trusted, the
// network, the shared volume and every file are not. It can't tell who emitted an event.
package rtmr

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"

	"tee-launcher/pkg/digest"
)

const (
	// EventType is the type of every event that dstack measures into RTMR3.
	EventType uint32 = 0x08000001
	// EventName is the event that says which image runs; its payload is the 32 raw bytes of the manifest digest.
	EventName = "mpc-image-digest"
	// ProbeName is the event name of the question whether the agent can emit; it is never measured.
	ProbeName = "launcher-probe"
)

// Register is the value of a measurement register, or a digest that is extended into one: a SHA-384.
type Register [sha512.Size384]byte

func (r Register) String() string { return hex.EncodeToString(r[:]) }

// IsZero reports whether r is the value that a register has at boot.
func (r Register) IsZero() bool { return r == Register{} }

// Extend returns the value of a register after digest was extended into it.
func Extend(r, digest Register) Register {
	return sha512.Sum384(append(r[:], digest[:]...))
}

// DigestV1 is the digest of an event in every dstack release, and the only one that the NEAR verifier knows.
//
// Nothing separates name from payload but a colon that both may hold, so two different events can have one digest.
func DigestV1(name string, payload []byte) Register {
	b := binary.LittleEndian.AppendUint32(nil, EventType)
	b = append(b, ':')
	b = append(b, name...)
	b = append(b, ':')
	b = append(b, payload...)
	return sha512.Sum384(b)
}

// Event is one RTMR3 entry of an event log.
type Event struct {
	Type    uint32
	Name    string
	Payload []byte
	Digest  *Register // as the log has it; nil where the log came without (GetQuote strips it)
	Version int       // of the digest: 1 or 2
}

// Measured returns the digest that the entry stands for in a replay: the logged one, or the recomputed one where the log
// came without. That the logged one is right is the verifier's question.
func (e Event) Measured() Register {
	switch {
	case e.Digest != nil:
		return *e.Digest
	case e.Version == 2:
		return DigestV2(e.Name, e.Payload)
	default:
		return DigestV1(e.Name, e.Payload)
	}
}

// Image returns the image digest that the event records, and whether it is an image event with a payload of that form.
func (e Event) Image() (digest.Digest, bool) {
	if e.Name != EventName || len(e.Payload) != len(digest.Digest{}) {
		return digest.Digest{}, false
	}
	return digest.Digest(e.Payload), true
}
