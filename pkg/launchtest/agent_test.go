package launchtest_test

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

// What dstack 0.5.8 computes for an mpc-image-digest of 32 bytes 0xab.
const (
	agentPayload = "abababababababababababababababababababababababababababababababab"
	agentDigest  = "bbbc868c4ae605790f426c8dcf9a6cd6656e767b280c4082a46e053820848e9d6c54c796e1e34ededcdbb229974e9cfd"
	agentEmit    = `{"event":"mpc-image-digest","payload":"` + agentPayload + `"}`
)

func startAgent(t *testing.T, o launchtest.AgentOptions) *launchtest.Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short, as a socket's path has to be
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	a, err := launchtest.NewAgent(filepath.Join(dir, "dstack.sock"), o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, a.Close()) })
	return a
}

// askAgent posts JSON and returns status and body of the answer.
func askAgent(t *testing.T, a *launchtest.Agent, method, body string) (int, string, error) {
	t.Helper()
	return requestAgent(t, a, http.MethodPost, "/"+method, "application/json", body)
}

func requestAgent(t *testing.T, a *launchtest.Agent, verb, path, contentType, body string) (int, string, error) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", a.Socket())
		},
	}}
	req, err := http.NewRequestWithContext(t.Context(), verb, "http://localhost"+path, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", contentType)
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	return resp.StatusCode, string(answer), err
}

type agentEntry struct {
	IMR     int    `json:"imr"`
	Type    uint32 `json:"event_type"`
	Digest  string `json:"digest"`
	Event   string `json:"event"`
	Payload string `json:"event_payload"`
}

type agentTCBInfo struct {
	RTMR0, RTMR1, RTMR2, RTMR3 string
	ComposeHash                string       `json:"compose_hash"`
	AppCompose                 string       `json:"app_compose"`
	EventLog                   []agentEntry `json:"event_log"`
}

// agentInfo asks for Info and reads the document in the document.
func agentInfo(t *testing.T, a *launchtest.Agent) agentTCBInfo {
	t.Helper()
	status, body, err := askAgent(t, a, "Info", "{}")
	require.NoError(t, err)
	require.Equal(t, 200, status, body)
	var info map[string]string
	require.NoError(t, json.Unmarshal([]byte(body), &info))
	assert.Equal(t, a.TCBInfo(), info["tcb_info"])
	var tcbInfo agentTCBInfo
	require.NoError(t, json.Unmarshal([]byte(info["tcb_info"]), &tcbInfo))
	assert.Equal(t, info["compose_hash"], tcbInfo.ComposeHash)
	return tcbInfo
}

// replayAgent extends one register with the logged digests.
func replayAgent(t *testing.T, log []agentEntry, imr int) string {
	t.Helper()
	var r [48]byte
	for _, e := range log {
		if e.IMR == imr {
			digest, err := hex.DecodeString(e.Digest)
			require.NoError(t, err)
			require.Len(t, digest, 48)
			r = sha512.Sum384(append(r[:], digest...))
		}
	}
	return hex.EncodeToString(r[:])
}

func agentNames(a *launchtest.Agent) []string {
	var names []string
	for _, e := range a.Events() {
		names = append(names, e.Name)
	}
	return names
}

