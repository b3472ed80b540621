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

// State is what a log says about one image digest.
type State string

const (
	None    State = "none"    // no image is measured
	This    State = "this"    // exactly this image is measured
	Another State = "another" // exactly one image event, and it doesn't say this
	Several State = "several" // more than one image event
)

// State returns what the log says about image. It is an error, and says nothing, if a verifier would not believe the log
// whatever image it names, or if there is no register to hold it against.
func (l Log) State(image v1.Hash) (State, error) {
	if _, err := digest.Parse(image.String()); err != nil {
		return "", err
	}
	if l.reported == nil && l.quoted == nil {
		return "", &Rejection{Reason: NoRegister}
	}
	if err := l.Verify(); err != nil {
		return "", err
	}
	images := l.Images()
	switch {
	case len(images) == 0:
		return None, nil
	case len(images) > 1:
		return Several, nil
	}
	if got, ok := images[0].Image(); !ok || got != image {
		return Another, nil
	}
	return This, nil
}

// Admit reports whether image is measured already. It is an error if it could not be, or not be any more: the log isn't to
// be believed, or it names another image, or too many.
func (l Log) Admit(image v1.Hash) (present bool, err error) {
	state, err := l.State(image)
	switch {
	case err != nil:
		return false, err
	case state == None:
		return false, nil
	}
	return true, l.Expect(image)
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

// Expect is Check, and that the image is this one.
func (l Log) Expect(image v1.Hash) error {
	if err := l.Check(); err != nil {
		return err
	}
	if got, _ := l.Images()[0].Image(); got != image {
		return &Rejection{Reason: OtherDigest, Got: got.String(), Want: image.String()}
	}
	return nil
}

// Check applies the NEAR verifier's rules for RTMR3 and its image event: nil, or the Rejection. Registers that the document
// didn't hold are not compared.
func (l Log) Check() error {
	if err := l.Verify(); err != nil {
		return err
	}
	images := l.Images()
	for _, e := range images {
		if ambiguous(e) {
			return &Rejection{Reason: AmbiguousEvent, Entry: fmt.Sprintf("%.100q", e.Name)}
		}
	}
	switch len(images) {
	case 0:
		return &Rejection{Reason: MissingEvent, Entry: EventName}
	case 1:
	default:
		return &Rejection{Reason: DuplicateEvent, Entry: EventName, Got: fmt.Sprint(len(images)), Want: "1"}
	}
	if _, ok := images[0].Image(); !ok {
		return &Rejection{Reason: WrongPayload, Entry: EventName, Got: fmt.Sprintf("%d bytes", len(images[0].Payload)), Want: "32"}
	}
	return nil
}

// Verify applies those of the verifier's rules that hold before an image is measured as well: every entry is dstack's, with
// the digest that version 1 computes, and all of them together give the reported and the quoted register.
func (l Log) Verify() error {
	if len(l.events) == 0 {
		return &Rejection{Reason: NoEvents}
	}
	if l.reported != nil && l.quoted != nil && *l.reported != *l.quoted {
		return &Rejection{Reason: WrongQuote, Got: l.quoted.String(), Want: l.reported.String()}
	}
	for i, e := range l.events {
		entry := fmt.Sprintf("RTMR3 event %d %.100q", i, e.Name)
		if e.Type != EventType {
			return &Rejection{Reason: WrongType, Entry: entry, Got: fmt.Sprintf("%#x", e.Type), Want: fmt.Sprintf("%#x", EventType)}
		}
		if e.Version != 1 {
			return &Rejection{Reason: WrongVersion, Entry: entry, Got: fmt.Sprint(e.Version), Want: "1"}
		}
		if got, want := e.Measured(), DigestV1(e.Name, e.Payload); got != want {
			return &Rejection{Reason: WrongDigest, Entry: entry, Got: got.String(), Want: want.String()}
		}
	}
	for _, r := range []*Register{l.reported, l.quoted} {
		if replayed := l.Replay(); r != nil && *r != replayed {
			return &Rejection{Reason: WrongRegister, Got: r.String(), Want: replayed.String()}
		}
	}
	return nil
}
