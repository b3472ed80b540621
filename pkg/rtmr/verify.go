package rtmr

import (
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

// Reason names the rule that a log breaks. Where the NEAR verifier has a name for it, that is used.
type Reason string

const (
	MissingEvent   Reason = "MissingEvent"   // no image event
	DuplicateEvent Reason = "DuplicateEvent" // more than one, even of the same digest
	AmbiguousEvent Reason = "AmbiguousEvent" // an event whose measured bytes can be read as an image event
	OtherDigest    Reason = "OtherDigest"    // the one image event is for another digest than the expected one
	WrongPayload   Reason = "WrongPayload"   // the image event's payload isn't 32 bytes
	WrongType      Reason = "WrongType"      // an RTMR3 entry isn't of dstack's event type
	WrongVersion   Reason = "WrongVersion"   // a digest of version 2, which the NEAR verifier doesn't know
	WrongDigest    Reason = "WrongDigest"    // a logged digest isn't the digest of its entry
	WrongRegister  Reason = "WrongRegister"  // the entries don't replay to the reported or quoted register
	WrongQuote     Reason = "WrongQuote"     // the reported register isn't the quoted one
	NoEvents       Reason = "NoEvents"       // an empty log; every boot writes some
	NoRegister     Reason = "NoRegister"     // no register to hold the log against
)

// Rejection says why a log isn't accepted.
type Rejection struct {
	Reason    Reason
	Entry     string // the entry that it is about, for people; empty: the whole log
	Got, Want string // what was compared; empty where nothing was
}

func (e *Rejection) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "event log: %s", e.Reason)
	if e.Entry != "" {
		fmt.Fprintf(&b, ": %s", e.Entry)
	}
	if e.Got != "" {
		fmt.Fprintf(&b, ": got %s", e.Got)
	}
	if e.Want != "" {
		fmt.Fprintf(&b, ", want %s", e.Want)
	}
	return b.String()
}

// ExitCode is Measurement.
func (e *Rejection) ExitCode() exit.Code { return exit.Measurement }

// Hints says what helps where something does.
func (e *Rejection) Hints() []string {
	switch e.Reason {
	case MissingEvent:
		return []string{"no launcher has measured an image in this boot"}
	case DuplicateEvent, AmbiguousEvent, OtherDigest, WrongPayload:
		return []string{"reboot the CVM: what is in RTMR3 stays there until then"}
	case WrongRegister:
		return []string{"reboot the CVM: an event was logged but not measured, and no quote of this boot can be verified"}
	case WrongVersion:
		return []string{"the app-compose asks for event log version 2, which the NEAR verifier doesn't accept"}
	}
	return nil
}

// Replays returns nil if a verifier would believe the log, whatever image it names and even if it
// names none yet: every entry is dstack's, with the digest that version 1 computes, and all of them
// together give the reported and the quoted register. Registers that the document didn't hold are
// not compared.
func (l Log) Replays() error {
	if len(l.events) == 0 {
		return &Rejection{Reason: NoEvents}
	}
	if l.reported != nil && l.quoted != nil && *l.reported != *l.quoted {
		return &Rejection{Reason: WrongQuote, Got: l.quoted.String(), Want: l.reported.String()}
	}
	for i, e := range l.events {
		entry := fmt.Sprintf("RTMR3 event %d %.100q", i, e.Name)
		if e.Type != EventType {
			return &Rejection{WrongType, entry, fmt.Sprintf("%#x", e.Type), fmt.Sprintf("%#x", EventType)}
		}
		if e.Version != 1 {
			return &Rejection{WrongVersion, entry, fmt.Sprint(e.Version), "1"}
		}
		if got, want := e.Measured(), DigestV1(e.Name, e.Payload); got != want {
			return &Rejection{WrongDigest, entry, got.String(), want.String()}
		}
	}
	for _, r := range []*Register{l.reported, l.quoted} {
		if replayed := l.Replay(); r != nil && *r != replayed {
			return &Rejection{Reason: WrongRegister, Got: r.String(), Want: replayed.String()}
		}
	}
	return nil
}

// Accepted returns the image that a NEAR verifier would take the log to prove, or the Rejection.
func (l Log) Accepted() (v1.Hash, error) {
	if err := l.Replays(); err != nil {
		return v1.Hash{}, err
	}
	images := l.Images()
	for _, e := range images {
		if ambiguous(e) {
			return v1.Hash{}, &Rejection{Reason: AmbiguousEvent, Entry: fmt.Sprintf("%.100q", e.Name)}
		}
	}
	switch len(images) {
	case 0:
		return v1.Hash{}, &Rejection{Reason: MissingEvent, Entry: EventName}
	case 1:
	default:
		return v1.Hash{}, &Rejection{DuplicateEvent, EventName, fmt.Sprint(len(images)), "1"}
	}
	image, ok := images[0].Image()
	if !ok {
		got := fmt.Sprintf("%d bytes", len(images[0].Payload))
		return v1.Hash{}, &Rejection{WrongPayload, EventName, got, "32"}
	}
	return image, nil
}

// Measured reports whether image is measured already. It is an error if it could not be, or not be
// any more: the log isn't to be believed, there is no register to hold it against, or it names
// another image, or too many.
func (l Log) Measured(image v1.Hash) (bool, error) {
	if _, err := digest.Parse(image.String()); err != nil {
		return false, err
	}
	if l.reported == nil && l.quoted == nil {
		return false, &Rejection{Reason: NoRegister}
	}
	if err := l.Replays(); err != nil {
		return false, err
	}
	if len(l.Images()) == 0 {
		return false, nil
	}
	got, err := l.Accepted()
	if err == nil && got != image {
		err = &Rejection{Reason: OtherDigest, Got: got.String(), Want: image.String()}
	}
	return err == nil, err
}

// Images returns the image events. An event counts if its measured bytes begin as an image event's do: with version 1 of
// the digest, "mpc-image-digest:x" with payload y is in the register what "mpc-image-digest" with payload x:y is, and
// whoever presents the log chooses.
func (l Log) Images() []Event {
	var images []Event
	for _, e := range l.events {
		if e.Name == EventName || ambiguous(e) {
			images = append(images, e)
		}
	}
	return images
}

func ambiguous(e Event) bool { return strings.HasPrefix(e.Name, EventName+":") }
