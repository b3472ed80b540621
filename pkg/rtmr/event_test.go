package rtmr_test

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/rtmr"
)

type vectors struct {
	Events []struct {
		Event      string `json:"event"`
		Payload    string `json:"payload"`
		V1Preimage string `json:"v1_preimage"`
		V1         string `json:"v1_sha384"`
		V2Preimage string `json:"v2_preimage"`
		V2         string `json:"v2_sha384"`
	} `json:"event_vectors"`
	Steps []struct {
		Event   string `json:"event"`
		Payload string `json:"payload"`
		Digest  string `json:"digest"`
		After   string `json:"rtmr3_after"`
	} `json:"rtmr3_steps"`
	Final string `json:"rtmr3_final"`
	Twice string `json:"rtmr3_if_launcher_emits_twice"`
}

func loadVectors(t *testing.T) vectors {
	t.Helper()
	var v vectors
	require.NoError(t, json.Unmarshal(readFile(t, "../../testdata/rtmr/event-vectors.json"), &v))
	require.Len(t, v.Events, 7)
	require.Len(t, v.Steps, 9)
	return v
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return b
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}

func image(t testing.TB, hexDigits string) digest.Digest {
	t.Helper()
	h, err := digest.Parse("sha256:" + hexDigits)
	require.NoError(t, err)
	return h
}

func TestDigestVectors(t *testing.T) {
	t.Parallel()
	for _, v := range loadVectors(t).Events {
		payload := unhex(t, v.Payload)
		assert.Equal(t, v.V1, rtmr.DigestV1(v.Event, payload).String(), "version 1 of %s", v.Event)
		assert.Equal(t, v.V2, rtmr.DigestV2(v.Event, payload).String(), "version 2 of %s", v.Event)
		// The vectors themselves: a digest that nobody can recompute proves nothing.
		assert.Equal(t, v.V1, rtmr.Register(sha512.Sum384(unhex(t, v.V1Preimage))).String(), "preimage 1 of %s", v.Event)
		assert.Equal(t, v.V2, rtmr.Register(sha512.Sum384([]byte(v.V2Preimage))).String(), "preimage 2 of %s", v.Event)
	}
}

func TestExtendVectors(t *testing.T) {
	t.Parallel()
	v := loadVectors(t)
	var r rtmr.Register
	assert.True(t, r.IsZero(), "RTMR3 before boot")
	for _, step := range v.Steps {
		d := rtmr.DigestV1(step.Event, unhex(t, step.Payload))
		assert.Equal(t, step.Digest, d.String(), "digest of %s", step.Event)
		r = rtmr.Extend(r, d)
		assert.Equal(t, step.After, r.String(), "RTMR3 after %s", step.Event)
		assert.False(t, r.IsZero(), "RTMR3 after %s", step.Event)
	}
	assert.Equal(t, v.Final, r.String(), "RTMR3 at the end")
	last := v.Steps[len(v.Steps)-1]
	again := rtmr.Extend(r, rtmr.DigestV1(last.Event, unhex(t, last.Payload)))
	assert.Equal(t, v.Twice, again.String(), "RTMR3 after a second emit")
}

func TestDigestV2IsCanonicalJSON(t *testing.T) {
	t.Parallel()
	for name, preimage := range map[string]string{
		"":                     `{"name":"","payload":"00ff","type":134217729}`,
		"a\"b\\c\nd":           `{"name":"a\"b\\c\nd","payload":"00ff","type":134217729}`,
		"\b\f\r\t\x01\x1f":     `{"name":"\b\f\r\t\u0001\u001f","payload":"00ff","type":134217729}`,
		"<&>\u2028é\U0001f980": "{\"name\":\"<&>\u2028é\U0001f980\",\"payload\":\"00ff\",\"type\":134217729}",
		"\x7f/":                "{\"name\":\"\x7f/\",\"payload\":\"00ff\",\"type\":134217729}",
	} {
		assert.Equal(t, rtmr.Register(sha512.Sum384([]byte(preimage))), rtmr.DigestV2(name, []byte{0, 0xff}), "name %q", name)
	}
}

func TestExtendLeavesItsArgumentsAlone(t *testing.T) {
	t.Parallel()
	r, d := rtmr.Register{1}, rtmr.Register{2}
	rtmr.Extend(r, d)
	assert.Equal(t, rtmr.Register{1}, r, "register")
	assert.Equal(t, rtmr.Register{2}, d, "digest")
}

func TestEventImage(t *testing.T) {
	t.Parallel()
	payload := make([]byte, 32)
	payload[31] = 0xab
	got, ok := rtmr.Event{Name: rtmr.EventName, Payload: payload}.Image()
	assert.True(t, ok, "an image event")
	assert.Equal(t, "sha256:00000000000000000000000000000000000000000000000000000000000000ab", got.String(), "its digest")
	for name, e := range map[string]rtmr.Event{
		"other name":     {Name: "system-ready", Payload: payload},
		"31 bytes":       {Name: rtmr.EventName, Payload: payload[1:]},
		"33 bytes":       {Name: rtmr.EventName, Payload: append([]byte{0}, payload...)},
		"no payload":     {Name: rtmr.EventName},
		"longer name":    {Name: rtmr.EventName + ":", Payload: payload},
		"the zero value": {},
	} {
		got, ok := e.Image()
		assert.False(t, ok, name)
		assert.Zero(t, got, name)
	}
}
