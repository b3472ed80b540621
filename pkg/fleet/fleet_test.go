package fleet_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/fleet"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/status"
)

func ptr[T any](v T) *T { return &v }

func image() digest.Digest { return digest.Of([]byte("image")) }

// node is a CVM as it is seen from outside.
type node struct {
	launchtest.Outside
	says status.Status // its launcher
}

// newNode returns one whose workload runs, measured.
func newNode(t *testing.T) *node {
	t.Helper()
	// In a directory with a short name: it is a socket's.
	dir, err := os.MkdirTemp("", "node")
	require.NoError(t, err)
	agent, err := launchtest.NewAgent(filepath.Join(dir, "agent.sock"), launchtest.AgentOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, agent.Close())
		assert.NoError(t, os.RemoveAll(dir))
	})
	measured := image()
	agent.Emit(rtmr.EventName, measured[:])
	n := &node{}
	n.Agent, n.PublicTCBInfo = agent, true
	n.says = status.Status{
		Version: status.Version, Phase: status.Supervise, Since: time.Now().Add(-time.Hour).UTC(), BootID: "boot",
		Digest: &measured, Measured: ptr(true), RTMR3: agent.RTMR3(), Launcher: "v1.2.3",
	}
	return n
}

// start has it listen.
func (n *node) start(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(n)
	t.Cleanup(server.Close)
	return server.URL
}

func (n *node) say() { n.Log("launcher", n.says.Line()+"\n") }

func ask(t *testing.T, r *fleet.Reader, names ...string) []fleet.Answer {
	t.Helper()
	var nodes []fleet.Node
	for _, name := range names {
		node, err := fleet.ParseNode(name)
		require.NoError(t, err)
		nodes = append(nodes, node)
	}
	answers := r.Ask(t.Context(), nodes)
	require.Len(t, answers, len(names))
	for _, a := range answers {
		assert.False(t, a.Attested, "no quote is verified here")
		text, err := json.Marshal(a)
		require.NoError(t, err)
		for _, r := range string(text) {
			require.True(t, unicode.IsPrint(r), "%q in %s", r, text)
		}
		assert.Equal(t, a.Code != exit.OK, a.Problem != "", "%+v", a)
	}
	return answers
}

func TestANodeThatRuns(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.Log("launcher", "time=… level=INFO msg=hello\n")
	n.say()
	n.Log("launcher", "mpc-node: "+strings.Replace(n.says.Line(), "v1.2.3", "forged", 1)+"\n")
	n.Log("launcher", "time=… level=INFO msg=bye\n")
	a := ask(t, new(fleet.Reader), n.start(t))[0]
	assert.Equal(t, exit.OK, a.Code)
	assert.Equal(t, fleet.Consistent, a.Evidence)
	assert.Equal(t, "v1.2.3", a.Status.Launcher)
	assert.Equal(t, image(), *a.Measured)
	assert.Equal(t, n.Agent.RTMR3(), a.RTMR3)
	require.NotNil(t, a.SaidAt)
	assert.WithinDuration(t, time.Now(), *a.SaidAt, time.Hour)
	assert.Empty(t, a.Notes)
}

