package rtmr

import (
	"fmt"
	"strings"

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
	WrongForm      Reason = "WrongForm"      // the verifier's own reader refuses the document
	WrongCompose   Reason = "WrongCompose"   // the measured app-compose isn't the document's
	AppCompose     Reason = "AppCompose"     // the app-compose says something that isn't allowed
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

const (
	rebootClears = "reboot the CVM: what is in RTMR3 stays there until then"
	ourRule      = "this rule is the launcher's own: the NEAR verifier sees one of two meanings"
)

// Hints says what helps where something does.
func (e *Rejection) Hints() []string {
	switch e.Reason {
	case MissingEvent:
		return []string{"no launcher has measured an image in this boot"}
	case AmbiguousEvent:
		return []string{rebootClears, ourRule}
	case OtherDigest:
		return []string{"another image is measured in this boot: " + rebootClears}
	case DuplicateEvent, WrongPayload:
		return []string{rebootClears}
	case AppCompose:
		return []string{"correct the app-compose; it needs a new CVM, because its hash is measured"}
	case WrongRegister:
		return []string{"reboot the CVM: an event was logged or measured without the other, and no quote of this boot can be verified"}
	case WrongVersion:
		return []string{"the app-compose asks for event log version 2, which the NEAR verifier doesn't accept"}
	}
	return nil
}
