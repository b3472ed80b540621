package launchtest

import (
	"bytes"
	"net/http"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// RegistryFault is something that goes wrong with requests. Of the faults that match a request and aren't used up the first
// that changes the answer and the first that spoils its way both count.
type RegistryFault struct {
	Kind RegistryFaultKind
	// On is the kind of request it hits. A fault on blobs hits the storage host too, where redirects lead there.
	On RequestKind
	// Digest is the blob or manifest it hits; zero: any.
	Digest v1.Hash
	// Skip lets that many matching requests pass before the first fault.
	Skip int
	// Times is how many requests it hits: 0 means one, a negative number all.
	Times int

	// After is how many bytes of the body arrive before it strikes, or which byte it hits.
	After int64
	// Status is the answer of FaultStatus; 503 if zero.
	Status int
	// Message is what its error document says; something harmless if empty.
	Message string
	// RetryAfter is that header of it; empty: none.
	RetryAfter string
	// Rate is the speed of FaultDrip in bytes per second; 2,000 if zero.
	Rate int64
	// Location is where FaultRedirect leads.
	Location string
}

// RegistryFaultKind is a way in which an answer goes wrong.
type RegistryFaultKind string

// The ways that change the answer.
const (
	FaultStatus      RegistryFaultKind = "status"       // another status with the registry's error document
	FaultRedirect    RegistryFaultKind = "redirect"     // to anywhere
	FaultNoRange     RegistryFaultKind = "no range"     // 200 and the whole blob, whatever range was asked for
	FaultShortRange  RegistryFaultKind = "short range"  // 206 with the first After bytes of the range, and says so
	FaultShiftBody   RegistryFaultKind = "shift body"   // 206, not for the first byte, that has the bytes behind those it says
	FaultShiftRange  RegistryFaultKind = "shift range"  // 206, not for the first byte, with another range than was asked for, and says so
	FaultFlip        RegistryFaultKind = "flip"         // one bit of the byte After of the body is wrong
	FaultLongLength  RegistryFaultKind = "long length"  // Content-Length promises more than comes
	FaultShortLength RegistryFaultKind = "short length" // Content-Length promises half, and that is what comes
)

// The ways that spoil its way.
const (
	FaultCut      RegistryFaultKind = "cut"       // the connection ends after After bytes
	FaultReset    RegistryFaultKind = "reset"     // it ends with a reset
	FaultStall    RegistryFaultKind = "stall"     // nothing comes after After bytes
	FaultNoHeader RegistryFaultKind = "no header" // nothing comes at all
	FaultDrip     RegistryFaultKind = "drip"      // very little comes
	FaultGarbage  RegistryFaultKind = "garbage"   // something comes that isn't HTTP
	FaultEndless  RegistryFaultKind = "endless"   // the body never ends
)

func (k RegistryFaultKind) changesAnswer() bool {
	switch k {
	case FaultStatus, FaultRedirect, FaultNoRange, FaultShortRange, FaultShiftBody, FaultShiftRange, FaultFlip, FaultLongLength,
		FaultShortLength:
		return true
	}
	return false
}

// Fail adds a fault.
func (r *Registry) Fail(f RegistryFault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	r.faults = append(r.faults, &f)
}

// Heal removes all faults and forgeries.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
	clear(r.forged)
}

// Hits returns how many requests faults of a kind hit.
func (r *Registry) Hits(kind RegistryFaultKind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hits[kind]
}

// strike returns the faults for a request, nil where there is none.
func (r *Registry) strike(kind RequestKind, target string, q *http.Request) (change, way *RegistryFault) {
	if kind == RequestStorage {
		kind = RequestBlob
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.faults {
		if f.On != kind || f.Digest != (v1.Hash{}) && f.Digest.String() != target || f.Times == 0 {
			continue
		}
		if asked := q.Header.Get("Range"); (f.Kind == FaultShiftBody || f.Kind == FaultShiftRange) &&
			(asked == "" || strings.HasPrefix(asked, "bytes=0-")) {
			continue
		}
		found := &way
		if f.Kind.changesAnswer() {
			found = &change
		}
		if *found != nil {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		f.Times--
		*found = f
		r.hits[f.Kind]++
	}
	return change, way
}

// FaultCase is one line of the table of faults that a pull has to survive.
type FaultCase struct {
	Name   string
	Faults []RegistryFault
	// Slow is for those that may take their time-out.
	Slow bool
}

// FaultTable returns the table, for the blob of one layer that has at least 9 MB.
func FaultTable(layer v1.Hash) []FaultCase {
	blob := func(f RegistryFault) RegistryFault {
		f.On, f.Digest = RequestBlob, layer
		return f
	}
	const always = -1
	return []FaultCase{
		{Name: "blob 503 twice", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultStatus, Times: 2})}},
		{Name: "blob 503 six times", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultStatus, Times: 6})}},
		{Name: "blob 429, Retry-After 2, three times", Faults: []RegistryFault{
			blob(RegistryFault{Kind: FaultStatus, Status: http.StatusTooManyRequests, RetryAfter: "2", Times: 3})}},
		{Name: "blob 502 twice", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultStatus, Status: http.StatusBadGateway, Times: 2})}},
		{Name: "body cut at 2 MB, once", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultCut, After: 2e6})}},
		{Name: "body reset at 2 MB, once", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultReset, After: 2e6})}},
		{Name: "every answer cut after 1.5 MB", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultCut, After: 1.5e6, Times: always})}},
		{Name: "cut after 100 KB eight times", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultCut, After: 100e3, Times: 8})}},
		{Name: "cut once, and Range ignored", Faults: []RegistryFault{
			blob(RegistryFault{Kind: FaultCut, After: 2e6}), blob(RegistryFault{Kind: FaultNoRange, Times: always})}},
		{Name: "body stalls for ever, once", Slow: true, Faults: []RegistryFault{blob(RegistryFault{Kind: FaultStall, After: 1e6})}},
		{Name: "no response header, once", Slow: true, Faults: []RegistryFault{blob(RegistryFault{Kind: FaultNoHeader})}},
		{Name: "2 KB/s drip, once", Slow: true, Faults: []RegistryFault{blob(RegistryFault{Kind: FaultDrip})}},
		{Name: "one flipped byte, once", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultFlip, After: 1e6})}},
		{Name: "Content-Length lies, once", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultLongLength})}},
		{Name: "blob 404, once", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultStatus, Status: http.StatusNotFound})}},
		{Name: "blob 403, once", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultStatus, Status: http.StatusForbidden})}},
		{Name: "manifest 503 twice", Faults: []RegistryFault{{Kind: FaultStatus, On: RequestManifest, Times: 2}}},
		{Name: "manifest body cut, once", Faults: []RegistryFault{{Kind: FaultCut, On: RequestManifest, After: 100}}},
		{Name: "manifest stalls, once", Slow: true, Faults: []RegistryFault{{Kind: FaultStall, On: RequestManifest, After: 100}}},
		{Name: "/v2/ 503 twice", Faults: []RegistryFault{{Kind: FaultStatus, On: RequestPing, Times: 2}}},
		{Name: "short 206 answers, always", Faults: []RegistryFault{blob(RegistryFault{Kind: FaultShortRange, After: 300e3, Times: always})}},
		{Name: "206 with shifted bytes, once on resume", Faults: []RegistryFault{
			blob(RegistryFault{Kind: FaultCut, After: 1e6}), blob(RegistryFault{Kind: FaultShiftBody})}},
	}
}