// TestWhatNodesSay is a table of how a node can be, and of how it can lie.
func TestWhatNodesSay(t *testing.T) {
	t.Parallel()
	other := digest.Of([]byte("other"))
	answers := func(body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/logs/") {
				_, _ = io.WriteString(w, body)
				return true
			}
			return false
		}
	}
	for name, c := range map[string]struct {
		arrange  func(n *node)
		code     exit.Code
		evidence fleet.Evidence
		problem  string // is in it
		note     string // is in one
	}{
		"its register is hidden": {func(n *node) { n.PublicTCBInfo = false; n.say() }, exit.OK, fleet.Said, "", "public_tcbinfo"},
		"its agent has no quote": {func(n *node) { n.Agent = nil; n.say() }, exit.OK, fleet.Said, "", "status 400"},
		"its log is hidden":      {func(n *node) { n.HideLogs = true }, exit.Unavailable, fleet.Consistent, "public_logs", ""},
		"no launcher":            {func(*node) {}, exit.Unavailable, fleet.Consistent, "No such container: launcher", ""},
		"another launcher":       {func(n *node) { n.Log("launcher", "[INFO] launching\n") }, exit.Unavailable, fleet.Consistent, "somebody else's", ""},
		"nothing is in the log":  {func(n *node) { n.Log("launcher", "\n") }, exit.Unavailable, fleet.Consistent, "no status in ", ""},
		"it waits": {func(n *node) {
			n.says.Phase, n.says.Error = status.Waiting, &status.Error{Code: exit.Refused, Message: "pull: 404"}
			n.say()
		}, exit.Refused, fleet.Consistent, "pull: 404", ""},
		"it boots": {func(n *node) {
			n.says.Phase, n.says.Measured, n.says.RTMR3, n.says.Percent = "load", ptr(false), "", ptr(7)
			n.say()
		}, exit.Unavailable, fleet.Consistent, "load, 7%", ""},
		"the workload doesn't run": {func(n *node) {
			n.says.Error = &status.Error{Code: exit.Workload, Message: "exited"}
			n.say()
		}, exit.Workload, fleet.Consistent, "exited", ""},
		"it was ended": {func(n *node) {
			n.says.Phase, n.says.Error = "pull", &status.Error{Code: exit.Terminated, Message: "by a signal"}
			n.say()
		}, exit.Workload, fleet.Consistent, "ended with 143: by a signal", ""},
		"the latest word counts": {func(n *node) {
			n.say()
			n.says.Error = &status.Error{Code: exit.Engine, Message: "x"}
			n.say()
		}, exit.Engine, fleet.Consistent, "x", ""},
		"it names another image":   {func(n *node) { n.says.Digest = &other; n.say() }, exit.Measurement, fleet.Contradicted, "and the event log says " + image().String(), ""},
		"it runs unmeasured":       {func(n *node) { n.says.Measured, n.says.RTMR3 = ptr(false), ""; n.say() }, exit.Measurement, fleet.Consistent, "isn't measured", ""},
		"it says that it's no CVM": {func(n *node) { n.says.Measured = nil; n.say() }, exit.Measurement, fleet.Contradicted, "no CVM", ""},
		"of an earlier boot":       {func(n *node) { n.Agent.Reboot(); n.say() }, exit.Measurement, fleet.Contradicted, "earlier boot", ""},
		"another register":         {func(n *node) { n.says.RTMR3 = strings.Repeat("ab", 48); n.say() }, exit.Measurement, fleet.Contradicted, "never had", ""},
		"somebody emits later":     {func(n *node) { n.say(); n.Agent.Emit("later", []byte("x")) }, exit.OK, fleet.Consistent, "", "emitted after"},
		"newer ones are approved": {func(n *node) {
			n.says.Approved, n.says.ApprovedSince = ptr(2), ptr(time.Now().Add(-73*time.Hour))
			n.say()
		}, exit.OK, fleet.Consistent, "", "2 newer approved, for 3d"},
		"a fallback": {func(n *node) { n.says.FallbackFrom = &other; n.say() }, exit.OK, fleet.Consistent, "", "fallback: " + other.String()},
		"staging fails": {func(n *node) {
			n.says.Staged = &status.Staged{Digest: &other, State: "failed", Error: ptr("404\x1b[2J")}
			n.say()
		}, exit.OK, fleet.Consistent, "", "staging: 404 [2J"},
		"it isn't approved any more": {func(n *node) {
			n.says.Approved, n.says.ApprovedSince = ptr(-1), ptr(time.Now().Add(-90*time.Minute))
			n.say()
		}, exit.OK, fleet.Consistent, "", "not in the approved list, for 1h"},
		"two image events": {func(n *node) {
			n.say()
			n.Agent.Emit(rtmr.EventName, other[:])
		}, exit.Measurement, fleet.Contradicted, "DuplicateEvent", ""},
		"a log that doesn't replay": {func(n *node) {
			n.say()
			n.Fault = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/prpc/Worker.Info" {
					return false
				}
				var info, tcb map[string]any
				_ = json.Unmarshal([]byte(n.Agent.TCBInfo()), &tcb)
				tcb["rtmr3"] = strings.Repeat("ab", 48)
				text, _ := json.Marshal(tcb)
				info = map[string]any{"tcb_info": string(text)}
				_ = json.NewEncoder(w).Encode(info)
				return true
			}
		}, exit.Measurement, fleet.Contradicted, "WrongRegister", ""},
		"huge Info": {func(n *node) {
			n.say()
			n.Fault = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/prpc/Worker.Info" {
					return false
				}
				_, _ = io.Copy(w, io.LimitReader(endless("[0,"), 3<<20))
				return true
			}
		}, exit.OK, fleet.Said, "", "more than 2 MiB"},
		"it redirects": {func(n *node) {
			n.Fault = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "http://127.0.0.1:1/x", http.StatusFound)
				return true
			}
		}, exit.Unavailable, fleet.Nothing, "log: status 302", "status 302"},
		"a huge log": {func(n *node) {
			n.say()
			n.Fault = func(w http.ResponseWriter, r *http.Request) bool { return flood(w, r, n.says.Line()) }
		}, exit.Unavailable, fleet.Consistent, "more than 4 MiB", ""},
		"binary":             {func(n *node) { n.Fault = answers("\x00\x01\xff\xfe launcher-status \x00{") }, exit.Unavailable, fleet.Consistent, "no status", ""},
		"control characters": {func(n *node) { n.Fault = answers("launcher-status {\"\x1b[2J\r\u202e\n") }, exit.Unavailable, fleet.Consistent, "the last line of a status is none", ""},
		"in its error":       {func(n *node) { n.Fault = answers(`{"error":"\u001b[2J\u202e\r\nforged"}`) }, exit.Unavailable, fleet.Consistent, "the agent says: [2J forged", ""},
		"a status in the middle of a line": {func(n *node) {
			n.Fault = answers("x" + n.says.Line() + "\n\r" + n.says.Line() + "\n\x00" + n.says.Line())
		}, exit.Unavailable, fleet.Consistent, "no status", ""},
		"a line that is too long": {func(n *node) {
			n.Fault = answers(n.says.Line() + "\n" + n.says.Line() + strings.Repeat(" ", 9000) + "\n" + "x\n")
		}, exit.Unavailable, fleet.Consistent, "the last line of a status is none", ""},
		"a status behind a line that is too long": {func(n *node) { n.Fault = answers(strings.Repeat("x", 4096) + n.says.Line() + "\n") }, exit.Unavailable, fleet.Consistent, "no status", ""},
		"half of a status":                        {func(n *node) { n.Fault = answers(n.says.Line()[:200]) }, exit.Unavailable, fleet.Consistent, "the last line of a status is none", ""},
		"of a later version":                      {func(n *node) { n.says.Version = 2; n.say() }, exit.Unavailable, fleet.Consistent, "version 2", ""},
		"garbage in its words": {func(n *node) {
			n.says.Error = &status.Error{Code: exit.Engine, Message: "\x1b[31mred\u202e\nlauncher-status {}"}
			n.say()
		}, exit.Engine, fleet.Consistent, "[31mred launcher-status {}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			c.arrange(n)
			a := ask(t, new(fleet.Reader), n.start(t))[0]
			assert.Equal(t, c.code, a.Code, "%+v", a)
			assert.Equal(t, c.evidence, a.Evidence, "%+v", a)
			assert.Contains(t, a.Problem, c.problem)
			if c.note == "" {
				assert.Empty(t, a.Notes)
			} else {
				require.Len(t, a.Notes, 1)
				assert.Contains(t, a.Notes[0], c.note)
			}
		})
	}
}

