// Package fleet reads from outside how nodes are: what their launchers' logs say last, and whether
// that agrees with the event log that their agents show.
//
// It guarantees that what a node answers can't take more than its share of time and memory, move a
// cursor, or pass for another node's answer; that a status is taken only from a line that begins as a
// launcher's does; and that an answer is called consistent only if an event log replays to the register
// beside it and names the image that the launcher names. It does not guarantee that anything is so: all
// of it is the node's word over a channel that nobody authenticates. What is attested, only a verified
// quote says.
package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/status"
)

const (
	// atOnce is how many nodes are asked at the same time, patience how long one may take. A hundred
	// are answered for in ten seconds, whatever they do.
	atOnce   = 128
	patience = 8 * time.Second
	// maxText bounds, in characters, what is told of a problem.
	maxText = 300
)

// Node is where a node's log is read.
type Node struct {
	name string
	base *url.URL // nil: the log is a file
}

// Stdin is the name of the log on standard input.
const Stdin = "-"

// ParseNode reads the URL of the outside port of a node's agent, or the name of a file.
func ParseNode(s string) (Node, error) {
	switch {
	case s == "":
		return Node{}, errors.New("it is empty")
	case !strings.Contains(s, "://"):
		return Node{name: s}, nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return Node{}, errors.New("not a URL")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return Node{}, errors.New("not http://host:8090")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return Node{}, errors.New("more than http://host:8090: neither a password nor ? or # belongs there")
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return Node{name: u.String(), base: u}, nil
}

// String returns the name by which it was called.
func (n Node) String() string { return n.name }

// Evidence is what speaks for what an answer says.
type Evidence string

const (
	Consistent   Evidence = "consistent"   // the event log replays to the register beside it, and names this image
	Said         Evidence = "said"         // the launcher's log says so
	Contradicted Evidence = "contradicted" // it doesn't replay, or says another thing
	Nothing      Evidence = "nothing"
)

// Answer is how a node is, as it says itself.
type Answer struct {
	Node     string         `json:"node"`
	Code     exit.Code      `json:"code"`
	Problem  string         `json:"problem"` // empty: none
	Evidence Evidence       `json:"evidence"`
	Attested bool           `json:"attested"`        // never: no quote is verified here
	Status   *status.Status `json:"status"`          // what its launcher says last; null: nothing that could be read
	SaidAt   *time.Time     `json:"said_at"`         // as the engine's log has it; null: unknown
	Measured *digest.Digest `json:"measured_digest"` // of the event log, which replays
	RTMR3    string         `json:"rtmr3"`           // the register beside it; empty: not shown
	Notes    []string       `json:"notes"`           // what is worth knowing and doesn't count
}

// Reader asks nodes. Its zero value is ready.
type Reader struct {
	Expect *digest.Digest   // what they have to run; nil: anything
	Client *http.Client     // nil: one that follows no redirect
	Stdin  io.Reader        // nil: there is none
	Now    func() time.Time // nil: time.Now

	mu    sync.Mutex
	known map[string]remembered // by node
	busy  chan struct{}         // parses an event log
}

// Ask asks all nodes at the same time, and returns their answers, the worst first.
func (r *Reader) Ask(ctx context.Context, nodes []Node) []Answer {
	if r.busy == nil {
		r.busy, r.known = make(chan struct{}, 2), map[string]remembered{}
	}
	if r.Client == nil {
		r.Client = client()
	}
	answers := make([]Answer, len(nodes))
	free := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, n := range nodes {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			answers[i] = r.ask(ctx, n)
		})
	}
	all.Wait()
	slices.SortStableFunc(answers, func(a, b Answer) int {
		return cmp.Or(cmp.Compare(badness(b.Code), badness(a.Code)), cmp.Compare(a.Node, b.Node))
	})
	return answers
}

// badness orders the codes of nodes.
func badness(c exit.Code) int {
	order := []exit.Code{
		exit.OK, exit.Unavailable, exit.Config, exit.Refused, exit.Engine, exit.Mismatch, exit.Workload, exit.Measurement,
	}
	return slices.Index(order, c)
}

// Worst returns the code of the worst.
func Worst(answers []Answer) exit.Code {
	if len(answers) == 0 {
		return exit.OK
	}
	return slices.MaxFunc(answers, func(a, b Answer) int { return cmp.Compare(badness(a.Code), badness(b.Code)) }).Code
}

// Of is the answer of a launcher that says itself how it is, on its own machine.
func (r *Reader) Of(name string, s status.Status) Answer {
	a := Answer{Node: name}
	r.judge(&a, said{status: &s}, shown{})
	return a
}

// Away is the answer of one that says nothing.
func Away(name string, err error) Answer {
	return Answer{Node: name, Code: exit.Unavailable, Problem: plain(err), Evidence: Nothing, Notes: []string{}}
}

