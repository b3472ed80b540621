package rtmr_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/rtmr"
)

const (
	tcbInfoFile  = "../../testdata/rtmr/tcb_info-dstack-0.5.8-dev.json"
	getQuoteFile = "../../testdata/rtmr/getquote-dstack-0.6-stripped.json"
	// The image that the tcb_info was made with, and one that it wasn't.
	measuredHex = "564a5aebc33495d5610626d23cb9e3da8e9d531d0edff9e38aa1ccaf059c15d3"
	otherHex    = "abababababababababababababababababababababababababababababababab"
)

func parseFile(t testing.TB, name string) rtmr.Log {
	t.Helper()
	log, err := rtmr.Parse(readFile(t, name))
	require.NoError(t, err)
	return log
}

// reparse changes a document and parses it.
func reparse(t testing.TB, file string, change func(document map[string]any)) (rtmr.Log, error) {
	t.Helper()
	var document map[string]any
	dec := json.NewDecoder(bytes.NewReader(readFile(t, file)))
	dec.UseNumber()
	require.NoError(t, dec.Decode(&document))
	change(document)
	b, err := json.Marshal(document)
	require.NoError(t, err)
	return rtmr.Parse(b)
}

// entries gives change RTMR3's entries of a tcb_info document, whose registers stay as they are.
func entries(t *testing.T, change func(entries []map[string]any) []map[string]any) (rtmr.Log, error) {
	t.Helper()
	return reparse(t, tcbInfoFile, func(document map[string]any) {
		var rtmr3 []map[string]any
		for _, e := range document["event_log"].([]any) {
			if e := e.(map[string]any); e["imr"] == json.Number("3") {
				rtmr3 = append(rtmr3, e)
			}
		}
		document["event_log"] = change(rtmr3)
	})
}

func rejected(t *testing.T, err error, reason rtmr.Reason, what string) {
	t.Helper()
	var r *rtmr.Rejection
	if assert.ErrorAs(t, err, &r, what) {
		assert.Equal(t, reason, r.Reason, "%s: %v", what, err)
		assert.Equal(t, exit.Measurement, exit.Of(err), what)
	}
}

func refusal(log rtmr.Log) error {
	_, err := log.Accepted()
	return err
}

// accepted requires that a verifier accepts log for the measured image.
func accepted(t *testing.T, log rtmr.Log, what string) {
	t.Helper()
	got, err := log.Accepted()
	assert.NoError(t, err, what)
	assert.Equal(t, image(t, measuredHex), got, what)
}

func TestParseTCBInfo(t *testing.T) {
	t.Parallel()
	log := parseFile(t, tcbInfoFile)
	require.Len(t, log.Events(), 9)
	assert.Equal(t, "system-preparing", log.Events()[0].Name)
	assert.Equal(t, loadVectors(t).Final, log.Replay().String(), "replay")
	reported, ok := log.Reported()
	assert.True(t, ok, "a register was reported")
	assert.Equal(t, log.Replay(), reported, "reported")
	_, ok = log.Quoted()
	assert.False(t, ok, "no quote came with it")
	accepted(t, log, "the document")
	require.Len(t, log.Images(), 1)
	got, ok := log.Images()[0].Image()
	assert.True(t, ok)
	assert.Equal(t, image(t, measuredHex), got)
}

func TestParseGetQuoteRecomputesStrippedDigests(t *testing.T) {
	t.Parallel()
	log := parseFile(t, getQuoteFile)
	require.Len(t, log.Events(), 9)
	for _, e := range log.Events() {
		assert.Nil(t, e.Digest, "%s came without its digest", e.Name)
	}
	quoted, ok := log.Quoted()
	assert.True(t, ok, "the quote's register")
	assert.Equal(t, "6f24c170d0fd63fc2b1b53202eea47b013978437fa6982cf5e0438ff95c208994aaa0f4ebab2e3a66824b5b56869137e", quoted.String())
	assert.Equal(t, quoted, log.Replay(), "replay")
	_, ok = log.Reported()
	assert.False(t, ok, "nothing else reports one")
	assert.NoError(t, log.Replays())
	rejected(t, refusal(log), rtmr.MissingEvent, "no image was measured there")
	present, err := log.Measured(image(t, measuredHex))
	assert.NoError(t, err)
	assert.False(t, present)
}