// flood answers with a log that has no end.
func flood(w http.ResponseWriter, r *http.Request, line string) bool {
	if !strings.HasPrefix(r.URL.Path, "/logs/") {
		return false
	}
	_, _ = io.Copy(w, io.LimitReader(endless(line+"\n"), 64<<20))
	return true
}

// endless is a text again and again.
type endless string

func (e endless) Read(p []byte) (n int, err error) {
	for n+len(e) <= len(p) {
		n += copy(p[n:], e)
	}
	if n == 0 {
		n = copy(p, e)
	}
	return n, nil
}

func TestExpect(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		arrange func(n *node)
		expect  digest.Digest
		code    exit.Code
	}{
		"it is that":             {func(n *node) { n.say() }, image(), exit.OK},
		"it is another":          {func(n *node) { n.say() }, digest.Of(nil), exit.Measurement},
		"it says only that":      {func(n *node) { n.PublicTCBInfo = false; n.say() }, image(), exit.OK},
		"it says only another":   {func(n *node) { n.PublicTCBInfo = false; n.say() }, digest.Of(nil), exit.Measurement},
		"it doesn't say":         {func(n *node) { n.PublicTCBInfo, n.says.Digest = false, nil; n.say() }, image(), exit.Measurement},
		"no launcher, but a log": {func(*node) {}, digest.Of(nil), exit.Measurement},
		"nothing is known of it": {func(n *node) { n.PublicTCBInfo = false }, image(), exit.Unavailable},
		"it waits for another":   {func(n *node) { n.PublicTCBInfo = false; n.says.Phase = "waiting"; n.say() }, digest.Of(nil), exit.Measurement},
	} {
		n := newNode(t)
		c.arrange(n)
		a := ask(t, &fleet.Reader{Expect: &c.expect}, n.start(t))[0]
		assert.Equal(t, c.code, a.Code, "%s: %+v", name, a)
	}
}

