package launchtest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// AgentOptions configures an Agent.
type AgentOptions struct {
	// Release is the dstack release that is played: "0.5.0", "0.5.8" (which is also what empty means), "0.5.11" or
	// "0.6.0".
	Release string
	// AppCompose is the measured app-compose. Empty: one that the NEAR verifier accepts.
	AppCompose string
	// Register and RuntimeDir are where 0.6 keeps what it measures, and reads it anew for each answer:
	// the register, and the directory of the event log. Nil: the agent keeps both itself.
	Register   Register
	RuntimeDir string
	LogVersion string // of the digests there; empty: "1"
	// Recorder receives "emit <event>" when an event that was asked for over the socket is logged. Nil: nothing is
	// recorded.
	Recorder *Recorder
}

// Agent is a double of dstack's guest agent: an HTTP server on a unix socket that keeps an event log and a register as
// the real one does on hardware, in its order: the log first, then the register, without a lock around both. The
// published simulators never extend anything, so nothing can be learned from them.
type Agent struct {
	socket string
	o      AgentOptions
	minor  int // of the release 0.minor.patch
	patch  int

	mu         sync.Mutex
	server     *http.Server // nil while the agent is down
	listener   net.Listener
	down       chan struct{}
	boot       []agentEvent // of the registers 0 to 2
	runtime    []agentEvent
	registers  [4][48]byte
	boots      int
	late       []func() // effects that wait, in order
	faults     []*AgentFault
	watch      func(string) AgentFaultKind
	hits       map[AgentFaultKind]int
	requests   []string
	unexpected []string
	emits      int
}

// AgentEvent is an event in RTMR3's log.
type AgentEvent struct {
	Name    string
	Payload []byte
}

type agentEvent struct {
	IMR     int    `json:"imr"`
	Type    uint32 `json:"event_type"`
	Digest  string `json:"digest"`
	Name    string `json:"event"`
	Payload string `json:"event_payload"`
}

const agentEventType = 0x08000001

// NewAgent starts an agent that listens on socket, in a CVM that has just booted.
func NewAgent(socket string, o AgentOptions) (*Agent, error) {
	if o.Release == "" {
		o.Release = "0.5.8"
	}
	if !slices.Contains([]string{"0.5.0", "0.5.8", "0.5.11", "0.6.0"}, o.Release) {
		return nil, fmt.Errorf("there is no agent of release %q", o.Release)
	}
	if o.AppCompose == "" {
		o.AppCompose = `{"manifest_version":2,"name":"mpc","runner":"docker-compose","docker_compose_file":"services: {}\n",` +
			`"kms_enabled":false,"gateway_enabled":false,"local_key_provider_enabled":true,"key_provider_id":"",` +
			`"public_logs":true,"public_sysinfo":true,"allowed_envs":[],"no_instance_id":true,"secure_time":false}`
	}
	a := &Agent{socket: socket, o: o, hits: map[AgentFaultKind]int{}}
	if _, err := fmt.Sscanf(o.Release, "0.%d.%d", &a.minor, &a.patch); err != nil {
		return nil, err
	}
	a.Reboot()
	if err := a.Start(); err != nil {
		return nil, err
	}
	return a, nil
}

// since reports whether the played release is 0.minor.patch or later.
func (a *Agent) since(minor, patch int) bool {
	return a.minor > minor || a.minor == minor && a.patch >= patch
}

// Socket returns the path of the socket.
func (a *Agent) Socket() string { return a.socket }

// Start brings up an agent that was stopped. Log and register are as they were.
func (a *Agent) Start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil {
		return errors.New("the agent runs already")
	}
	if err := os.Remove(a.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.socket, Net: "unix"})
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(a.socket, 0o777); err != nil {
		return errors.Join(err, listener.Close())
	}
	a.server = &http.Server{Handler: http.HandlerFunc(a.serve), IdleTimeout: 10 * time.Second}
	a.listener, a.down = listener, make(chan struct{})
	go a.server.Serve(listener)
	return nil
}

// Stop ends the agent; the socket stays where it was, and refuses connections.
func (a *Agent) Stop() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server == nil {
		return nil
	}
	close(a.down)
	// The listener by itself, because a server that doesn't serve yet knows none; closed twice is no error then.
	err := a.listener.Close()
	if closed := a.server.Close(); !errors.Is(closed, net.ErrClosed) {
		err = errors.Join(err, closed)
	}
	a.server = nil
	return err
}

