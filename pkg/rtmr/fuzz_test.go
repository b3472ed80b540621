package rtmr_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/rtmr"
)

// Whatever Parse takes has one reading, and whatever Accepted takes is what the verifier's rules say, told here once more and
// from the events alone.
func FuzzParse(f *testing.F) {
	f.Add(readFile(f, tcbInfoFile))
	f.Add(readFile(f, getQuoteFile))
	f.Fuzz(func(t *testing.T, b []byte) {
		log, err := rtmr.Parse(b)
		if err != nil {
			var format *rtmr.FormatError
			require.ErrorAs(t, err, &format)
			require.Zero(t, log, "an error comes with nothing")
			return
		}
		require.LessOrEqual(t, len(log.Events()), rtmr.MaxEvents)

		var replay, version1 rtmr.Register
		var payloads [][]byte
		proper := true
		for _, e := range log.Events() {
			d := rtmr.DigestV1(e.Name, e.Payload)
			replay = rtmr.Extend(replay, e.Measured())
			version1 = rtmr.Extend(version1, d)
			proper = proper && e.Type == rtmr.EventType && e.Version == 1
			if e.Name == rtmr.EventName {
				payloads = append(payloads, e.Payload)
			}
		}
		require.Equal(t, replay, log.Replay())

		again, err := rtmr.Parse(written(t, log))
		require.NoError(t, err, "what was read can be written and read")
		require.Equal(t, log.Events(), again.Events())

		accepted, err := log.Accepted()
		if err != nil {
			require.Zero(t, accepted, "a refusal comes with nothing")
			return
		}
		require.True(t, proper, "every event has dstack's type and a digest of version 1")
		require.Equal(t, version1, log.Replay())
		require.Len(t, payloads, 1, "exactly one image event")
		require.Len(t, payloads[0], 32)
		for _, register := range []func() (rtmr.Register, bool){log.Reported, log.Quoted} {
			if r, ok := register(); ok {
				require.Equal(t, version1, r)
			}
		}
		measured := digest.Digest(payloads[0])
		require.Equal(t, measured, accepted)
		if measured.IsZero() {
			return // which nobody can ask for
		}
		present, err := log.Measured(measured)
		_, reported := log.Reported()
		_, quoted := log.Quoted()
		require.Equal(t, reported || quoted, present && err == nil)
	})
}

// What is left of dstack's log after a crash is completed to a log that replays to the register, or
// refused; a log that is whole stays as it is.
func FuzzRuntimeLog(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte, ahead bool) {
		events, err := rtmr.RuntimeEvents(data)
		if err != nil {
			return
		}
		image := digest.Of([]byte("image"))
		var register rtmr.Register
		for _, e := range events {
			register = rtmr.Extend(register, e.Measured())
		}
		if ahead {
			register = rtmr.Extend(register, rtmr.DigestV1(rtmr.EventName, image[:]))
		}
		_, _, without := rtmr.JudgeRuntimeLog(register, data, nil)
		log, rest, err := rtmr.JudgeRuntimeLog(register, data, []digest.Digest{image})
		if err != nil {
			require.Zero(t, log, "an error comes with nothing")
			require.Error(t, without)
			return
		}
		require.NoError(t, log.Replays())
		require.Equal(t, register, log.Replay())
		require.Equal(t, ahead, len(rest) > 0)
		require.Equal(t, ahead, without != nil)
		whole, left, err := rtmr.JudgeRuntimeLog(register, append(data, rest...), nil)
		require.NoError(t, err, "it is complete now")
		require.Empty(t, left)
		require.Equal(t, log.Events(), whole.Events())
	})
}

func written(t *testing.T, log rtmr.Log) []byte {
	t.Helper()
	entries := []map[string]any{}
	for _, e := range log.Events() {
		entry := map[string]any{
			"imr": 3, "event_type": e.Type, "event": e.Name, "event_payload": hex.EncodeToString(e.Payload), "version": e.Version, "digest": "",
		}
		if e.Digest != nil {
			entry["digest"] = e.Digest.String()
		}
		entries = append(entries, entry)
	}
	b, err := json.Marshal(entries)
	require.NoError(t, err)
	return b
}

func TestFuzzSeeds(t *testing.T) {
	t.Parallel()
	for target, want := range map[string][]string{
		"FuzzParse": {
			"array", "array-two-keys", "getquote", "info", "info-empty", "tcb_info", "tcb_info-ambiguous",
			"tcb_info-twice", "tcb_info-version-2",
		},
		"FuzzRuntimeLog":      {"ahead", "blank-lines", "half-a-line", "version-2", "whole"},
		"FuzzJudgeAppCompose": {"escaped-name", "letter-case", "null", "twice", "two-documents", "valid"},
	} {
		dir := filepath.Join("testdata/fuzz", target)
		files, err := os.ReadDir(dir)
		require.NoError(t, err)
		var names []string
		for _, f := range files {
			names = append(names, f.Name())
			seed := string(readFile(t, filepath.Join(dir, f.Name())))
			assert.Contains(t, seed, "go test fuzz v1\n", f.Name())
		}
		assert.Equal(t, want, names)
	}
}