// TestTheWorstFirst, and its code is that of all.
func TestTheWorstFirst(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var names []string
	for _, code := range []exit.Code{0, 4, 3, 9, 5, 8, 7, 6} {
		s := newStatus()
		if code != 0 {
			s.Phase, s.Error = status.Waiting, &status.Error{Code: code, Message: "x"}
		}
		name := filepath.Join(dir, fmt.Sprint(int(code)))
		require.NoError(t, os.WriteFile(name, []byte(s.Line()+"\n"), 0o600))
		names = append(names, name)
	}
	answers := ask(t, new(fleet.Reader), names...)
	var order []exit.Code
	for _, a := range answers {
		order = append(order, a.Code)
		assert.Equal(t, fleet.Said, a.Evidence)
	}
	assert.Equal(t, []exit.Code{8, 9, 6, 7, 5, 3, 4, 0}, order)
	assert.Equal(t, exit.Measurement, fleet.Worst(answers))
	assert.Equal(t, exit.Config, fleet.Worst(answers[5:]))
	assert.Equal(t, exit.OK, fleet.Worst(answers[7:]))
}

func newStatus() status.Status {
	return status.Status{
		Version: status.Version, Phase: status.Supervise, Since: time.Now().UTC(), BootID: "boot",
		Digest: ptr(image()), Measured: ptr(true), RTMR3: strings.Repeat("ab", 48),
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	stdin := "2026-01-02T03:04:05.123456789Z " + newStatus().Line() + "\r\n"
	answers := ask(t, &fleet.Reader{Stdin: strings.NewReader(stdin)}, fleet.Stdin, filepath.Join(t.TempDir(), "none"))
	assert.Equal(t, exit.Config, answers[0].Code)
	assert.Contains(t, answers[0].Problem, "http://host:8090")
	assert.Equal(t, exit.OK, answers[1].Code)
	assert.Equal(t, 2026, answers[1].SaidAt.Year())
	require.Len(t, answers[1].Notes, 1, "that was long ago")

	// Nobody writes to it, and somebody wants to go.
	reading, writing := io.Pipe()
	defer writing.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	node, err := fleet.ParseNode(fleet.Stdin)
	require.NoError(t, err)
	gone := (&fleet.Reader{Stdin: reading}).Ask(ctx, []fleet.Node{node})
	assert.Equal(t, exit.Unavailable, gone[0].Code)
}

func TestParseNode(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "ftp://x", "http://", "http://u:p@x", "http://x?a", "http://x#a", "http://%zz", "://"} {
		_, err := fleet.ParseNode(s)
		assert.Error(t, err, s)
		assert.NotContains(t, fmt.Sprint(err), "u:p")
	}
	for s, want := range map[string]string{
		"http://x:8090/": "http://x:8090", "https://x/y/": "https://x/y", "log": "log", "-": "-", "http://[::1]:8090": "http://[::1]:8090",
	} {
		n, err := fleet.ParseNode(s)
		assert.NoError(t, err, s)
		assert.Equal(t, want, n.String())
	}
}

