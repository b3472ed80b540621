package launchtest

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// front is what clients see: log-in first, then faults and lies, then the truth.
func (r *Registry) front(w http.ResponseWriter, q *http.Request) {
	kind, target := classify(q.URL.Path)
	r.note(kind, q)
	if kind == "" || q.Method != http.MethodGet && q.Method != http.MethodHead && kind != RequestToken {
		r.odd(q, "no client that pulls asks for this")
		r.send(w, q, nil, errorReply(http.StatusNotFound, "UNSUPPORTED", "not here"))
		return
	}
	change, way := r.strike(kind, target, q)
	if kind == RequestToken {
		a := r.token(q)
		if change != nil {
			a = change.change(a, nil, 0, 0)
		}
		r.send(w, q, way, a)
		return
	}
	if refusal, ok := r.logIn(q); !ok {
		r.send(w, q, way, refusal)
		return
	}
	if kind == RequestBlob && r.o.Redirect != RedirectNone && (change == nil || change.Kind != FaultRedirect) {
		// The faults of a blob strike where it is.
		r.giveBack(change, way)
		r.send(w, q, nil, r.redirect(target))
		return
	}
	r.answer(w, q, kind, target, change, way)
}

// serveStorage is the host that has the blobs where the registry redirects.
func (r *Registry) serveStorage(w http.ResponseWriter, q *http.Request) {
	r.note(RequestStorage, q)
	target := strings.TrimPrefix(q.URL.Path, "/storage/")
	if q.Header.Get("Authorization") != "" || q.Header.Get("Cookie") != "" {
		r.odd(q, "credentials came to a redirect target")
	}
	r.mu.Lock()
	epoch := strconv.Itoa(r.epoch)
	r.mu.Unlock()
	if q.URL.Query().Get("signature") != epoch {
		r.send(w, q, nil, errorReply(http.StatusForbidden, "AccessDenied", "Request has expired"))
		return
	}
	change, way := r.strike(RequestStorage, target, q)
	r.answer(w, q, RequestStorage, target, change, way)
}

func (r *Registry) redirect(target string) reply {
	scheme := "http"
	if r.o.TLS && r.o.Redirect != RedirectHTTP {
		scheme = "https"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	location := fmt.Sprintf("%s://%s/storage/%s?signature=%d", scheme, r.storage, target, r.epoch)
	return reply{status: http.StatusTemporaryRedirect, header: http.Header{"Location": {location}}}
}

// answer is what the registry has for a request, changed and delivered as the faults want it.
func (r *Registry) answer(w http.ResponseWriter, q *http.Request, kind RequestKind, target string, change, way *RegistryFault) {
	blob := kind != RequestManifest && kind != RequestPing
	r.mu.Lock()
	whole, found := r.manifests[q.URL.Path]
	contentType := mediaType(whole)
	if blob {
		whole, found = r.blobs[target]
		contentType = "application/octet-stream"
	}
	if forged, lies := r.forged[target]; lies {
		whole, found, contentType = forged.body, true, forged.contentType
	}
	r.mu.Unlock()
	if kind == RequestPing {
		whole, found, contentType = []byte("{}"), true, "application/json"
	}
	a := reply{status: http.StatusOK, body: whole, blob: blob, header: http.Header{"Content-Type": {contentType}}}
	switch {
	case !found && blob:
		a = errorReply(http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
	case !found:
		a = errorReply(http.StatusNotFound, "MANIFEST_UNKNOWN", "Unknown manifest")
	}
	start, end := int64(0), int64(len(whole))
	if asked := q.Header.Get("Range"); blob && found && asked != "" && !r.o.NoRanges && !r.o.HTTP10 {
		var last int64
		if _, err := fmt.Sscanf(asked, "bytes=%d-%d", &start, &last); err != nil || last < start || start >= end {
			r.odd(q, "a range that isn't closed or not there: "+asked)
			r.send(w, q, way, errorReply(http.StatusRequestedRangeNotSatisfiable, "UNSUPPORTED", "range"))
			return
		}
		end = min(last+1, end)
		a = rangeReply(a, whole, start, end)
	}
	if strings.HasPrefix(target, "sha256:") {
		a.header.Set("Docker-Content-Digest", target)
	}
	if change != nil {
		a = change.change(a, whole, start, end)
	}
	r.send(w, q, way, a)
}

// mediaType is what an honest registry says of a manifest.
func mediaType(manifest []byte) string {
	var head struct {
		MediaType string `json:"mediaType"`
		Manifests []any  `json:"manifests"`
	}
	if json.Unmarshal(manifest, &head) == nil && head.MediaType != "" {
		return head.MediaType
	}
	if head.Manifests != nil {
		return "application/vnd.oci.image.index.v1+json"
	}
	return "application/vnd.oci.image.manifest.v1+json"
}

// rangeReply makes a the answer for the bytes of whole from start to before end.
func rangeReply(a reply, whole []byte, start, end int64) reply {
	a.status, a.body = http.StatusPartialContent, whole[start:end]
	a.header = a.header.Clone()
	a.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, len(whole)))
	return a
}