// One log in all the forms in which it travels.
func TestParseForms(t *testing.T) {
	t.Parallel()
	tcbInfo := readFile(t, tcbInfoFile)
	want := parseFile(t, tcbInfoFile)
	var document map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(tcbInfo, &document))
	quote := bytes.Clone(unhex(t, quoteOf(t)))
	copy(quote[520:], unhex(t, want.Replay().String()))

	info, err := json.Marshal(map[string]string{
		"app_id": "x", "instance_id": "", "app_cert": "", "app_name": "", "device_id": "", "key_provider_info": "",
		"tcb_info": string(tcbInfo), "compose_hash": "y",
	})
	require.NoError(t, err)
	answer, err := json.Marshal(map[string]string{"quote": hex.EncodeToString(quote), "event_log": string(document["event_log"])})
	require.NoError(t, err)
	document["quote"] = json.RawMessage(`"` + hex.EncodeToString(quote) + `"`)
	both, err := json.Marshal(document)
	require.NoError(t, err)

	for name, b := range map[string][]byte{
		"bare array": document["event_log"], "Info": info, "GetQuote": answer, "both registers": both,
		"spaces around":          append([]byte(" \n"), tcbInfo...),
		"bare array with spaces": append([]byte("\t\n\r "), document["event_log"]...),
	} {
		log, err := rtmr.Parse(b)
		require.NoError(t, err, name)
		assert.Equal(t, want.Events(), log.Events(), name)
		accepted(t, log, name)
		_, reported := log.Reported()
		_, quoted := log.Quoted()
		assert.Equal(t, name != "GetQuote" && !strings.HasPrefix(name, "bare"), reported, "%s: reported", name)
		assert.Equal(t, name == "GetQuote" || name == "both registers", quoted, "%s: quoted", name)
	}
}

func quoteOf(t testing.TB) string {
	t.Helper()
	var answer struct{ Quote string }
	require.NoError(t, json.Unmarshal(readFile(t, getQuoteFile), &answer))
	return answer.Quote
}

func TestPredict(t *testing.T) {
	t.Parallel()
	v := loadVectors(t)
	before, err := entries(t, func(e []map[string]any) []map[string]any { return e[:8] })
	require.NoError(t, err)
	got, err := before.Predict(image(t, measuredHex))
	assert.NoError(t, err)
	assert.Equal(t, v.Final, got.String(), "before the emit")

	got, err = parseFile(t, tcbInfoFile).Predict(image(t, measuredHex))
	assert.NoError(t, err)
	assert.Equal(t, v.Twice, got.String(), "a second emit")

	_, err = before.Predict(digest.Digest{})
	assert.ErrorIs(t, err, digest.ErrNone)
	_, err = before.Measured(digest.Digest{})
	assert.ErrorIs(t, err, digest.ErrNone)
}

func TestMeasured(t *testing.T) {
	t.Parallel()
	log := parseFile(t, tcbInfoFile)
	present, err := log.Measured(image(t, measuredHex))
	assert.NoError(t, err)
	assert.True(t, present)

	_, err = log.Measured(image(t, otherHex))
	rejected(t, err, rtmr.OtherDigest, "another image")

	present, err = parseFile(t, getQuoteFile).Measured(image(t, measuredHex))
	assert.NoError(t, err)
	assert.False(t, present)
}