func TestAgentBoot(t *testing.T) {
	t.Parallel()
	for release, storage := range map[string]bool{"": true, "0.5.0": false, "0.5.8": true, "0.5.11": true, "0.6.0": true} {
		a := startAgent(t, launchtest.AgentOptions{Release: release, AppCompose: "{}"})
		want := []string{
			"system-preparing", "app-id", "compose-hash", "instance-id", "boot-mr-done", "key-provider", "storage-fs", "system-ready",
		}
		if !storage {
			want = slices.Delete(want, 6, 7)
		}
		assert.Equal(t, want, agentNames(a), release)
		info := agentInfo(t, a)
		for imr, register := range []string{info.RTMR0, info.RTMR1, info.RTMR2, info.RTMR3} {
			assert.Equal(t, replayAgent(t, info.EventLog, imr), register, "%s: register %d", release, imr)
			assert.NotEqual(t, strings.Repeat("0", 96), register, "%s: register %d", release, imr)
		}
		assert.Equal(t, a.RTMR3(), info.RTMR3, release)
		compose := sha256.Sum256([]byte("{}"))
		assert.Equal(t, hex.EncodeToString(compose[:]), info.ComposeHash, release)
		assert.Equal(t, compose[:], a.Events()[2].Payload, release)
		assert.Equal(t, "{}", info.AppCompose, release)
		assert.Zero(t, a.Emits(), "%s: booting asks for nothing", release)
		assert.Equal(t, []string{"Info"}, a.Requests(), release)
	}
	_, err := launchtest.NewAgent(filepath.Join(t.TempDir(), "s"), launchtest.AgentOptions{Release: "0.4.0"})
	assert.Error(t, err, "an unknown release")
}

func TestAgentDefaultComposePleasesTheVerifier(t *testing.T) {
	t.Parallel()
	info := agentInfo(t, startAgent(t, launchtest.AgentOptions{}))
	var compose map[string]any
	require.NoError(t, json.Unmarshal([]byte(info.AppCompose), &compose))
	assert.Equal(t, map[string]any{
		"manifest_version": 2.0, "name": "mpc", "runner": "docker-compose", "docker_compose_file": "services: {}\n", "kms_enabled": false,
		"gateway_enabled": false, "local_key_provider_enabled": true, "key_provider_id": "", "public_logs": true, "public_sysinfo": true,
		"allowed_envs": []any{}, "no_instance_id": true, "secure_time": false,
	}, compose)
}

func TestAgentEmit(t *testing.T) {
	t.Parallel()
	recorder := &launchtest.Recorder{}
	a := startAgent(t, launchtest.AgentOptions{Recorder: recorder})
	before := a.RTMR3()
	status, body, err := askAgent(t, a, "EmitEvent", agentEmit)
	require.NoError(t, err)
	assert.Equal(t, 200, status)
	assert.Equal(t, "null", body)

	info := agentInfo(t, a)
	last := info.EventLog[len(info.EventLog)-1]
	assert.Equal(t, agentEntry{3, 134217729, agentDigest, "mpc-image-digest", agentPayload}, last)
	assert.Equal(t, replayAgent(t, info.EventLog, 3), a.RTMR3())
	assert.NotEqual(t, before, a.RTMR3())
	assert.Equal(t, 1, a.Emits())
	assert.Equal(t, []string{"emit mpc-image-digest"}, recorder.Effects())
	assert.Equal(t, []string{"EmitEvent mpc-image-digest", "Info"}, a.Requests())
	assert.Empty(t, a.Unexpected())

	// Nothing keeps anybody from emitting it again.
	status, _, err = askAgent(t, a, "EmitEvent", agentEmit)
	require.NoError(t, err)
	assert.Equal(t, 200, status)
	assert.Equal(t, 2, a.Emits())
	info = agentInfo(t, a)
	assert.Equal(t, replayAgent(t, info.EventLog, 3), info.RTMR3)
}

func TestAgentOtherContainersEmit(t *testing.T) {
	t.Parallel()
	recorder := &launchtest.Recorder{}
	a := startAgent(t, launchtest.AgentOptions{Recorder: recorder})
	a.Fail(launchtest.AgentFault{Kind: launchtest.AgentRefuses, Times: -1})
	a.Emit("mpc-image-digest", []byte{0xab})
	events := a.Events()
	assert.Equal(t, launchtest.AgentEvent{Name: "mpc-image-digest", Payload: []byte{0xab}}, events[len(events)-1])
	a.Heal()
	info := agentInfo(t, a)
	assert.Equal(t, replayAgent(t, info.EventLog, 3), info.RTMR3)
	assert.Zero(t, a.Emits())
	assert.Empty(t, recorder.Effects())
}