func errorReply(status int, code, message string) reply {
	body := must(json.Marshal(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}}))
	return reply{status: status, header: http.Header{"Content-Type": {"application/json"}}, body: body}
}

// classify says what a path asks for.
func classify(path string) (kind RequestKind, target string) {
	elements := strings.Split(strings.Trim(path, "/"), "/")
	n := len(elements)
	switch {
	case path == "/v2/" || path == "/v2":
		return RequestPing, ""
	case path == "/token":
		return RequestToken, ""
	case n < 4 || elements[0] != "v2":
		return "", ""
	case elements[n-2] == "manifests":
		return RequestManifest, elements[n-1]
	case elements[n-2] == "blobs":
		return RequestBlob, elements[n-1]
	}
	return "", ""
}

func (r *Registry) note(kind RequestKind, q *http.Request) {
	credential, _, _ := strings.Cut(q.Header.Get("Authorization"), " ")
	if kind == RequestToken && q.Method == http.MethodPost && q.FormValue("refresh_token") != "" {
		credential = "identity token"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, RegistryRequest{Kind: kind, Method: q.Method, Path: q.URL.Path, Query: q.URL.RawQuery, Range: q.Header.Get("Range"),
		TLS: q.TLS != nil, Proto: q.Proto, Credential: credential, Remote: q.RemoteAddr})
}

func (r *Registry) odd(q *http.Request, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unexpected = append(r.unexpected, q.Method+" "+q.URL.Path+": "+why)
}

// giveBack undoes the count of faults that strike elsewhere.
func (r *Registry) giveBack(faults ...*RegistryFault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range faults {
		if f != nil {
			f.Times++
			r.hits[f.Kind]--
		}
	}
}

func (r *Registry) wentDown() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down
}

// send sends a reply over the way that the fault leaves, nil for a good one.
func (r *Registry) send(w http.ResponseWriter, q *http.Request, way *RegistryFault, a reply) {
	if q.Method == http.MethodHead {
		a.header.Set(lengthHeader, count(int64(len(a.body))))
		a.body = nil
	}
	switch {
	case way != nil:
		r.deliver(way, w, q, a)
	case r.o.HTTP10, a.header.Get(lengthHeader) != "" && q.Method != http.MethodHead:
		// What promises more than it has can't be sent by a proper server.
		r.raw(w, a, a.body, false)
	default:
		r.head(w, a)
		_ = r.write(w, a, a.body)
	}
}

func (r *Registry) head(w http.ResponseWriter, a reply) {
	for k, v := range a.header {
		w.Header()[k] = v
	}
	if a.header.Get(lengthHeader) == "" {
		w.Header().Set(lengthHeader, count(int64(len(a.body))))
	}
	w.WriteHeader(a.status)
}

// write writes some of the body of a, and counts it.
func (r *Registry) write(w http.ResponseWriter, a reply, data []byte) error {
	n, err := w.Write(data)
	r.carried(a, n)
	return err
}

func (r *Registry) carried(a reply, n int) {
	if a.blob {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.sent += int64(n)
	}
}

// raw sends the head of a reply and some of its body past the server, and closes the connection.
func (r *Registry) raw(w http.ResponseWriter, a reply, body []byte, reset bool) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		// HTTP/2: the stream can only be aborted.
		r.head(w, a)
		_ = r.write(w, a, body)
		panic(http.ErrAbortHandler)
	}
	defer c.Close()
	proto := "HTTP/1.1"
	if r.o.HTTP10 {
		proto = "HTTP/1.0"
	} else if a.header.Get(lengthHeader) == "" {
		a.header.Set(lengthHeader, count(int64(len(a.body))))
	}
	a.header.Set("Connection", "close")
	buffered := bufio.NewWriter(c)
	fmt.Fprintf(buffered, "%s %d %s\r\n", proto, a.status, http.StatusText(a.status))
	_ = a.header.Write(buffered)
	fmt.Fprint(buffered, "\r\n")
	n, _ := buffered.Write(body)
	_ = buffered.Flush()
	r.carried(a, n)
	if reset {
		linger(c)
	}
}

// linger makes Close send a reset.
func linger(c net.Conn) {
	for {
		switch inner := c.(type) {
		case *tls.Conn:
			c = inner.NetConn()
		case *slowConn:
			c = inner.Conn
		case *net.TCPConn:
			_ = inner.SetLinger(0)
			return
		default:
			return
		}
	}
}

func count(n int64) string { return strconv.FormatInt(n, 10) }