// TestAnInfoIsAskedForOnce as long as the launcher says the same: each makes a quote.
func TestAnInfoIsAskedForOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.say()
	url, r := n.start(t), new(fleet.Reader)
	infos := func() (count int) {
		for _, path := range n.Requests() {
			if path == "/prpc/Worker.Info" {
				count++
			}
		}
		return count
	}
	for range 3 {
		assert.Equal(t, fleet.Consistent, ask(t, r, url)[0].Evidence)
	}
	assert.Equal(t, 1, infos())
	n.says.BootID = "next"
	n.say()
	assert.Equal(t, fleet.Consistent, ask(t, r, url)[0].Evidence)
	assert.Equal(t, 2, infos())
}

// TestAHundredNodes are answered for in ten seconds, whatever they do: with connections in this
// process and real servers, on a clock of its own.
func TestAHundredNodes(t *testing.T) {
	t.Parallel()
	good := newNode(t) // its agent isn't of the bubble, but only its locks are used there
	synctest.Test(t, func(t *testing.T) {
		var network launchtest.Network
		var names []string
		var servers []*http.Server
		kinds := []func(w http.ResponseWriter, r *http.Request) bool{
			func(http.ResponseWriter, *http.Request) bool { return false },
			func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, // says nothing
			func(w http.ResponseWriter, r *http.Request) bool { // says a little now and then
				for r.Context().Err() == nil {
					_, _ = io.WriteString(w, "x\n")
					_ = http.NewResponseController(w).Flush()
					time.Sleep(time.Second)
				}
				return true
			},
			func(w http.ResponseWriter, r *http.Request) bool { return flood(w, r, good.says.Line()) },
		}
		for i := range 100 {
			host := fmt.Sprintf("node-%d:8090", i)
			names = append(names, "http://"+host)
			if i%5 == 4 {
				continue // it isn't there
			}
			n := &node{says: good.says}
			n.Agent, n.PublicTCBInfo, n.Fault = good.Agent, true, kinds[i%5]
			n.say()
			l, err := network.Listen(host)
			require.NoError(t, err)
			s := &http.Server{Handler: n}
			servers = append(servers, s)
			go func() { _ = s.Serve(l) }()
		}
		r := fleet.Reader{Client: &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, kind, address string) (net.Conn, error) {
				c, err := network.Dial(ctx, kind, address)
				if err != nil {
					time.Sleep(30 * time.Second) // nobody refuses either
				}
				return c, err
			},
		}}}
		begin := time.Now()
		answers := ask(t, &r, names...)
		assert.LessOrEqual(t, time.Since(begin), 10*time.Second)
		codes := map[exit.Code]int{}
		for _, a := range answers {
			codes[a.Code]++
		}
		assert.Equal(t, map[exit.Code]int{exit.OK: 20, exit.Unavailable: 80}, codes)
		for _, s := range servers {
			assert.NoError(t, s.Close())
		}
		time.Sleep(time.Minute) // until all of it has noticed
	})
}

// FuzzLog: whatever a log holds, its node gets a code that is one of a node's, and what is told of it
// can be shown.
func FuzzLog(f *testing.F) {
	f.Fuzz(func(t *testing.T, log []byte) {
		node, err := fleet.ParseNode(fleet.Stdin)
		require.NoError(t, err)
		a := (&fleet.Reader{Stdin: strings.NewReader(string(log))}).Ask(t.Context(), []fleet.Node{node})[0]
		require.Contains(t, []exit.Code{0, 3, 4, 5, 6, 7, 8, 9}, a.Code)
		require.Equal(t, a.Status == nil, a.Evidence == fleet.Nothing)
		if a.Status != nil {
			require.Contains(t, string(log), status.Prefix)
		}
		for _, r := range a.Problem + strings.Join(a.Notes, "") {
			require.True(t, unicode.IsPrint(r), "%q", r)
		}
	})
}

func TestSeedsAreThere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"status", "stamped", "prefixed", "two", "long", "agent", "crlf"} {
		_, err := os.Stat(filepath.Join("testdata", "fuzz", "FuzzLog", name))
		assert.NoError(t, err)
	}
}