// Events that are honestly logged and measured, and still wrong.
func TestMeasuredButRefused(t *testing.T) {
	t.Parallel()
	measured := unhex(t, measuredHex)
	withColon := append([]byte("AB:"), bytes.Repeat([]byte{0xee}, 29)...)
	for name, c := range map[string]struct {
		more   []rtmr.Event
		reason rtmr.Reason
	}{
		"the same image twice": {[]rtmr.Event{{Name: rtmr.EventName, Payload: measured}}, rtmr.DuplicateEvent},
		"two images":           {[]rtmr.Event{{Name: rtmr.EventName, Payload: withColon}}, rtmr.DuplicateEvent},
		// What was measured as the image AB:… and is told as another event, which a verifier doesn't count.
		"an image event in disguise": {[]rtmr.Event{{Name: rtmr.EventName + ":AB", Payload: withColon[3:]}}, rtmr.AmbiguousEvent},
		"something else":             {[]rtmr.Event{{Name: "vault", Payload: measured}}, ""},
		"a name that only looks so":  {[]rtmr.Event{{Name: "mpc-image-digests"}, {Name: "MPC-image-digest"}, {Name: ""}}, ""},
	} {
		log := tcbInfoWith(t, parseFile(t, tcbInfoFile).Events(), c.more)
		require.NoError(t, log.Replays(), name)
		_, err := log.Measured(image(t, measuredHex))
		if c.reason == "" {
			assert.NoError(t, err, name)
			accepted(t, log, name)
			continue
		}
		rejected(t, refusal(log), c.reason, name)
		rejected(t, err, c.reason, name)
	}
}

func TestOnlyImageEventIsWrong(t *testing.T) {
	t.Parallel()
	boot := parseFile(t, getQuoteFile).Events()
	for name, c := range map[string]struct {
		event  rtmr.Event
		reason rtmr.Reason
	}{
		"31 bytes":    {rtmr.Event{Name: rtmr.EventName, Payload: make([]byte, 31)}, rtmr.WrongPayload},
		"33 bytes":    {rtmr.Event{Name: rtmr.EventName, Payload: make([]byte, 33)}, rtmr.WrongPayload},
		"no payload":  {rtmr.Event{Name: rtmr.EventName}, rtmr.WrongPayload},
		"as text":     {rtmr.Event{Name: rtmr.EventName, Payload: []byte("sha256:" + measuredHex)}, rtmr.WrongPayload},
		"in disguise": {rtmr.Event{Name: rtmr.EventName + ":", Payload: make([]byte, 31)}, rtmr.AmbiguousEvent},
	} {
		log := tcbInfoWith(t, boot, []rtmr.Event{c.event})
		require.NoError(t, log.Replays(), name)
		rejected(t, refusal(log), c.reason, name)
		_, err := log.Measured(image(t, measuredHex))
		rejected(t, err, c.reason, name)
	}
}

// tcbInfoWith makes the document that an agent would give for these events.
func tcbInfoWith(t testing.TB, lists ...[]rtmr.Event) rtmr.Log {
	t.Helper()
	var r rtmr.Register
	var log []map[string]any
	for _, e := range slices.Concat(lists...) {
		d := rtmr.DigestV1(e.Name, e.Payload)
		r = rtmr.Extend(r, d)
		log = append(log, map[string]any{
			"imr": 3, "event_type": rtmr.EventType, "event": e.Name, "event_payload": hex.EncodeToString(e.Payload), "digest": d.String(),
		})
	}
	parsed, err := reparse(t, tcbInfoFile, func(d map[string]any) { d["event_log"], d["rtmr3"] = log, r.String() })
	require.NoError(t, err)
	return parsed
}

func TestVersion2ReplaysAndIsRejected(t *testing.T) {
	t.Parallel()
	events := parseFile(t, tcbInfoFile).Events()
	for _, stripped := range []bool{false, true} {
		var r rtmr.Register
		var log []map[string]any
		for _, e := range events {
			d := rtmr.DigestV2(e.Name, e.Payload)
			r = rtmr.Extend(r, d)
			entry := map[string]any{
				"imr": 3, "event_type": rtmr.EventType, "event": e.Name, "event_payload": hex.EncodeToString(e.Payload), "digest": d.String(),
				"version": 2, "preimage": "00",
			}
			if stripped {
				entry["digest"] = ""
			}
			log = append(log, entry)
		}
		b, err := json.Marshal(map[string]any{"event_log": log, "rtmr3": r.String()})
		require.NoError(t, err)
		parsed, err := rtmr.Parse(b)
		require.NoError(t, err)
		assert.Equal(t, r, parsed.Replay(), "stripped %v", stripped)
		assert.Equal(t, 2, parsed.Events()[0].Version)
		rejected(t, refusal(parsed), rtmr.WrongVersion, "version 2")
		_, err = parsed.Measured(image(t, measuredHex))
		rejected(t, err, rtmr.WrongVersion, "version 2")
	}
}

