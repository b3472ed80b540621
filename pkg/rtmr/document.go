package rtmr

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"tee-launcher/pkg/internal/strictjson"
)

// The forms in which a log travels, each read as the types say of those who read it: near/mpc,
// crates/attestation (TcbInfo, EventLog) and node-types (StaticWebData), and dstack-sdk-types
// (InfoResponse). What replaying RTMR3 needs has to be right, or there is an error. The rest only
// decides whether a verifier would read the document at all, and is noted as a fault.

// Parse reads a tcb_info document, an answer of GetQuote or of Info, a node's /public_data, or a
// bare array of events.
func Parse(b []byte) (Log, error) {
	v, err := document(b)
	if err != nil {
		return Log{}, err
	}
	if v.IsArray() {
		var log Log
		return finish(log, log.readEvents(v, true))
	}
	members, err := v.Object("tee_participant_info", "tcb_info", "event_log", "rtmr3", "quote")
	switch {
	case err != nil:
		return Log{}, &FormatError{"event log", err}
	case members["tee_participant_info"].Present():
		return parsePublicData(members)
	case members["tcb_info"].Present():
		for _, name := range []string{"event_log", "rtmr3", "quote"} {
			if members[name].Present() {
				err := fmt.Errorf("both tcb_info and %s, want one of them", name)
				return Log{}, &FormatError{"event log", err}
			}
		}
		return parseInfo(members)
	case members["rtmr3"].Present():
		return parseTCBInfo(v, members["quote"])
	case members["quote"].Present():
		return parseQuote(members)
	}
	err = errors.New("neither rtmr3 nor quote: not tcb_info, GetQuote, Info or public_data")
	return Log{}, &FormatError{"event log", err}
}

// finish lets nothing of a log through that couldn't be read.
func finish(log Log, err error) (Log, error) {
	if err != nil {
		return Log{}, err
	}
	return log, nil
}

// document reads one document within bounds.
func document(b []byte) (strictjson.Value, error) {
	if len(b) > MaxSize {
		err := fmt.Errorf("%d bytes, at most %d are read", len(b), MaxSize)
		return strictjson.Value{}, &FormatError{"event log", err}
	}
	v, err := strictjson.Parse(b)
	if err != nil {
		return strictjson.Value{}, &FormatError{"event log", err}
	}
	return v, nil
}

// parseTCBInfo reads a tcb_info document, to which somebody may have added the quote.
func parseTCBInfo(v, quote strictjson.Value) (Log, error) {
	var log Log
	if quote.Present() {
		raw, err := hexBytes(quote, -1)
		if err != nil {
			return Log{}, &FormatError{"quote", err}
		}
		if err := log.readQuote(raw); err != nil {
			return Log{}, err
		}
	}
	return finish(log, log.readTCBInfo(v, false))
}

// parseInfo reads an answer of Info, whose tcb_info is a string that holds JSON. The node's own
// reader takes an object as well.
func parseInfo(members map[string]strictjson.Value) (Log, error) {
	v := members["tcb_info"]
	if text, err := v.Text(); err == nil {
		if text == "" {
			return Log{}, &FormatError{"info", ErrUnknown}
		}
		if v, err = strictjson.Parse([]byte(text)); err != nil {
			return Log{}, &FormatError{"tcb_info", err}
		}
	}
	var log Log
	for _, name := range []string{
		"app_id", "instance_id", "app_cert", "app_name", "device_id", "key_provider_info",
		"compose_hash",
	} {
		_, err := members[name].Text()
		log.note("info: "+name, err)
	}
	if members["os_image_hash"].Present() {
		_, err := members["os_image_hash"].Text()
		log.note("info: os_image_hash", err)
	}
	return finish(log, log.readTCBInfo(v, true))
}

// parseQuote reads an answer of GetQuote. Its log is a string that holds JSON, without the digests
// of RTMR3's entries from dstack 0.5.6 on.
func parseQuote(members map[string]strictjson.Value) (Log, error) {
	quote, err := hexBytes(members["quote"], -1)
	if err != nil {
		return Log{}, &FormatError{"quote", err}
	}
	var log Log
	if err := log.readQuote(quote); err != nil {
		return Log{}, err
	}
	entries, err := eventLog(members["event_log"])
	if err != nil {
		return Log{}, err
	}
	return finish(log, log.readEvents(entries, true))
}

// eventLog returns the array of events, which may be in a string.
func eventLog(v strictjson.Value) (strictjson.Value, error) {
	text, err := v.Text()
	if err != nil {
		return v, nil
	}
	if v, err = strictjson.Parse([]byte(text)); err != nil {
		return v, &FormatError{"event_log", err}
	}
	return v, nil
}