func TestAgentArguments(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body    string
		status  int
		payload []byte
		odd     bool // a request that no launcher makes
	}{
		"hex":            {`{"event":"launcher-probe","payload":"00ff"}`, 200, []byte{0, 0xff}, false},
		"prefix":         {`{"event":"launcher-probe","payload":"0x00ff"}`, 200, []byte{0, 0xff}, false},
		"capitals":       {`{"event":"launcher-probe","payload":"00FF"}`, 200, []byte{0, 0xff}, false},
		"unknown member": {`{"event":"launcher-probe","payload":"00","more":1}`, 200, []byte{0}, false},
		"no payload":     {`{"event":"launcher-probe"}`, 200, []byte{}, false},
		"the probe":      {`{"event":"launcher-probe","payload":"not hex"}`, 400, nil, false},
		"odd":            {`{"event":"launcher-probe","payload":"0"}`, 400, nil, false},
		"ours, not hex":  {`{"event":"mpc-image-digest","payload":"sha256:"}`, 400, nil, true},
		"not ours":       {`{"event":"vault","payload":"00"}`, 200, []byte{0}, true},
		"an array":       {`[]`, 400, nil, true},
		"not JSON":       {`event`, 400, nil, true},
		"nothing":        {``, 400, nil, true},
	} {
		a := startAgent(t, launchtest.AgentOptions{})
		booted := len(a.Events())
		status, body, err := askAgent(t, a, "EmitEvent", c.body)
		require.NoError(t, err, name)
		assert.Equal(t, c.status, status, name)
		assert.Equal(t, c.odd, len(a.Unexpected()) > 0, "%s: %v", name, a.Unexpected())
		if c.status != 200 {
			agentError(t, body, "", name)
			assert.Len(t, a.Events(), booted, "%s: nothing logged", name)
			continue
		}
		require.Len(t, a.Events(), booted+1, name)
		assert.Equal(t, c.payload, a.Events()[booted].Payload, name)
	}
}

// agentError asserts the form in which the agent says no.
func agentError(t *testing.T, body, begins, what string) {
	t.Helper()
	var answer map[string]string
	if assert.NoError(t, json.Unmarshal([]byte(body), &answer), what) {
		assert.NotEmpty(t, answer["error"], what)
		assert.True(t, strings.HasPrefix(answer["error"], begins), "%s: %s", what, body)
	}
}

func TestAgentMethods(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		release, method string
		exists          bool
	}{
		{"0.5.0", "EmitEvent", true}, {"0.5.11", "EmitEvent", true}, {"0.6.0", "EmitEvent", false}, {"0.6.0", "Info", true},
		{"0.5.8", "GetKey", false},
	} {
		a := startAgent(t, launchtest.AgentOptions{Release: c.release})
		status, body, err := askAgent(t, a, c.method, `{"event":"launcher-probe"}`)
		require.NoError(t, err)
		what := c.release + " " + c.method
		if c.exists {
			assert.Equal(t, 200, status, what)
		} else {
			assert.Equal(t, 400, status, what)
			agentError(t, body, "Service not found: "+c.method, what)
		}
		assert.Equal(t, c.method == "GetKey", len(a.Unexpected()) > 0, what)
	}
}

func TestAgentRefusesWhatIsNoCall(t *testing.T) {
	t.Parallel()
	a := startAgent(t, launchtest.AgentOptions{})
	booted := len(a.Events())
	for i, c := range [][2]string{{http.MethodPost, "text/plain"}, {http.MethodPost, ""}, {http.MethodGet, "application/json"}} {
		status, _, err := requestAgent(t, a, c[0], "/EmitEvent", c[1], agentEmit)
		require.NoError(t, err)
		assert.Equal(t, 404, status)
		assert.Len(t, a.Unexpected(), i+1)
	}
	assert.Len(t, a.Events(), booted, "nothing of that was logged")
}