// reply is an answer before it is sent.
type reply struct {
	status int
	header http.Header
	body   []byte
	blob   bool // the body counts as bytes of blobs
}

// lengthHeader, where a reply has it, overrides the length of its body.
const lengthHeader = "Content-Length"

// change applies a fault to a reply. whole is the blob of which the reply has the bytes from start to before end.
func (f *RegistryFault) change(a reply, whole []byte, start, end int64) reply {
	switch f.Kind {
	case FaultStatus:
		status := f.Status
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
		message := f.Message
		if message == "" {
			message = "the fault was asked for"
		}
		a = errorReply(status, "UNAVAILABLE", message)
		if f.RetryAfter != "" {
			a.header.Set("Retry-After", f.RetryAfter)
		}
	case FaultRedirect:
		a = reply{status: http.StatusTemporaryRedirect, header: http.Header{"Location": {f.Location}}}
	case FaultFlip:
		a.body = bytes.Clone(a.body)
		if len(a.body) > 0 {
			a.body[min(f.After, int64(len(a.body)-1))] ^= 1
		}
	case FaultLongLength:
		a.header.Set(lengthHeader, count(int64(len(a.body))+1000))
	case FaultShortLength:
		a.body = a.body[:len(a.body)/2]
	case FaultNoRange:
		a.status, a.body = http.StatusOK, whole
		a.header.Del("Content-Range")
	case FaultShortRange:
		if a.status == http.StatusPartialContent && f.After < end-start {
			return rangeReply(a, whole, start, start+f.After)
		}
	case FaultShiftBody:
		if a.status == http.StatusPartialContent {
			a.body = append(bytes.Clone(a.body[1:]), 'x')
		}
	case FaultShiftRange:
		if a.status == http.StatusPartialContent && end < int64(len(whole)) {
			return rangeReply(a, whole, start+1, end+1)
		}
	}
	return a
}

// deliver sends a reply over a spoiled way.
func (r *Registry) deliver(f *RegistryFault, w http.ResponseWriter, q *http.Request, a reply) {
	gone := func() {
		select {
		case <-q.Context().Done():
		case <-r.wentDown():
		}
	}
	part := a.body[:min(f.After, int64(len(a.body)))]
	switch f.Kind {
	case FaultNoHeader:
		gone()
	case FaultStall:
		r.head(w, a)
		_ = r.write(w, a, part)
		_ = http.NewResponseController(w).Flush()
		gone()
	case FaultDrip:
		r.head(w, a)
		rate := f.Rate
		if rate == 0 {
			rate = 2000
		}
		const steps = 10
		for rest := a.body; len(rest) > 0; {
			n := min(max(int(rate/steps), 1), len(rest))
			if r.write(w, a, rest[:n]) != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			rest = rest[n:]
			select {
			case <-time.After(time.Second / steps):
			case <-q.Context().Done():
				return
			case <-r.wentDown():
				return
			}
		}
	case FaultEndless:
		a.header.Del(lengthHeader)
		for k, v := range a.header {
			w.Header()[k] = v
		}
		w.WriteHeader(a.status)
		for block := bytes.Repeat([]byte(" "), 64<<10); r.write(w, a, block) == nil; {
		}
	case FaultCut, FaultReset:
		r.raw(w, a, part, f.Kind == FaultReset)
	case FaultGarbage:
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = c.Write([]byte(strings.Repeat("\x00\x00\x12\x04garbage", 100)))
		_ = c.Close()
	}
}