// parsePublicData reads what a node serves at /public_data.
func parsePublicData(members map[string]strictjson.Value) (Log, error) {
	const where = "tee_participant_info"
	if members[where].Null() {
		return Log{}, &FormatError{where, errors.New("null: the node serves no attestation")}
	}
	kinds, err := members[where].Object("Dstack")
	if err != nil {
		return Log{}, &FormatError{where, err}
	}
	if !kinds["Dstack"].Present() || len(kinds) != 1 {
		return Log{}, &FormatError{where, errors.New("not an attestation of dstack")}
	}
	attestation, err := kinds["Dstack"].Object("quote", "collateral", "tcb_info")
	if err != nil {
		return Log{}, &FormatError{"Dstack", err}
	}
	quote, err := byteArray(attestation["quote"])
	if err != nil {
		return Log{}, &FormatError{"quote", err}
	}
	var log Log
	if err := log.readQuote(quote); err != nil {
		return Log{}, err
	}
	for _, name := range []string{"near_signer_public_key", "near_p2p_public_key"} {
		log.note(name, publicKey(members[name]))
	}
	keys, err := members["near_responder_public_keys"].Array(maxResponderKeys)
	log.note("near_responder_public_keys", err)
	for _, key := range keys {
		log.note("near_responder_public_keys", publicKey(key))
	}
	log.noteCollateral(attestation["collateral"])
	return finish(log, log.readTCBInfo(attestation["tcb_info"], false))
}

const (
	// maxQuote and maxResponderKeys bound the arrays of /public_data.
	maxQuote         = 1 << 18
	maxResponderKeys = 1 << 10
	// maxFaults bounds how many faults of one document are told.
	maxFaults = 20
)

func (l *Log) noteCollateral(v strictjson.Value) {
	members, err := v.Object()
	if err != nil {
		l.note("collateral", err)
		return
	}
	for _, name := range []string{
		"pck_crl_issuer_chain", "tcb_info_issuer_chain", "tcb_info", "qe_identity_issuer_chain",
		"qe_identity",
	} {
		_, err := members[name].Text()
		l.note("collateral: "+name, err)
	}
	for _, name := range []string{
		"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature",
	} {
		_, err := byteArray(members[name])
		l.note("collateral: "+name, err)
	}
	if chain := members["pck_certificate_chain"]; chain.Present() && !chain.Null() {
		_, err := chain.Text()
		l.note("collateral: pck_certificate_chain", err)
	}
}

// note keeps why the verifier's reader refuses the document.
func (l *Log) note(where string, err error) {
	if err != nil && len(l.faults) < maxFaults {
		l.faults = append(l.faults, where+": "+err.Error())
	}
}

// readTCBInfo reads a tcb_info document. The SDK, which reads Info's, does without os_image_hash.
func (l *Log) readTCBInfo(v strictjson.Value, sdk bool) error {
	members, err := v.Object("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "os_image_hash",
		"compose_hash", "device_id", "app_compose", "event_log")
	if err != nil {
		return &FormatError{"tcb_info", err}
	}
	reported, err := register(members["rtmr3"])
	if err != nil {
		return &FormatError{"rtmr3", err}
	}
	l.reported = &reported
	for _, name := range []string{"mrtd", "rtmr0", "rtmr1", "rtmr2"} {
		_, err := register(members[name])
		l.note(name, err)
	}
	_, err = hexBytes(members["device_id"], 32)
	l.note("device_id", err)
	osImage := members["os_image_hash"]
	if text, err := osImage.Text(); err != nil || text != "" {
		if osImage.Present() || !sdk {
			_, err := hexBytes(osImage, 32)
			l.note("os_image_hash", err)
		}
	}
	hash, err := hexBytes(members["compose_hash"], 32)
	l.note("compose_hash", err)
	compose, err := members["app_compose"].Text()
	l.note("app_compose", err)
	if err == nil {
		l.compose = &appCompose{document: compose, hash: hash}
	}
	if _, err := members["event_log"].Text(); err == nil {
		l.note("event_log", errors.New("a string, want an array"))
	}
	entries, err := eventLog(members["event_log"])
	if err != nil {
		return err
	}
	return l.readEvents(entries, false)
}

func (l *Log) readQuote(quote []byte) error {
	r, err := quotedRTMR3(quote)
	if err != nil {
		return &FormatError{"quote", err}
	}
	l.quoted = &r
	return nil
}