func TestZeroLogIsRefused(t *testing.T) {
	t.Parallel()
	var log rtmr.Log
	rejected(t, log.Replays(), rtmr.NoEvents, "Replays")
	rejected(t, refusal(log), rtmr.NoEvents, "Accepted")
	_, err := log.Measured(image(t, measuredHex))
	rejected(t, err, rtmr.NoRegister, "Measured")

	empty, err := rtmr.Parse([]byte(`{"event_log":[],"rtmr3":"` + strings.Repeat("0", 96) + `"}`))
	require.NoError(t, err)
	assert.True(t, empty.Replay().IsZero(), "nothing replays to the boot value")
	_, err = empty.Measured(image(t, measuredHex))
	rejected(t, err, rtmr.NoEvents, "an empty log of a register that is empty, too")
}

func TestBareArrayDecidesNothing(t *testing.T) {
	t.Parallel()
	var document map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(readFile(t, tcbInfoFile), &document))
	log, err := rtmr.Parse(document["event_log"])
	require.NoError(t, err)
	assert.NoError(t, refusal(log), "the rules that need no register")
	_, err = log.Measured(image(t, measuredHex))
	rejected(t, err, rtmr.NoRegister, "no register to hold it against")
}

func TestEventsAreACopy(t *testing.T) {
	t.Parallel()
	log := parseFile(t, tcbInfoFile)
	log.Events()[0].Name = "changed"
	assert.Equal(t, "system-preparing", log.Events()[0].Name)
}

