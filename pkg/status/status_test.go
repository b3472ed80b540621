package status_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/status"
)

var update = flag.Bool("update", false, "write the golden files anew")

func ptr[T any](v T) *T { return &v }

// full has a value in every field.
func full() status.Status {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	return status.Status{
		Version: status.Version, Phase: "load", Since: at, BootID: "01234567-89ab-4cde-8f01-23456789abcd",
		Reference: "nearone/mpc-node:3.10.0", Digest: ptr(digest.Of([]byte("runs"))), Reason: "fallback",
		FallbackFrom: ptr(digest.Of([]byte("newest"))), Approved: ptr(1), ApprovedSince: ptr(at.Add(time.Hour)),
		Measured: ptr(true), RTMR3: strings.Repeat("0123456789abcdef", 6), Restarts: 2, LastExitCode: ptr(137),
		Staged:  &status.Staged{Digest: ptr(digest.Of([]byte("newest"))), State: "failed", Error: ptr("status 404"), At: at},
		Percent: ptr(42), Error: &status.Error{Code: exit.Refused, Message: "pull: manifest: 404 Not Found"},
		Launcher: "v1.2.3",
	}
}

// running is a workload that runs in a CVM, with nothing to say of it.
func running() status.Status {
	return status.Status{
		Version: status.Version, Phase: status.Supervise, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		BootID: "boot", Digest: ptr(digest.Of([]byte("runs"))), Measured: ptr(true),
	}
}

// golden holds text to a file.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("..", "..", "testdata", "status", name)
	if *update {
		require.NoError(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got), "changed on purpose? raise Version if a reader has to change too, and run with -update")
}

// TestGolden holds the schema to a file: what fleets read doesn't change by accident.
func TestGolden(t *testing.T) {
	t.Parallel()
	line := full().Line()
	object, ok := strings.CutPrefix(line, status.Prefix)
	require.True(t, ok)
	assert.NotContains(t, line, "\n")
	var b bytes.Buffer
	require.NoError(t, json.Indent(&b, []byte(object), "", "  "))
	b.WriteByte('\n')
	golden(t, "status.json", b.Bytes())
	golden(t, "metrics.prom", full().Metrics())

	read, err := status.Parse([]byte(object))
	require.NoError(t, err)
	assert.Equal(t, full(), read)
	empty, err := status.Parse(status.Status{Version: 1, Phase: "settings", Since: full().Since}.JSON())
	require.NoError(t, err)
	assert.Equal(t, "settings", empty.Phase)
}

