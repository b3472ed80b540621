package launchtest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Outside is a double of the port by which dstack's guest agent is reached from outside of a CVM. Like
// the real one it tells whoever comes what containers logged and what is measured, as far as the
// app-compose makes that public, and says of a container that isn't there with a status of 200 that it
// isn't. It is an http.Handler; the zero value shows nothing.
type Outside struct {
	Agent *Agent // whose Info is shown; nil: it answers with an error
	// PublicTCBInfo is public_tcbinfo, HideLogs the opposite of public_logs.
	PublicTCBInfo, HideLogs bool
	// Fault answers in place of the port, where it returns true. Nil: nothing does.
	Fault func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	logs     map[string][]string
	requests []string
}

// Log appends to what a container logged.
func (o *Outside) Log(container, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.logs == nil {
		o.logs = map[string][]string{}
	}
	for line := range strings.Lines(text) {
		o.logs[container] = append(o.logs[container], line)
	}
}

// Requests returns the paths that were asked for.
func (o *Outside) Requests() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.requests...)
}

func (o *Outside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.requests = append(o.requests, r.URL.Path)
	o.mu.Unlock()
	if o.Fault != nil && o.Fault(w, r) {
		return
	}
	container, isLog := strings.CutPrefix(r.URL.Path, "/logs/")
	switch {
	case isLog && !o.HideLogs:
		o.serveLog(w, r, container)
	case r.URL.Path == "/prpc/Worker.Info":
		o.serveInfo(w)
	default:
		http.Error(w, "Not Found", http.StatusNotFound)
	}
}

func (o *Outside) serveInfo(w http.ResponseWriter) {
	if o.Agent == nil {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"no quote"}`)
		return
	}
	o.Agent.mu.Lock()
	tcbInfo := ""
	if o.PublicTCBInfo {
		tcbInfo, _ = o.Agent.tcbInfo() // empty where it can't be read
	}
	info := must(json.Marshal(o.Agent.infoWith(tcbInfo)))
	o.Agent.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(info)
}

func (o *Outside) serveLog(w http.ResponseWriter, r *http.Request, container string) {
	set := func(name string) bool {
		values, there := r.URL.Query()[name]
		return there && (values[0] == "" || values[0] == "true")
	}
	o.mu.Lock()
	lines, there := o.logs[container]
	lines = append([]string(nil), lines...)
	o.mu.Unlock()
	if !there {
		_ = json.NewEncoder(w).Encode(map[string]string{
			"error": "Docker responded with status code 404: No such container: " + container,
		})
		return
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("tail")); err == nil && n < len(lines) {
		lines = lines[len(lines)-n:]
	}
	for _, line := range lines {
		if set("timestamps") {
			line = time.Now().UTC().Format(time.RFC3339Nano) + " " + line
		}
		if !set("text") {
			line = base64.StdEncoding.EncodeToString([]byte(line))
		}
		if !set("bare") {
			line = fmt.Sprintf("%s\n", must(json.Marshal(map[string]string{"channel": "stderr", "message": line})))
		}
		if _, err := io.WriteString(w, line); err != nil {
			return
		}
	}
}
