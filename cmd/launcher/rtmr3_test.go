package main_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

// realLog is a document of real hardware; its origin stands beside it.
const (
	realLog      = "../../testdata/rtmr/tcb_info-dstack-0.5.8-dev.json"
	realQuote    = "../../testdata/rtmr/getquote-dstack-0.6-stripped.json"
	realImage    = "sha256:564a5aebc33495d5610626d23cb9e3da8e9d531d0edff9e38aa1ccaf059c15d3"
	realRegister = "86f1808cffc050f3c0c09d29da2bfcec7eba3e8fa52016a7341f28884230f9ca8b56400413d57bce00b578e36790b555"
)

type replayed struct {
	Events    []struct{ Event, Payload, Digest, Image string }
	Replayed  string
	Reported  string
	Quoted    string
	Image     string
	Accepted  bool
	Reason    string
	Predicted string
}

func replay(t *testing.T, stdin string, environ []string, args ...string) (r replayed, stderr string, code exit.Code) {
	t.Helper()
	var out, errs bytes.Buffer
	code = main.Run(t.Context(), append([]string{"rtmr3", "-o", "json"}, args...), environ, strings.NewReader(stdin), &out, &errs)
	if out.Len() > 0 {
		require.NoError(t, json.Unmarshal(out.Bytes(), &r), "%s", out.String())
	}
	return r, errs.String(), code
}

func TestRTMR3OfRealHardware(t *testing.T) {
	t.Parallel()
	r, stderr, code := replay(t, "", nil, "--event-log", realLog, "--expect", realImage)
	assert.Equal(t, exit.OK, code, "%s", stderr)
	assert.Empty(t, stderr)
	assert.True(t, r.Accepted)
	assert.Equal(t, realImage, r.Image)
	assert.Equal(t, realRegister, r.Replayed)
	assert.Equal(t, realRegister, r.Reported)
	require.Len(t, r.Events, 9)
	assert.Equal(t, "mpc-image-digest", r.Events[8].Event)
	assert.Equal(t, realImage, r.Events[8].Image)

	data, err := os.ReadFile(realLog)
	require.NoError(t, err)
	fromStdin, _, code := replay(t, string(data), nil, "--event-log", "-")
	assert.Equal(t, exit.OK, code)
	assert.Equal(t, r, fromStdin)

	r, stderr, code = replay(t, "", nil, "--event-log", realLog, "--expect", zeros)
	assert.Equal(t, exit.Measurement, code)
	assert.True(t, r.Accepted, "by a verifier who approves of it")
	assert.Contains(t, r.Reason, "OtherDigest")
	assert.Contains(t, stderr, "error: event log: OtherDigest")

	r, _, code = replay(t, "", nil, "--event-log", realQuote)
	assert.Equal(t, exit.Measurement, code)
	assert.False(t, r.Accepted)
	assert.Contains(t, r.Reason, "MissingEvent")
	assert.Equal(t, r.Replayed, r.Quoted)

	stdout, _, code := run(t, nil, "rtmr3", "--event-log", realLog)
	assert.Equal(t, exit.OK, code)
	for _, want := range []string{"replayed  " + realRegister, "reported  " + realRegister, "accepted  " + realImage, `"mpc-image-digest"  ` + realImage} {
		assert.Contains(t, stdout, want)
	}
}

func TestRTMR3OfTheAgent(t *testing.T) {
	t.Parallel()
	m, err := launchtest.NewMachine(launchtest.MachineOptions{Images: 1})
	require.NoError(t, err)
	defer m.Close()
	environ := []string{"LAUNCHER_DSTACK_SOCKET=" + m.AgentSocket}
	image := m.Digests[0]

	r, stderr, code := replay(t, "", environ)
	assert.Equal(t, exit.Measurement, code, "%s", stderr)
	assert.Contains(t, r.Reason, "MissingEvent")

	r, stderr, code = replay(t, "", environ, "--predict", image.String())
	assert.Equal(t, exit.OK, code, "%s", stderr)
	assert.False(t, r.Accepted)
	m.Agent.Emit(rtmr.EventName, image[:])
	assert.Equal(t, m.Agent.RTMR3(), r.Predicted)

	r, _, code = replay(t, "", environ, "--expect", image.String())
	assert.Equal(t, exit.OK, code)
	assert.Equal(t, m.Agent.RTMR3(), r.Reported)

	r, stderr, code = replay(t, "", environ, "--predict", image.String())
	assert.Equal(t, exit.Measurement, code)
	assert.True(t, r.Accepted)
	assert.Contains(t, stderr, "a second event would be refused")
	assert.NotEmpty(t, r.Predicted)

	m.Agent.Emit(rtmr.EventName, image[:])
	for _, args := range [][]string{nil, {"--expect", image.String()}, {"--predict", image.String()}} {
		r, _, code = replay(t, "", environ, args...)
		assert.Equal(t, exit.Measurement, code, "%v", args)
		assert.Contains(t, r.Reason, "DuplicateEvent")
	}
	for _, request := range m.Agent.Requests() {
		assert.Equal(t, "Info", request)
	}

	require.NoError(t, m.Agent.Stop())
	_, stderr, code = replay(t, "", environ)
	assert.Equal(t, exit.Measurement, code)
	assert.Contains(t, stderr, "hint: ")
}