func (r *Reader) ask(ctx context.Context, n Node) Answer {
	a := Answer{Node: sanitize.Line(n.name, maxText)}
	if n.base == nil {
		log := make(chan said, 1)
		go func() { log <- r.file(n.name) }() // which may be a pipe that nobody writes to
		select {
		case s := <-log:
			r.judge(&a, s, shown{})
		case <-ctx.Done():
			a = Away(a.Node, context.Cause(ctx))
		}
		return a
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	log := r.log(ctx, n)
	r.judge(&a, log, r.info(ctx, n, log))
	return a
}

// judge says what the two make of a node.
func (r *Reader) judge(a *Answer, log said, info shown) {
	a.Evidence, a.Notes = Nothing, []string{}
	a.Status, a.SaidAt, a.RTMR3 = log.status, log.at, info.rtmr3
	if s := log.status; s != nil {
		a.Evidence, a.Code = Said, s.Code()
		a.Problem = about(*s)
	} else {
		a.Code, a.Problem = log.code, log.problem
	}
	a.Notes = append(a.Notes, r.notes(log)...)
	contradicted := func(why string) {
		a.Evidence, a.Code, a.Problem = Contradicted, exit.Measurement, why
	}
	var runs *digest.Digest
	if log.status != nil {
		runs = log.status.Digest
	}
	switch {
	case info.problem != "":
		contradicted(info.problem)
	case info.rtmr3 == "":
		if info.note != "" {
			a.Notes = append(a.Notes, info.note)
		}
	default:
		a.Measured = info.image
		if info.note != "" {
			a.Notes = append(a.Notes, info.note)
		}
		why, note := disagree(log.status, info)
		if why != "" {
			contradicted(why)
			break
		}
		if note != "" {
			a.Notes = append(a.Notes, note)
		}
		a.Evidence = Consistent
		if runs == nil {
			runs = info.image
		}
	}
	switch {
	case r.Expect == nil || a.Evidence == Contradicted:
	case runs != nil && *runs != *r.Expect:
		a.Code, a.Problem = exit.Measurement, fmt.Sprintf("got %s, want %s", runs, r.Expect)
	case runs == nil && a.Code == exit.OK:
		a.Code, a.Problem = exit.Measurement, fmt.Sprintf("it doesn't say what it runs, want %s", r.Expect)
	}
}

// stale is how old a launcher's last word is that is worth a note: it says something every ten
// minutes, unless it is told otherwise.
const stale = 31 * time.Minute

// notes are what is worth knowing of what a launcher says, and doesn't make its node a bad one.
func (r *Reader) notes(log said) (notes []string) {
	if log.at != nil && r.now().Sub(*log.at) > stale {
		notes = append(notes, fmt.Sprintf("last said %s ago", lasted(r.now().Sub(*log.at))))
	}
	s := log.status
	if s == nil {
		return notes
	}
	if s.FallbackFrom != nil {
		notes = append(notes, fmt.Sprintf("fallback: %s could not be had", s.FallbackFrom))
	}
	if s.Approved != nil && s.ApprovedSince != nil && *s.Approved != 0 {
		what := fmt.Sprintf("%d newer approved", *s.Approved)
		if *s.Approved == status.NotListed {
			what = "not in the approved list"
		}
		notes = append(notes, fmt.Sprintf("%s, for %s", what, lasted(r.now().Sub(*s.ApprovedSince))))
	}
	if s.Staged != nil && s.Staged.Error != nil {
		notes = append(notes, "staging: "+*s.Staged.Error)
	}
	return notes
}

// lasted is a time in words that are as short as they may be.
func lasted(d time.Duration) string {
	switch {
	case d < 0:
		return "?" // two clocks
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// about says why the code of a status isn't 0.
func about(s status.Status) string {
	switch {
	case s.Error != nil && s.Error.Code != s.Code():
		return fmt.Sprintf("the launcher has ended with %d: %s", s.Error.Code, s.Error.Message)
	case s.Error != nil:
		return s.Error.Message
	case s.Code() == exit.Measurement:
		return "it runs and isn't measured"
	case s.Code() == exit.Unavailable && s.Percent != nil:
		return fmt.Sprintf("it doesn't run yet: %s, %d%%", s.Phase, *s.Percent)
	case s.Code() == exit.Unavailable:
		return "it doesn't run yet: " + s.Phase
	}
	return ""
}

const earlier = "was that in an earlier boot?"

// disagree says in what a launcher and an event log that replays contradict each other, and what is
// worth a note.
func disagree(s *status.Status, info shown) (why, note string) {
	switch {
	case s == nil:
	case s.Measured == nil:
		why = "the launcher says that this is no CVM, and there is an event log"
	case *s.Measured && info.image == nil:
		why = "the launcher says that its image is measured, and the event log has no image event: " + earlier
	case info.image != nil && s.Digest != nil && *s.Digest != *info.image:
		why = fmt.Sprintf("the launcher says %s, and the event log says %s", s.Digest, info.image)
	case *s.Measured && !slices.Contains(info.since, s.RTMR3):
		why = "the launcher says an RTMR3 that the event log never had: " + earlier
	case *s.Measured && s.RTMR3 != info.rtmr3:
		note = "something was emitted after the launcher had measured"
	}
	return why, note
}

func (r *Reader) now() time.Time {
	if r.Now == nil {
		return time.Now()
	}
	return r.Now()
}

// plain is an error's text for people.
func plain(err error) string {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err) {
		return fmt.Sprintf("no complete answer within %s", patience)
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	if call := (*os.SyscallError)(nil); errors.As(err, &call) {
		err = call.Err
	}
	return sanitize.Line(err.Error(), maxText)
}
