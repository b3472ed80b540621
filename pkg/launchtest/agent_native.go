package launchtest

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Register is RTMR3 outside of the agent.
type Register interface {
	Value() [48]byte
	Extend(digest [48]byte)
	Reset()
}

// The files of dstack's event log.
const (
	agentLog     = "runtime_events.log"
	agentLock    = "runtime_event.lock"
	agentVersion = "runtime_event_version"
)

// native reports whether log and register are outside of the agent, as they are from 0.6 on.
func (a *Agent) native() bool { return a.o.Register != nil }

// measure records an event: in the agent's own log and register, or in those outside, where the
// register comes first. The lock is held.
func (a *Agent) measure(e AgentEvent) {
	if !a.native() {
		a.extend(3, a.log(e))
		return
	}
	version, _ := strconv.Atoi(a.o.LogVersion)
	a.o.Register.Extend(eventDigest(e, version))
	a.append(e)
}

// locked does something under dstack's lock, as every dstack process does that measures.
func (a *Agent) locked(do func()) {
	if !a.native() {
		do()
		return
	}
	lock := must(os.OpenFile(filepath.Join(a.o.RuntimeDir, agentLock), os.O_WRONLY|os.O_CREATE, 0o600))
	defer lock.Close()
	var err error = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	check(err)
	defer func() { _ = unix.Flock(int(lock.Fd()), unix.LOCK_UN) }() // of which a child may have a copy
	do()
}

// begin makes the files of a boot.
func (a *Agent) begin() {
	a.o.Register.Reset()
	version := a.o.LogVersion
	if version == "" {
		version = "1"
	}
	for name, text := range map[string]string{agentLog: "", agentLock: "", agentVersion: version} {
		path := filepath.Join(a.o.RuntimeDir, name)
		check(os.WriteFile(path, []byte(text), 0o600))
	}
}

// Move has the files be in another directory from now on.
func (a *Agent) Move(dir string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range []string{agentLog, agentLock, agentVersion} {
		check(os.WriteFile(filepath.Join(dir, name), must(os.ReadFile(filepath.Join(a.o.RuntimeDir, name))), 0o600))
	}
	a.o.RuntimeDir = dir
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// runtimeLine is an event as dstack's log has it.
type runtimeLine struct {
	Event   string `json:"event"`
	Payload string `json:"payload"`
	Version int    `json:"version,omitempty"`
}

// append adds a line as dstack does: the text, then its end.
func (a *Agent) append(e AgentEvent) {
	line := runtimeLine{Event: e.Name, Payload: base64.StdEncoding.EncodeToString(e.Payload)}
	if a.o.LogVersion == "2" {
		line.Version = 2
	}
	f := must(os.OpenFile(filepath.Join(a.o.RuntimeDir, agentLog), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600))
	defer f.Close()
	must(f.Write(must(json.Marshal(line))))
	must(f.WriteString("\n"))
}

// eventDigest is what is extended for an event.
func eventDigest(e AgentEvent, version int) [48]byte {
	if version == 2 {
		return sha512.Sum384(fmt.Appendf(nil, `{"name":%q,"payload":"%x","type":%d}`, e.Name, e.Payload, agentEventType))
	}
	preimage := binary.LittleEndian.AppendUint32(nil, agentEventType)
	return sha512.Sum384(fmt.Appendf(preimage, ":%s:%s", e.Name, e.Payload))
}

// events returns the entries of RTMR3. Where they are in a file it is read anew, and a line that
// can't be read is an error, as in dstack.
func (a *Agent) events() ([]agentEvent, error) {
	if !a.native() {
		return a.runtime, nil
	}
	data, err := os.ReadFile(filepath.Join(a.o.RuntimeDir, agentLog))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var events []agentEvent
	for text := range bytes.Lines(data) {
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		var line runtimeLine
		if err := json.Unmarshal(text, &line); err != nil {
			return nil, agentRefusal("Failed to decode user event log: " + err.Error())
		}
		payload, err := base64.StdEncoding.DecodeString(line.Payload)
		if err != nil {
			return nil, agentRefusal("Failed to decode user event log: " + err.Error())
		}
		digest := eventDigest(AgentEvent{line.Event, payload}, line.Version)
		events = append(events, agentEvent{3, agentEventType, hex.EncodeToString(digest[:]), line.Event, hex.EncodeToString(payload)})
	}
	return events, nil
}