// Close ends the agent and removes its socket.
func (a *Agent) Close() error {
	err := a.Stop()
	if removed := os.Remove(a.socket); !errors.Is(removed, os.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	return err
}

// Reboot is a boot of the CVM: log and register are empty, and then hold what dstack measures before any container runs.
// What an emit of the last boot had still to do is never done.
func (a *Agent) Reboot() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.boots++
	a.boot, a.runtime, a.registers, a.late = nil, nil, [4][48]byte{}, nil
	for imr := range 3 {
		for i := range 2 {
			digest := sha512.Sum384(fmt.Appendf(nil, "firmware event %d of register %d", i, imr))
			a.boot = append(a.boot, agentEvent{imr, 0x80000001, hex.EncodeToString(digest[:]), "", "00000000"})
			a.extend(imr, digest)
		}
	}
	if a.native() {
		a.begin()
	}
	compose := sha256.Sum256([]byte(a.o.AppCompose))
	events := []AgentEvent{
		{"system-preparing", nil}, {"app-id", compose[:20]}, {"compose-hash", compose[:]}, {"instance-id", nil}, {"boot-mr-done", nil},
		{"key-provider", []byte(`{"name":"local-sgx","id":"0000000000000000000000000000000000000000000000000000000000000000"}`)},
	}
	if a.since(5, 5) {
		events = append(events, AgentEvent{"storage-fs", []byte("zfs")})
	}
	for _, e := range append(events, AgentEvent{"system-ready", nil}) {
		a.measure(e)
	}
}

// Emit is another container's emit: it takes the agent's way but not the socket, so that it is neither counted nor recorded
// nor disturbed by a fault.
func (a *Agent) Emit(name string, payload []byte) {
	a.locked(func() { // before the agent's own: whoever has the one may ask for the other
		a.mu.Lock()
		defer a.mu.Unlock()
		a.measure(AgentEvent{name, payload})
	})
}

// Release does now, in order, what late faults have put off.
func (a *Agent) Release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	late := a.late
	a.late = nil
	for _, effect := range late {
		effect()
	}
}

// Events returns RTMR3's log of this boot.
func (a *Agent) Events() []AgentEvent {
	a.mu.Lock()
	defer a.mu.Unlock()
	var events []AgentEvent
	all, _ := a.events()
	for _, e := range all {
		payload, _ := hex.DecodeString(e.Payload) // the agent encoded it itself
		events = append(events, AgentEvent{e.Name, payload})
	}
	return events
}

// RTMR3 returns the register, in hex.
func (a *Agent) RTMR3() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	register := a.register(3)
	return hex.EncodeToString(register[:])
}

// register returns the value of a register. The lock is held.
func (a *Agent) register(imr int) [48]byte {
	if imr == 3 && a.native() {
		return a.o.Register.Value()
	}
	return a.registers[imr]
}

// TCBInfo returns the document that Info would hold.
func (a *Agent) TCBInfo() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	document, _ := a.tcbInfo()
	return document
}

// Emits returns how many events were logged over the socket, in all boots.
func (a *Agent) Emits() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.emits
}

// Requests returns the requests so far by their method, and EmitEvent's with the name of the event.
func (a *Agent) Requests() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}

// Unexpected returns the requests that nobody who knows the agent makes, with the reason.
func (a *Agent) Unexpected() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.unexpected)
}

// log appends to the log and returns the digest that is to be extended.
func (a *Agent) log(e AgentEvent) [48]byte {
	digest := eventDigest(e, 1)
	a.runtime = append(a.runtime, agentEvent{3, agentEventType, hex.EncodeToString(digest[:]), e.Name, hex.EncodeToString(e.Payload)})
	return digest
}

func (a *Agent) extend(imr int, digest [48]byte) {
	a.registers[imr] = sha512.Sum384(append(a.registers[imr][:], digest[:]...))
}

// putOff keeps an effect for Release, or does it after delay.
func (a *Agent) putOff(delay time.Duration, effect func()) {
	if delay == 0 {
		a.late = append(a.late, effect)
		return
	}
	boot := a.boots
	time.AfterFunc(delay, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.boots == boot {
			effect()
		}
	})
}

// agentRefusal is an error of a handler: 400 and the text.
type agentRefusal string

func (e agentRefusal) Error() string { return string(e) }

