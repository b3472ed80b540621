package preflight

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/state"
)

// check is one question.
type check struct {
	name  string
	group Group
	step  step
	needs []string // checks that have to have ended without an error
	after []string // checks that have to have ended
	do    func(context.Context, *facts) outcome
}

// outcome is the answer to one.
type outcome struct {
	detail   string
	findings []Finding
	skipped  string // why there is nothing to check here
	unknown  string // why it can't be checked
}

// facts is what checks find out for each other. Each field is written by one check, and read by those that wait for that one.
type facts struct {
	settings   Settings
	log        *slog.Logger
	shared     *files.Dir          // shared directory
	own        state.Dir           // our own directory in it
	events     *rtmr.Info          // event log: nil outside a CVM, and where it can't be read
	config     *config.Config      // user config
	list       *approval.List      // approved list: nil, absent
	decision   *approval.Decision  // selection
	present    bool                // measured: this image, already
	engine     *inspect.Engine     // engine
	info       inspect.Info        // engine
	self       inspect.Container   // engine: our own container; zero for a plain binary
	containers []inspect.Container // containers: all but our own
	kept       *image.Verified     // kept copy
	image      *image.Verified     // manifest
	source     *registry.Source    // manifest
	down       bool                // manifest: the registry doesn't answer
	notice     registry.Notice     // rate limit
	id         inspect.ImageID     // image: zero if the engine doesn't have it
	left       *int64              // image: bytes to download
	running    bool                // workload: it runs, proved and measured
}

func newFacts(s Settings) *facts {
	f := &facts{settings: s, log: s.Log}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.settings.Patience == 0 {
		f.settings.Patience = 5 * time.Second
	}
	return f
}

func (f *facts) close() {
	if f.shared != nil {
		f.shared.Close()
	}
}

func (f *facts) now() time.Time {
	if f.settings.Now != nil {
		return f.settings.Now()
	}
	return time.Now()
}

// proc returns the path of a file of the kernel.
func (f *facts) proc(name string) string {
	root := f.settings.Proc
	if root == "" {
		root = "/proc"
	}
	return filepath.Join(root, name)
}

// leaves tells whether a group is left out.
func (f *facts) leaves(g Group) bool {
	return slices.Contains(f.settings.Skip, g) || f.settings.Offline && g == GroupRegistry
}

// step is the step of a boot that comes across what a check looks at.
type step string

const (
	atSettings step = "settings"
	atProbe    step = "probe"
	atGate     step = "gate"
	atConfig   step = "config"
	atPull     step = "pull"
	atLoad     step = "load"
	atCreate   step = "create"
	atStart    step = "start"
	atEnd      step = ""       // no boot comes across it
	atEngine   step = "engine" // where a boot needs the engine for the first time
)

// steps returns the steps in their order.
func steps() []step {
	return []step{atSettings, atProbe, atGate, atConfig, atPull, atLoad, atCreate, atStart, atEnd}
}

// stepOf says when a boot would come across what a check looks at. Where an image is measured already, the boot's probe has to know
// which one is wanted and which containers there are.
func (f *facts) stepOf(s step) step {
	measured := f.events != nil && len(f.events.Log.Images()) > 0
	switch {
	case s == atConfig && measured:
		return atProbe
	case s != atEngine:
		return s
	case measured:
		return atProbe
	case f.settings.tee():
		return atGate
	}
	return atPull
}

// runAll does every check as soon as those before it have ended.
func runAll(ctx context.Context, all []check, f *facts) []Result {
	results := make([]Result, len(all))
	index := map[string]int{}
	ended := make([]chan struct{}, len(all))
	for i, c := range all {
		index[c.name] = i
		ended[i] = make(chan struct{})
	}
	var wait sync.WaitGroup
	for i, c := range all {
		wait.Go(func() {
			defer close(ended[i])
			r := &results[i]
			*r = Result{Check: c.name, Group: c.group, Findings: []Finding{}}
			for _, name := range slices.Concat(c.needs, c.after) {
				<-ended[index[name]]
			}
			if f.leftOut(c) {
				r.Status, r.Detail = Skipped, "left out"
				return
			}
			for _, name := range c.needs {
				switch results[index[name]].Status {
				case Skipped:
					r.Status, r.Detail = Skipped, "nothing to check without: "+name
					return
				case Failed, Unchecked:
					r.Status, r.Detail = Unchecked, "not checked without: "+name
					return
				}
			}
			begin := time.Now()
			r.take(c.do(ctx, f))
			r.DurationMS = time.Since(begin).Milliseconds()
		})
	}
	wait.Wait()
	for i, c := range all {
		results[i].Step = string(f.stepOf(c.step))
	}
	return results
}

// leftOut tells whether the operator doesn't want a check. A document that was named is looked at in any case.
func (f *facts) leftOut(c check) bool {
	return f.leaves(c.group) && !(c.name == "app-compose" && f.settings.AppCompose != "")
}

func (r *Result) take(o outcome) {
	r.Detail, r.Status = o.detail, OK
	switch {
	case o.skipped != "":
		r.Detail, r.Status = o.skipped, Skipped
	case o.unknown != "":
		r.Detail, r.Status = o.unknown, Unchecked
	}
	for _, f := range o.findings {
		if f.Fix == nil {
			f.Fix = []string{}
		}
		if f.Severity == Error {
			r.Status = Failed
		}
		r.Findings = append(r.Findings, f)
	}
}

// ok is a check that found nothing wrong.
func ok(detail string, findings ...Finding) outcome {
	return outcome{detail: detail, findings: findings}
}

// fail is a check that ends with an error.
func fail(code Code, err error, more ...string) outcome {
	return outcome{findings: []Finding{failure(code, err, more...)}}
}

// failure is the finding for an error, which says by its type how a boot would end and what helps.
func failure(code Code, err error, more ...string) Finding {
	return Finding{Code: code, Severity: Error, ExitCode: exit.Of(err), Found: err.Error(), Fix: append(exit.Hints(err), more...)}
}

// ending is failure for an error whose type doesn't say how the boot would end.
func ending(code Code, exitCode exit.Code, err error, fix ...string) Finding {
	return Finding{Code: code, Severity: Error, ExitCode: exitCode, Found: err.Error(), Fix: fix}
}

func warning(code Code, found string, fix ...string) Finding {
	return Finding{Code: code, Severity: Warning, Found: found, Fix: fix}
}

func note(code Code, found string, fix ...string) Finding {
	return Finding{Code: code, Severity: Note, Found: found, Fix: fix}
}
