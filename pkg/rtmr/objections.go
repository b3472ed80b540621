package rtmr

import (
	"bytes"
	"crypto/sha256"
	"fmt"
)

// The events of dstack's own that the verifier asks for.
const (
	composeHashEvent = "compose-hash"
	keyProviderEvent = "key-provider"
)

// Objections returns for what else a NEAR verifier refuses the log: what doesn't concern the image
// or the replay of RTMR3, such as the app-compose.
func (l Log) Objections() []error {
	var objections []error
	object := func(reason Reason, entry string) {
		objections = append(objections, &Rejection{Reason: reason, Entry: entry})
	}
	for _, fault := range l.faults {
		object(WrongForm, fault)
	}
	for _, name := range []string{composeHashEvent, keyProviderEvent} {
		if _, err := l.single(name); err != nil {
			objections = append(objections, err)
		}
	}
	if l.compose == nil {
		return objections // the document doesn't hold it
	}
	sum := sha256.Sum256([]byte(l.compose.document))
	compare := func(what string, got []byte) {
		if !bytes.Equal(got, sum[:]) {
			objections = append(objections, &Rejection{
				WrongCompose, what, fmt.Sprintf("%.80x", got), fmt.Sprintf("%x", sum),
			})
		}
	}
	if measured, err := l.single(composeHashEvent); err == nil {
		compare(composeHashEvent, measured.Payload)
	}
	if l.compose.hash != nil {
		compare("compose_hash", l.compose.hash)
	}
	faults, err := JudgeAppCompose([]byte(l.compose.document))
	if err != nil {
		object(AppCompose, err.Error())
	}
	for _, fault := range faults {
		object(AppCompose, fault.Message)
	}
	return objections
}