// Whatever is changed in a log or its register is noticed: rejected, or not even read.
func TestTamperWithLog(t *testing.T) {
	t.Parallel()
	const unreadable rtmr.Reason = "unreadable"
	flip := func(e map[string]any, field string) {
		s := e[field].(string)
		last := map[byte]string{'0': "1"}[s[len(s)-1]]
		if last == "" {
			last = "0"
		}
		e[field] = s[:len(s)-1] + last
	}
	each := map[string]struct {
		change func(e map[string]any)
		reason rtmr.Reason
	}{
		"type":                     {func(e map[string]any) { e["event_type"] = 134217730 }, rtmr.WrongType},
		"type of firmware":         {func(e map[string]any) { e["event_type"] = 4 }, rtmr.WrongType},
		"type negative":            {func(e map[string]any) { e["event_type"] = -1 }, unreadable},
		"type too large":           {func(e map[string]any) { e["event_type"] = 1 << 32 }, unreadable},
		"type with fraction":       {func(e map[string]any) { e["event_type"] = json.RawMessage("134217729.0") }, unreadable},
		"type in text":             {func(e map[string]any) { e["event_type"] = "134217729" }, unreadable},
		"no type":                  {func(e map[string]any) { delete(e, "event_type") }, unreadable},
		"name":                     {func(e map[string]any) { e["event"] = e["event"].(string) + "x" }, rtmr.WrongDigest},
		"name null":                {func(e map[string]any) { e["event"] = nil }, unreadable},
		"no name":                  {func(e map[string]any) { delete(e, "event") }, unreadable},
		"payload longer":           {func(e map[string]any) { e["event_payload"] = e["event_payload"].(string) + "00" }, rtmr.WrongDigest},
		"payload odd":              {func(e map[string]any) { e["event_payload"] = "0" }, unreadable},
		"payload not hex":          {func(e map[string]any) { e["event_payload"] = "0g" }, unreadable},
		"payload capitals":         {func(e map[string]any) { e["event_payload"] = "AB" }, rtmr.WrongDigest},
		"payload prefixed":         {func(e map[string]any) { e["event_payload"] = "0x00" }, unreadable},
		"payload an array":         {func(e map[string]any) { e["event_payload"] = []int{1} }, unreadable},
		"no payload":               {func(e map[string]any) { delete(e, "event_payload") }, unreadable},
		"digest":                   {func(e map[string]any) { flip(e, "digest") }, rtmr.WrongDigest},
		"digest short":             {func(e map[string]any) { e["digest"] = e["digest"].(string)[2:] }, unreadable},
		"digest long":              {func(e map[string]any) { e["digest"] = e["digest"].(string) + "00" }, unreadable},
		"digest not hex":           {func(e map[string]any) { e["digest"] = strings.Repeat("g", 96) }, unreadable},
		"digest null":              {func(e map[string]any) { e["digest"] = nil }, unreadable},
		"imr gone":                 {func(e map[string]any) { delete(e, "imr") }, unreadable},
		"imr 2":                    {func(e map[string]any) { e["imr"] = 2 }, rtmr.WrongRegister},
		"imr 4":                    {func(e map[string]any) { e["imr"] = 4 }, rtmr.WrongRegister},
		"imr in text":              {func(e map[string]any) { e["imr"] = "3" }, unreadable},
		"stripped of another type": {func(e map[string]any) { e["event_type"], e["digest"] = 4, "" }, unreadable},
		"second name":              {func(e map[string]any) { e["Event"] = "system-ready" }, unreadable},
		"second payload":           {func(e map[string]any) { e["EVENT_PAYLOAD"] = "" }, unreadable},
		"digest in capitals only":  {func(e map[string]any) { e["Digest"] = e["digest"]; delete(e, "digest") }, unreadable},
		"Kelvin sign and long s":   {func(e map[string]any) { e["dige\u017ft"] = "" }, unreadable},
	}
	for name, c := range each {
		for i := range 9 {
			what := fmt.Sprintf("%s of event %d", name, i)
			log, err := entries(t, func(e []map[string]any) []map[string]any {
				c.change(e[i])
				return e
			})
			if c.reason == unreadable {
				unread(t, err, what)
				continue
			}
			require.NoError(t, err, what)
			rejected(t, refusal(log), c.reason, what)
			_, err = log.Measured(image(t, measuredHex))
			rejected(t, err, c.reason, what)
		}
	}
	for name, c := range map[string]struct {
		change func(e []map[string]any) []map[string]any
		reason rtmr.Reason
	}{
		"first gone": {func(e []map[string]any) []map[string]any { return e[1:] }, rtmr.WrongRegister},
		"last gone":  {func(e []map[string]any) []map[string]any { return e[:8] }, rtmr.WrongRegister},
		"all gone":   {func([]map[string]any) []map[string]any { return []map[string]any{} }, rtmr.NoEvents},
		"null":       {func([]map[string]any) []map[string]any { return nil }, unreadable},
		"order":      {func(e []map[string]any) []map[string]any { e[7], e[8] = e[8], e[7]; return e }, rtmr.WrongRegister},
		"last twice": {func(e []map[string]any) []map[string]any { return append(e, e[8]) }, rtmr.WrongRegister},
		"one more":   {func(e []map[string]any) []map[string]any { return append(e, e[0]) }, rtmr.WrongRegister},
		"image swapped": {func(e []map[string]any) []map[string]any {
			e[8]["event_payload"] = otherHex
			e[8]["digest"] = rtmr.DigestV1(rtmr.EventName, unhex(t, otherHex)).String()
			return e
		}, rtmr.WrongRegister},
		"image swapped, stripped": {func(e []map[string]any) []map[string]any {
			e[8]["event_payload"], e[8]["digest"] = otherHex, ""
			return e
		}, rtmr.WrongRegister},
	} {
		log, err := entries(t, c.change)
		if c.reason == unreadable {
			unread(t, err, name)
			continue
		}
		require.NoError(t, err, name)
		rejected(t, refusal(log), c.reason, name)
	}
}

func unread(t *testing.T, err error, what string) {
	t.Helper()
	var f *rtmr.FormatError
	assert.ErrorAs(t, err, &f, what)
	assert.Equal(t, exit.Config, exit.Of(err), what)
}