// serve answers what the launcher asks: calls of EmitEvent and Info, in JSON. What else comes is refused as unknown and
// remembered.
func (a *Agent) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	method := strings.TrimPrefix(r.URL.Path, "/")
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		a.odd(r.Method + " " + r.URL.Path + ": not a call in JSON")
		http.NotFound(w, r)
		return
	}
	answer, err := a.call(r, method, body)
	if errors.Is(err, errAgentBreaks) {
		http.Error(w, "<h1>"+err.Error()+"</h1>", http.StatusInternalServerError)
		return
	}
	if garbage, ok := answer.(io.Reader); ok {
		_, _ = io.Copy(w, garbage)
		return
	}
	status := http.StatusOK
	if err != nil {
		status, answer = http.StatusBadRequest, map[string]string{"error": err.Error()}
	}
	document := must(json.MarshalIndent(answer, "", "  "))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(document)
}

// odd remembers a request that nobody should make.
func (a *Agent) odd(request string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unexpected = append(a.unexpected, request)
}

// call decodes the arguments, which comes before anything a method does, and hands over to what is to happen.
func (a *Agent) call(r *http.Request, method string, body []byte) (any, error) {
	var arguments struct{ Event, Payload string }
	invalid := json.Unmarshal(body, &arguments)
	request := method
	if method == "EmitEvent" {
		request += " " + arguments.Event
	}
	a.mu.Lock()
	a.requests = append(a.requests, request)
	down, watch := a.down, a.watch
	a.mu.Unlock()
	var wrong AgentFaultKind
	if watch != nil {
		wrong = watch(request)
	}

	switch {
	case invalid != nil:
		a.odd(request + ": " + invalid.Error())
		return nil, agentRefusal("Failed to decode request: " + invalid.Error())
	case method == "Info":
		return a.disturb(r.Context().Done(), down, request, agentMethod{answer: a.info, wrong: wrong})
	case method != "EmitEvent" || a.minor >= 6:
		if method != "EmitEvent" {
			a.odd(request + ": no such method")
		}
		return nil, agentRefusal("Service not found: " + method)
	}
	if !slices.Contains([]string{"mpc-image-digest", "launcher-probe"}, arguments.Event) {
		a.odd(request + ": no event of the launcher's")
	}
	payload, err := hex.DecodeString(strings.TrimPrefix(arguments.Payload, "0x"))
	if err != nil {
		if arguments.Event != "launcher-probe" {
			a.odd(request + ": " + err.Error())
		}
		return nil, agentRefusal("Failed to decode request: " + err.Error())
	}
	return a.disturb(r.Context().Done(), down, request, agentMethod{emits: &AgentEvent{arguments.Event, payload}, wrong: wrong})
}

// info is Info's answer to a quote that was made.
func (a *Agent) info() (any, error) {
	document, err := a.tcbInfo()
	return a.infoWith(document), err
}

func (a *Agent) infoWith(tcbInfo string) any {
	compose := sha256.Sum256([]byte(a.o.AppCompose))
	return map[string]string{
		"app_id": hex.EncodeToString(compose[:20]), "instance_id": "", "device_id": agentDeviceID(), "app_name": "mpc",
		"app_cert": "", "compose_hash": hex.EncodeToString(compose[:]), "os_image_hash": agentImageHash(), "mr_aggregated": "",
		"key_provider_info": `{"name":"local-sgx","id":""}`, "vm_config": "{}", "tcb_info": tcbInfo,
	}
}

func (a *Agent) tcbInfo() (string, error) {
	runtime, err := a.events()
	if err != nil {
		return "", err
	}
	compose := sha256.Sum256([]byte(a.o.AppCompose))
	register := func(i int) string {
		value := a.register(i)
		return hex.EncodeToString(value[:])
	}
	return string(must(json.MarshalIndent(map[string]any{
		"mrtd": strings.Repeat("0d", 48), "rtmr0": register(0), "rtmr1": register(1), "rtmr2": register(2), "rtmr3": register(3),
		"os_image_hash": agentImageHash(), "compose_hash": hex.EncodeToString(compose[:]), "device_id": agentDeviceID(),
		"app_compose": a.o.AppCompose, "event_log": slices.Concat(a.boot, runtime),
	}, "", "  "))), nil
}

func agentDeviceID() string  { return strings.Repeat("de", 32) }
func agentImageHash() string { return strings.Repeat("05", 32) }