// readEvents reads the entries of all registers. Stripped says that those of RTMR3 may come without
// their digest.
func (l *Log) readEvents(v strictjson.Value, stripped bool) error {
	entries, err := v.Array(MaxEvents)
	if err != nil {
		return &FormatError{"event_log", err}
	}
	for i, entry := range entries {
		if err := l.readEvent(fmt.Sprintf("event_log: entry %d", i), entry, stripped); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) readEvent(where string, entry strictjson.Value, stripped bool) error {
	fail := func(what string, err error) error {
		return &FormatError{where, fmt.Errorf("%s: %w", what, err)}
	}
	members, err := entry.Object("imr", "event_type", "digest", "event", "event_payload", "version")
	if err != nil {
		return &FormatError{where, err}
	}
	imr, err := members["imr"].Uint32()
	if err != nil {
		return fail("imr", err)
	}
	if imr != 3 {
		// Firmware writes these, and nothing here depends on them.
		_, err = members["event_type"].Uint32()
		l.note(where+": event_type", err)
		_, err = register(members["digest"])
		l.note(where+": digest", err)
		_, err = members["event"].Text()
		l.note(where+": event", err)
		_, err = members["event_payload"].Text()
		l.note(where+": event_payload", err)
		return nil
	}
	e := Event{Version: 1}
	if e.Type, err = members["event_type"].Uint32(); err != nil {
		return fail("event_type", err)
	}
	if e.Name, err = members["event"].Text(); err != nil {
		return fail("event", err)
	}
	if e.Payload, err = hexBytes(members["event_payload"], -1); err != nil {
		return fail("event_payload", err)
	}
	if text, _ := members["event_payload"].Text(); e.Name == composeHashEvent && l.compose != nil &&
		text != hex.EncodeToString(e.Payload) {
		l.note(where+": event_payload", errors.New("not in lower case, in which it is compared"))
	}
	// The verifier doesn't look at the version: the digest decides. Only where that was stripped
	// does somebody have to say how it is made.
	if n, err := members["version"].Uint32(); err == nil && n == 2 {
		e.Version = 2
	}
	if d := members["digest"]; d.Present() && string(d.Raw()) != `""` {
		digest, err := register(d)
		if err != nil {
			return fail("digest", err)
		}
		e.Digest = &digest
	} else if e.Type != EventType {
		// Only dstack's own events are stripped; of another nobody knows how its digest is made.
		return fail("digest", fmt.Errorf("missing from an event of type %#x", e.Type))
	} else if !stripped {
		l.note(where+": digest", errors.New("missing"))
	}
	l.events = append(l.events, e)
	return nil
}

// hexBytes reads so many bytes in hex, of either case and without a prefix; -1: any number.
func hexBytes(v strictjson.Value, length int) ([]byte, error) {
	s, err := v.Text()
	if err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%.100q is not hex", s)
	}
	if length >= 0 && len(b) != length {
		return nil, fmt.Errorf("%d bytes, want %d", len(b), length)
	}
	return b, nil
}

func register(v strictjson.Value) (Register, error) {
	b, err := hexBytes(v, len(Register{}))
	if err != nil {
		return Register{}, err
	}
	return Register(b), nil
}

// byteArray reads bytes as an array of numbers, as serde writes them.
func byteArray(v strictjson.Value) ([]byte, error) {
	elements, err := v.Array(maxQuote)
	if err != nil {
		return nil, err
	}
	b := make([]byte, len(elements))
	for i, element := range elements {
		n, err := element.Uint32()
		if err != nil || n > 255 {
			return nil, fmt.Errorf("element %d is not a byte", i)
		}
		b[i] = byte(n)
	}
	return b, nil
}

// publicKey checks the form of a node's key: ed25519: and 32 bytes in base58.
func publicKey(v strictjson.Value) error {
	s, err := v.Text()
	if err != nil {
		return err
	}
	digits, ok := strings.CutPrefix(s, "ed25519:")
	if b, valid := base58(digits); !ok || !valid || len(b) != 32 {
		return fmt.Errorf("%.60q is not an ed25519 key", s)
	}
	return nil
}

// base58 decodes what is at most a few keys long.
func base58(s string) (decoded []byte, ok bool) {
	const alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	if len(s) > 100 {
		return nil, false
	}
	zeros := len(s) - len(strings.TrimLeft(s, "1"))
	var number []byte // little end first
	for _, c := range []byte(s[zeros:]) {
		carry := strings.IndexByte(alphabet, c)
		if carry < 0 {
			return nil, false
		}
		for i := range number {
			carry += 58 * int(number[i])
			number[i] = byte(carry)
			carry >>= 8
		}
		if carry > 0 {
			number = append(number, byte(carry))
		}
	}
	return append(make([]byte, zeros), number...), true
}