func TestTamperWithRegister(t *testing.T) {
	t.Parallel()
	for i := range 48 {
		log, err := reparse(t, tcbInfoFile, func(d map[string]any) {
			b := unhex(t, d["rtmr3"].(string))
			b[i] ^= 0x10
			d["rtmr3"] = hex.EncodeToString(b)
		})
		require.NoError(t, err)
		rejected(t, refusal(log), rtmr.WrongRegister, fmt.Sprintf("byte %d", i))
	}
	for name, value := range map[string]any{
		"short": "00", "empty": "", "null": nil, "number": 3, "not hex": strings.Repeat("z", 96), "prefixed": "0x" + strings.Repeat("0", 94),
	} {
		_, err := reparse(t, tcbInfoFile, func(d map[string]any) { d["rtmr3"] = value })
		unread(t, err, name)
	}
	_, err := reparse(t, tcbInfoFile, func(d map[string]any) { delete(d, "rtmr3") })
	unread(t, err, "tcb_info without RTMR3, as on other hardware")
	_, err = reparse(t, tcbInfoFile, func(d map[string]any) { d["RTMR3"] = strings.Repeat("0", 96) })
	unread(t, err, "a second register")
}

func TestTamperWithQuote(t *testing.T) {
	t.Parallel()
	original := unhex(t, quoteOf(t))
	parse := func(quote []byte) (rtmr.Log, error) {
		return reparse(t, getQuoteFile, func(d map[string]any) { d["quote"] = hex.EncodeToString(quote) })
	}
	changed := func(change func(q []byte) []byte) []byte { return change(bytes.Clone(original)) }
	for i := range 48 {
		log, err := parse(changed(func(q []byte) []byte { q[520+i] ^= 1; return q }))
		require.NoError(t, err)
		rejected(t, log.Replays(), rtmr.WrongRegister, fmt.Sprintf("byte %d of RTMR3", i))
	}
	for _, at := range []int{519, 568} {
		log, err := parse(changed(func(q []byte) []byte { q[at] ^= 1; return q }))
		require.NoError(t, err)
		assert.NoError(t, log.Replays(), "byte %d is none of RTMR3's", at)
	}
	for name, q := range map[string][]byte{
		"empty":       {},
		"no body":     original[:48],
		"no length":   original[:635],
		"cut":         original[:len(original)-71],
		"version 2":   changed(func(q []byte) []byte { q[0] = 2; return q }),
		"version 6":   changed(func(q []byte) []byte { q[0] = 6; return q }),
		"version 260": changed(func(q []byte) []byte { q[1] = 1; return q }),
		"SGX":         changed(func(q []byte) []byte { q[4] = 0; return q }),
		"signature":   changed(func(q []byte) []byte { binary.LittleEndian.PutUint32(q[632:], 1<<32-1); return q }),
	} {
		_, err := parse(q)
		unread(t, err, name)
	}
	for name, value := range map[string]any{"not hex": "zz", "null": nil} {
		_, err := reparse(t, getQuoteFile, func(d map[string]any) { d["quote"] = value })
		unread(t, err, name)
	}
}

// In which version of a quote the register stands where.
func TestQuoteVersions(t *testing.T) {
	t.Parallel()
	original := unhex(t, quoteOf(t))
	longer := func(kind byte, size uint16, more int) []byte {
		q := bytes.Clone(original[:48])
		q[0] = 5
		q = append(q, kind, 0, byte(size), byte(size>>8), 0, 0)
		q = append(q, original[48:632]...)
		q = append(q, make([]byte, more)...)
		return append(q, original[632:]...)
	}
	for name, quote := range map[string][]byte{
		"3": append([]byte{3}, original[1:]...), "4": original,
		"5": longer(2, 584, 0), "5, TDX 1.5": longer(3, 648, 64), "5 as 4": append([]byte{5}, original[1:]...),
	} {
		log, err := reparse(t, getQuoteFile, func(d map[string]any) { d["quote"] = strings.ToUpper(hex.EncodeToString(quote)) })
		require.NoError(t, err, name)
		assert.NoError(t, log.Replays(), name)
	}
}

