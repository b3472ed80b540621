package rtmr

import (
	"fmt"
	"strings"

	"tee-launcher/pkg/digest"
)

// Replays returns nil if a verifier would believe the log, whatever image it names and even if it
// names none yet: every entry is dstack's, with the digest that version 1 computes, and all of them
// together give the reported and the quoted register. Registers that the document didn't hold are
// not compared.
func (l Log) Replays() error {
	if len(l.events) == 0 {
		return &Rejection{Reason: NoEvents}
	}
	if l.reported != nil && l.quoted != nil && *l.reported != *l.quoted {
		return &Rejection{WrongQuote, "", l.quoted.String(), l.reported.String()}
	}
	for i, e := range l.events {
		entry := fmt.Sprintf("RTMR3 event %d %.100q", i, e.Name)
		if e.Type != EventType {
			got := fmt.Sprintf("%#x", e.Type)
			return &Rejection{WrongType, entry, got, fmt.Sprintf("%#x", EventType)}
		}
		got, want := e.Measured(), DigestV1(e.Name, e.Payload)
		switch {
		case got == want:
		case got == DigestV2(e.Name, e.Payload):
			return &Rejection{WrongVersion, entry, "2", "1"}
		default:
			return &Rejection{WrongDigest, entry, got.String(), want.String()}
		}
	}
	for _, r := range []*Register{l.reported, l.quoted} {
		if replayed := l.Replay(); r != nil && *r != replayed {
			return &Rejection{WrongRegister, "", r.String(), replayed.String()}
		}
	}
	return nil
}

// Accepted returns the image that a NEAR verifier would take the log to prove, or the Rejection.
func (l Log) Accepted() (digest.Digest, error) {
	if err := l.Replays(); err != nil {
		return digest.Digest{}, err
	}
	image, err := l.image()
	if len(l.Images()) > 0 && err != nil {
		return digest.Digest{}, err
	}
	// That there is no image yet is told last: everything else is worse.
	if objections := l.Objections(); len(objections) > 0 {
		return digest.Digest{}, objections[0]
	}
	return image, err
}

// Measured reports whether image is measured already. It is an error if it could not be, or not be
// any more: the log isn't to be believed, there is no register to hold it against, or it names
// another image, or too many.
func (l Log) Measured(image digest.Digest) (bool, error) {
	if image.IsZero() {
		return false, digest.ErrNone
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
	got, err := l.image()
	if err == nil && got != image {
		err = &Rejection{OtherDigest, "", got.String(), image.String()}
	}
	return err == nil, err
}

// single returns the one event of that name.
func (l Log) single(name string) (Event, error) {
	var found []Event
	for _, e := range l.events {
		if e.Name == name {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return Event{}, &Rejection{Reason: MissingEvent, Entry: name}
	case 1:
		return found[0], nil
	}
	return Event{}, &Rejection{DuplicateEvent, name, fmt.Sprint(len(found)), "1"}
}

// image returns what the one image event says.
func (l Log) image() (digest.Digest, error) {
	for _, e := range l.Images() {
		if ambiguous(e) {
			entry := fmt.Sprintf("%.100q", e.Name)
			return digest.Digest{}, &Rejection{Reason: AmbiguousEvent, Entry: entry}
		}
	}
	e, err := l.single(EventName)
	if err != nil {
		return digest.Digest{}, err
	}
	image, ok := e.Image()
	if !ok {
		got := fmt.Sprintf("%d bytes", len(e.Payload))
		return digest.Digest{}, &Rejection{WrongPayload, EventName, got, "32"}
	}
	return image, nil
}

// Images returns the image events. An event counts if its measured bytes begin as an image event's
// do: with version 1 of the digest, "mpc-image-digest:x" with payload y is in the register what
// "mpc-image-digest" with payload x:y is, and whoever presents the log chooses.
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