func TestAgentQuoteFails(t *testing.T) {
	t.Parallel()
	for release, empty := range map[string]bool{"0.5.8": true, "0.5.11": true, "0.6.0": false} {
		a := startAgent(t, launchtest.AgentOptions{Release: release})
		a.Fail(launchtest.AgentFault{Kind: launchtest.QuoteFails})
		status, body, err := askAgent(t, a, "Info", "{}")
		require.NoError(t, err, release)
		if empty {
			assert.Equal(t, 200, status, release)
			assert.Contains(t, body, `"tcb_info": ""`, release)
		} else {
			assert.Equal(t, 400, status, release)
			agentError(t, body, "", release)
		}
		agentInfo(t, a) // works again
		assert.Equal(t, 1, a.Hits(launchtest.QuoteFails), release)
	}
}

func TestAgentFaults(t *testing.T) {
	t.Parallel()
	const nothing, lost = 0, 0
	for kind, c := range map[launchtest.AgentFaultKind]struct {
		status          int  // lost: no answer
		logged          int  // events, at once
		replays         bool // at once
		after, settled  int  // events after Release; 1 if the log replays then
		readable, hangs bool
	}{
		launchtest.AgentRefuses:   {400, nothing, true, 0, 1, true, false},
		launchtest.AgentBreaks:    {500, nothing, true, 0, 1, false, false},
		launchtest.AgentDrops:     {lost, nothing, true, 0, 1, false, false},
		launchtest.AgentHangs:     {lost, nothing, true, 0, 1, false, true},
		launchtest.AgentLoses:     {lost, 1, true, 1, 1, false, false},
		launchtest.AgentHangsDone: {lost, 1, true, 1, 1, false, true},
		launchtest.AgentGarbles:   {200, 1, true, 1, 1, false, false},
		launchtest.AgentFloods:    {200, 1, true, 1, 1, false, false},
		launchtest.EmitPoisons:    {400, 1, false, 1, 0, true, false},
		launchtest.EmitSwallows:   {200, nothing, true, 0, 1, true, false},
		launchtest.EmitSettles:    {200, 1, false, 1, 1, true, false},
		launchtest.EmitLate:       {lost, nothing, true, 1, 1, false, true},
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			a := startAgent(t, launchtest.AgentOptions{})
			booted := len(a.Events())
			a.Fail(launchtest.AgentFault{Kind: kind, Match: "EmitEvent"})
			var stopped sync.WaitGroup
			if c.hangs {
				// The agent's end is one of the two things that end it, the client's the other.
				stopped.Go(func() {
					assert.Eventually(t, func() bool { return a.Hits(kind) == 1 }, patience, time.Millisecond)
					assert.NoError(t, a.Stop())
				})
			}
			status, body, err := askAgent(t, a, "EmitEvent", agentEmit)
			stopped.Wait()
			if c.hangs {
				require.NoError(t, a.Start())
			}
			if c.status == lost {
				assert.Error(t, err)
			} else {
				assert.NoError(t, err)
				assert.Equal(t, c.status, status)
				assert.Equal(t, c.readable, json.Valid([]byte(body)), "%.100q", body)
			}
			assert.Equal(t, kind == launchtest.AgentFloods, len(body) > 10<<20, "%d bytes", len(body))
			info := agentInfo(t, a)
			assert.Len(t, a.Events(), booted+c.logged, "logged at once")
			assert.Equal(t, c.replays, replayAgent(t, info.EventLog, 3) == info.RTMR3, "replays at once")
			a.Release()
			info = agentInfo(t, a)
			assert.Len(t, a.Events(), booted+c.after, "logged in the end")
			assert.Equal(t, c.settled == 1, replayAgent(t, info.EventLog, 3) == info.RTMR3, "replays in the end")
			assert.Equal(t, c.after, a.Emits())
			assert.Equal(t, 1, a.Hits(kind))

			status, body, err = askAgent(t, a, "EmitEvent", agentEmit)
			require.NoError(t, err, "the fault is used up")
			assert.Equal(t, 200, status)
			assert.Equal(t, "null", body)
			assert.Len(t, a.Events(), booted+c.after+1)
			assert.Empty(t, a.Unexpected())
		})
	}
}