func TestReportedAndQuotedMustAgree(t *testing.T) {
	t.Parallel()
	log, err := reparse(t, getQuoteFile, func(d map[string]any) { d["rtmr3"] = parseFile(t, getQuoteFile).Replay().String() })
	require.NoError(t, err)
	assert.NoError(t, log.Replays(), "both are right")
	log, err = reparse(t, getQuoteFile, func(d map[string]any) { d["rtmr3"] = strings.Repeat("00", 48) })
	require.NoError(t, err)
	rejected(t, log.Replays(), rtmr.WrongQuote, "they differ")
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	zero := strings.Repeat("0", 96)
	for name, text := range map[string]string{
		"nothing":             "",
		"blanks":              " \n",
		"null":                "null",
		"a string":            `"[]"`,
		"a number":            "3",
		"not JSON":            "system-ready",
		"cut array":           `[{"imr":3`,
		"cut object":          `{"event_log":[],"rtmr3":"` + zero + `"`,
		"array and more":      `[] []`,
		"object and more":     `{"event_log":[],"rtmr3":"` + zero + `"} x`,
		"empty object":        `{}`,
		"only a register":     `{"rtmr3":"` + zero + `"}`,
		"only a log":          `{"event_log":[]}`,
		"a log in an object":  `{"event_log":{},"rtmr3":"` + zero + `"}`,
		"a log in a number":   `{"event_log":1,"rtmr3":"` + zero + `"}`,
		"an empty log text":   `{"event_log":"","rtmr3":"` + zero + `"}`,
		"a log in two texts":  `{"event_log":"\"[]\"","rtmr3":"` + zero + `"}`,
		"log twice":           `{"event_log":[],"event_log":[],"rtmr3":"` + zero + `"}`,
		"log in capitals too": `{"event_log":[],"Event_Log":[],"rtmr3":"` + zero + `"}`,
		"unknown twice":       `{"event_log":[],"x":1,"x":1,"rtmr3":"` + zero + `"}`,
		"entry null":          `[null]`,
		"entry an array":      `[[]]`,
		"entry twice":         `[{"imr":3,"imr":0}]`,
		"escaped twice":       `[{"imr":0,"im\u0072":3}]`,
		"not UTF-8":           "[{\"imr\":0,\"event\":\"\xff\"}]",
		"tcb_info null":       `{"tcb_info":null}`,
		"tcb_info an array":   `{"tcb_info":"[]"}`,
		"tcb_info in itself":  `{"tcb_info":"{\"tcb_info\":\"\"}"}`,
		"two logs":            `{"tcb_info":"","event_log":[]}`,
		"TCB_INFO":            `{"TCB_INFO":""}`,
		"too many entries":    "[" + strings.Repeat(`{"imr":0},`, rtmr.MaxEvents) + `{"imr":0}]`,
		"too large":           "[" + strings.Repeat(" ", rtmr.MaxSize-1) + "]",
	} {
		log, err := rtmr.Parse([]byte(text))
		unread(t, err, name)
		assert.Zero(t, log, name)
		assert.NotErrorIs(t, err, rtmr.ErrUnknown, name)
	}
	for name, text := range map[string]string{
		"as many entries as may be": "[" + strings.Repeat(`{"imr":0},`, rtmr.MaxEvents-1) + `{"imr":0}]`,
		"as large as may be":        "[" + strings.Repeat(" ", rtmr.MaxSize-2) + "]",
	} {
		_, err := rtmr.Parse([]byte(text))
		assert.NoError(t, err, name)
	}
}

func TestEmptyTCBInfoIsUnknown(t *testing.T) {
	t.Parallel()
	log, err := rtmr.Parse([]byte(`{"app_id":"00","tcb_info":""}`))
	unread(t, err, "empty tcb_info")
	assert.ErrorIs(t, err, rtmr.ErrUnknown)
	assert.Zero(t, log)
}

func TestRejectionTellsAndHints(t *testing.T) {
	t.Parallel()
	for reason, hinted := range map[rtmr.Reason]bool{
		rtmr.MissingEvent: true, rtmr.DuplicateEvent: true, rtmr.AmbiguousEvent: true, rtmr.OtherDigest: true, rtmr.WrongPayload: true,
		rtmr.WrongVersion: true, rtmr.WrongRegister: true,
		rtmr.WrongType: false, rtmr.WrongDigest: false, rtmr.WrongQuote: false, rtmr.NoEvents: false, rtmr.NoRegister: false,
	} {
		err := &rtmr.Rejection{Reason: reason, Entry: "entry", Got: "1", Want: "2"}
		assert.Equal(t, "event log: "+string(reason)+": entry: got 1, want 2", err.Error())
		assert.Equal(t, hinted, len(exit.Hints(err)) > 0, "hints of %s", reason)
	}
}