// TestALineIsBounded, and one line, whatever its parts say.
func TestALineIsBounded(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"long":         strings.Repeat("x", 100_000),
		"of quotes":    strings.Repeat(`"\`, 10_000),
		"of two lines": "a\nlauncher-status {}\r\x1b[2J",
		"of 4 bytes":   strings.Repeat("\U0001f600", 10_000),
		"not UTF-8":    strings.Repeat("\xff", 10_000),
	} {
		s := full()
		s.Phase, s.BootID, s.Reference, s.Reason, s.Launcher = text, text, text, text, text
		s.Error.Message, s.Staged.Error, s.Staged.State = text, &text, text
		line := s.Line()
		assert.LessOrEqual(t, len(line), len(status.Prefix)+status.MaxSize, name)
		assert.NotContains(t, line, "\n", name)
		assert.NotContains(t, line, "\x1b", name)
		read, err := status.Parse(s.JSON())
		require.NoError(t, err, name)
		assert.NotEmpty(t, read.Error.Message, name)
		assert.Equal(t, s.Digest, read.Digest, name)
	}
}

// TestNearsScriptsTakeNoLineForAFailure: they give up where one has "error" behind "pull".
func TestNearsScriptsTakeNoLineForAFailure(t *testing.T) {
	t.Parallel()
	s := running()
	s.Phase, s.Reference = "pull", "pull.example/pull"
	assert.NotRegexp(t, `(?i)no such image|pull.*error|fatal|exited with code`, s.Line())
}

func TestCodes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change  func(*status.Status)
		want    exit.Code
		healthy bool
	}{
		"runs":                {func(*status.Status) {}, exit.OK, true},
		"runs outside a CVM":  {func(s *status.Status) { s.Measured = nil }, exit.OK, true},
		"runs unmeasured":     {func(s *status.Status) { s.Measured = ptr(false) }, exit.Measurement, false},
		"isn't that far":      {func(s *status.Status) { s.Phase = "start" }, exit.Unavailable, false},
		"waits":               {func(s *status.Status) { s.Phase, s.Error = status.Waiting, &status.Error{Code: 5} }, exit.Refused, false},
		"is started again":    {func(s *status.Status) { s.Error = &status.Error{Code: 9} }, exit.Workload, false},
		"was ended":           {func(s *status.Status) { s.Phase, s.Error = "load", &status.Error{Code: 143} }, exit.Workload, false},
		"ended with a bug":    {func(s *status.Status) { s.Error = &status.Error{Code: 1} }, exit.Workload, false},
		"another was at work": {func(s *status.Status) { s.Phase, s.Error = "settings", &status.Error{Code: 10} }, exit.Workload, false},
	} {
		s := running()
		c.change(&s)
		assert.Equal(t, c.want, s.Code(), name)
		assert.Equal(t, c.healthy, s.Healthy(), name)
	}
}

// TestParseRefuses what a launcher doesn't say.
func TestParseRefuses(t *testing.T) {
	t.Parallel()
	object := string(full().JSON())
	replace := func(old, new string) string {
		require.Contains(t, object, old)
		return strings.Replace(object, old, new, 1)
	}
	for name, text := range map[string]string{
		"nothing":               "",
		"no object":             `"x"`,
		"half of one":           object[:len(object)/2],
		"two":                   object + object,
		"a name twice":          replace(`"version":1`, `"version":1,"version":1`),
		"a name in two cases":   replace(`"version":1`, `"version":1,"Digest":null`),
		"another version":       replace(`"version":1`, `"version":2`),
		"no version":            replace(`"version":1,`, ``),
		"no phase":              replace(`"phase":"load"`, `"phase":""`),
		"no time":               replace(`"since":"2026-01-02T03:04:05.006Z"`, `"since":"yesterday"`),
		"a short digest":        replace(`"digest":"sha256:`, `"digest":"sha256:00`),
		"a place below -1":      replace(`"approved":1`, `"approved":-2`),
		"fewer restarts than 0": replace(`"restarts":2`, `"restarts":-2`),
		"more than all":         replace(`"percent":42`, `"percent":101`),
		"a code of 0":           replace(`"code":5`, `"code":0`),
		"a short register":      replace(`"rtmr3":"01`, `"rtmr3":"1`),
		"an error in two cases": replace(`"code":5`, `"Code":5`),
		"restarts as text":      replace(`"restarts":2`, `"restarts":"2"`),
		"too much":              replace(`"phase"`, strings.Repeat(" ", status.MaxSize)+`"phase"`),
	} {
		s, err := status.Parse([]byte(text))
		assert.ErrorIs(t, err, status.ErrNotStatus, name)
		assert.Zero(t, s, name)
	}
	// What a later launcher says beside is none of our business.
	_, err := status.Parse([]byte(replace(`"version":1`, `"version":1,"more":{"a":1}`)))
	assert.NoError(t, err)
	empty, err := status.Parse([]byte(`{"version":1,"phase":"x","since":"2026-01-02T03:04:05Z","digest":"","fallback_from":"","approved_since":""}`))
	require.NoError(t, err)
	assert.Nil(t, empty.Digest)
	clean, err := status.Parse([]byte(replace(`"launcher":"v1.2.3"`, `"launcher":"v1\u001b[2J\u202e"`)))
	require.NoError(t, err)
	assert.Equal(t, "v1 [2J", clean.Launcher)
}

// FuzzParse: what is taken can be said again, and is the same then.
func FuzzParse(f *testing.F) {
	f.Add(full().JSON())
	f.Add(running().JSON())
	f.Add([]byte(`{"version":1,"phase":"x","since":"2026-01-02T03:04:05Z"}`))
	f.Fuzz(func(t *testing.T, object []byte) {
		s, err := status.Parse(object)
		if err != nil {
			return
		}
		again, err := status.Parse(s.JSON())
		require.NoError(t, err)
		require.Equal(t, s.Line(), again.Line())
		require.NotContains(t, s.Line(), "\n")
		require.LessOrEqual(t, len(s.JSON()), status.MaxSize)
	})
}

// TestMetrics are few, described, and have no time of their own.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s := full()
	s.Reference = "a\"b\\c\nd"
	values := 0
	for line := range strings.Lines(string(s.Metrics())) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		values++
		i := strings.LastIndexByte(line, ' ')
		require.Positive(t, i, line)
		assert.Regexp(t, `^launcher_[a-z0-9_]+(\{([a-z_]+="([^"\\\n]|\\.)*",?)+\})?$`, line[:i])
	}
	assert.Equal(t, len(status.AllMetrics()), values, "all have one")
	assert.LessOrEqual(t, values, status.MaxSeries)
	assert.Contains(t, string(s.Metrics()), `reference="a\"b\\c d"`)
	assert.NotContains(t, string(running().Metrics()), "\nlauncher_staged_failed ")
	broken := running()
	broken.Staged = &status.Staged{State: "failed", Error: ptr("the list is broken")}
	assert.Contains(t, string(broken.Metrics()), `launcher_staged{digest="",state="failed"} 1`)
	assert.Contains(t, string(broken.Metrics()), "\nlauncher_staged_failed 1\n", "though nothing can be chosen")
	broken.Staged.State = status.StagingOff
	assert.NotContains(t, string(broken.Metrics()), "\nlauncher_staged")
}

func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", "FuzzParse"))
	require.NoError(t, err)
	assert.GreaterOrEqual(t, len(entries), 6)
}