// TestRTMR3AgreesWithTheVerifier runs the verifier's verdicts through the command.
func TestRTMR3AgreesWithTheVerifier(t *testing.T) {
	t.Parallel()
	const dir = "../../testdata/verdicts/"
	data, err := os.ReadFile(dir + "verdicts.json")
	require.NoError(t, err)
	var verdicts map[string]string
	require.NoError(t, json.Unmarshal(data, &verdicts))
	for name, want := range verdicts {
		if strings.HasPrefix(name, "A") || name == "00-good-app-compose.json" {
			stdout, _, code := run(t, nonTEE(t), "verify", "--skip",
				"config,registry,engine,compose,agent,host", "--app-compose", dir+name)
			assert.Equal(t, want == "accept", code == exit.OK, "%s: %s", name, stdout)
			assert.NotContains(t, stdout, "would succeed", name)
			continue
		}
		r, stderr, code := replay(t, "", nil, "--event-log", dir+name)
		assert.Equal(t, want == "accept", r.Accepted, "%s: %s", name, stderr)
		assert.Equal(t, want == "accept", code == exit.OK, "%s: %s", name, stderr)
	}
}

// TestRunGoesOnWhereVerifiersRefuseTheAppCompose: an older attestation may still count.
func TestRunGoesOnWhereVerifiersRefuseTheAppCompose(t *testing.T) {
	t.Parallel()
	compose, err := os.ReadFile("../../testdata/verdicts/A1-app-compose-no-gateway_enabled.json")
	require.NoError(t, err)
	m, err := launchtest.NewMachine(launchtest.MachineOptions{
		Agent: launchtest.AgentOptions{AppCompose: string(compose)},
	})
	require.NoError(t, err)
	defer m.Close()

	stdout, stderr, code := run(t, onMachine(m), "verify")
	assert.Equal(t, exit.Measurement, code, "%s", stdout)
	assert.Contains(t, stdout, "APP002 error: gateway_enabled is missing: it must be false")
	assert.Contains(t, stdout, "run would go on, but verifiers would refuse the node")
	assert.Equal(t, "error: run would go on, and verify ends with exit code 8\n", stderr)

	_, stderr, code = runUntilSupervised(t, onMachine(m), "run")
	assert.Equal(t, exit.OK, code, "%s", stderr)
	assert.Contains(t, stderr, "level=WARN msg=\"verifiers would refuse this node\"")
	assert.Equal(t, 1, m.Agent.Emits())

	_, stderr, code = replay(t, "", onMachine(m))
	assert.Equal(t, exit.Measurement, code)
	assert.Contains(t, stderr, "error: event log: AppCompose: gateway_enabled is missing")
}

func TestRTMR3OfWhatIsNoLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	require.NoError(t, os.WriteFile(large, nil, 0o600))
	require.NoError(t, os.Truncate(large, rtmr.MaxSize+1))
	for _, c := range []struct {
		stdin string
		args  []string
		code  exit.Code
	}{
		{args: []string{"--event-log", dir + "/none"}, code: exit.Config},
		{args: []string{"--event-log", dir}, code: exit.Config},
		{args: []string{"--event-log", large}, code: exit.Config},
		{args: []string{"--event-log", ""}, code: exit.Config},
		{stdin: "", args: []string{"--event-log", "-"}, code: exit.Config},
		{stdin: "{}", args: []string{"--event-log", "-"}, code: exit.Config},
		{stdin: `{"tcb_info":""}`, args: []string{"--event-log", "-"}, code: exit.Config},
		{stdin: "[]", args: []string{"--event-log", "-"}, code: exit.Measurement},
		{args: []string{"--event-log", realLog, "--expect", "564a5aeb"}, code: exit.Usage},
		{args: []string{"--event-log", realLog, "--predict", ""}, code: exit.Usage},
		{args: []string{realLog}, code: exit.Usage},
	} {
		r, stderr, code := replay(t, c.stdin, nil, c.args...)
		assert.Equal(t, c.code, code, "%v: %s", c.args, stderr)
		assert.False(t, r.Accepted)
		assert.Equal(t, 1, strings.Count(stderr, "error: "), "%v: %s", c.args, stderr)
	}
}

// TestRTMR3ShowsNoNameAsItIs: whoever emits an event chooses its name.
func TestRTMR3ShowsNoNameAsItIs(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	log := `[{"imr":3,"event_type":134217729,"event":"x\naccepted  sha256:00\u001b[2K","event_payload":"","digest":""}]`
	code := main.Run(t.Context(), []string{"rtmr3", "--event-log", "-"}, nil, strings.NewReader(log), &out, &errs)
	assert.Equal(t, exit.Measurement, code)
	assert.NotContains(t, out.String(), "\naccepted")
	assert.NotContains(t, out.String(), "\x1b")
}