func TestAgentHangsUntilTheClientGivesUp(t *testing.T) {
	t.Parallel()
	a := startAgent(t, launchtest.AgentOptions{})
	a.Fail(launchtest.AgentFault{Kind: launchtest.EmitLate, Delay: time.Millisecond})
	booted := len(a.Events())
	conn, err := net.Dial("unix", a.Socket())
	require.NoError(t, err)
	_, err = io.WriteString(conn, "POST /EmitEvent HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"+
		"Content-Length: 2\r\n\r\n{}")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return a.Hits(launchtest.EmitLate) == 1 }, patience, time.Millisecond)
	require.NoError(t, conn.Close())
	done := func() bool { return len(a.Events()) == booted+1 }
	assert.Eventually(t, done, patience, time.Millisecond, "done when nobody waits any more")
}

func TestAgentFaultsChoose(t *testing.T) {
	t.Parallel()
	a := startAgent(t, launchtest.AgentOptions{})
	a.Fail(launchtest.AgentFault{Kind: launchtest.AgentRefuses, Match: "EmitEvent mpc", Skip: 1, Times: 2})
	a.Fail(launchtest.AgentFault{Kind: launchtest.EmitSwallows, Times: -1})
	var statuses []int
	ask := func(body string) {
		status, _, err := askAgent(t, a, "EmitEvent", body)
		require.NoError(t, err)
		statuses = append(statuses, status)
	}
	booted := len(a.Events())
	for range 4 {
		ask(agentEmit)
		ask(`{"event":"launcher-probe","payload":"00"}`)
	}
	assert.Equal(t, []int{200, 200, 400, 200, 400, 200, 200, 200}, statuses)
	assert.Equal(t, 2, a.Hits(launchtest.AgentRefuses))
	assert.Equal(t, 6, a.Hits(launchtest.EmitSwallows))
	agentInfo(t, a) // which it doesn't concern
	a.Heal()
	ask(agentEmit)
	assert.Len(t, a.Events(), booted+1)
}

func TestAgentReboot(t *testing.T) {
	t.Parallel()
	a := startAgent(t, launchtest.AgentOptions{})
	booted, events := a.RTMR3(), a.Events()
	a.Fail(launchtest.AgentFault{Kind: launchtest.EmitSettles})
	status, _, err := askAgent(t, a, "EmitEvent", agentEmit)
	require.NoError(t, err)
	require.Equal(t, 200, status)
	a.Reboot()
	a.Release()
	assert.Equal(t, events, a.Events())
	assert.Equal(t, booted, a.RTMR3(), "the last boot's extends are gone with it")
	assert.Equal(t, 1, a.Emits(), "counted over all boots")
}

func TestAgentStops(t *testing.T) {
	t.Parallel()
	a := startAgent(t, launchtest.AgentOptions{})
	a.Emit("x", nil)
	register := a.RTMR3()
	require.NoError(t, a.Stop())
	require.NoError(t, a.Stop(), "twice is nothing")
	_, _, err := askAgent(t, a, "Info", "{}")
	assert.ErrorIs(t, err, syscall.ECONNREFUSED, "the socket is there and nobody listens")
	require.NoError(t, a.Start())
	assert.Error(t, a.Start(), "it runs")
	assert.Equal(t, register, agentInfo(t, a).RTMR3, "the CVM didn't reboot")
	mode, err := os.Stat(a.Socket())
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o777), mode.Mode().Perm())
	require.NoError(t, a.Close())
	_, _, err = askAgent(t, a, "Info", "{}")
	assert.ErrorIs(t, err, os.ErrNotExist)
}
