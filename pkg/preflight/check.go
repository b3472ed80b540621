package preflight

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
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
	step  func(admission.Facts) admission.Step // of the boot that comes across what it looks at; empty: none
	needs []string                             // checks that have to have ended without an error
	after []string                             // checks that have to have ended
	do    func(context.Context, *facts) outcome
}

// outcome is the answer to one.
type outcome struct {
	detail   string
	findings []Finding
	skipped  string // why there is nothing to check here
	unknown  string // why it can't be checked
}

// facts is what checks find out for each other. Each field is written by one check, and read by
// those that wait for that one.
type facts struct {
	options    Options
	log        *slog.Logger
	shared     *files.Dir            // shared directory
	own        state.Dir             // shared directory: our own directory in it
	boot       string                // boot: the kernel's name of this one; empty where it isn't known
	next       bool                  // lock: the next boot is asked about
	waits      bool                  // lock: the launcher that holds it waits for its next attempt
	seen       *rtmr.Log             // event log: what kernel and dstack's files say, where they measure; nil: not known
	finished   *rtmr.Log             // event log: the same, where an earlier run's line is missing in the files
	events     *rtmr.Info            // event log: nil outside a CVM, and where it can't be read
	config     *config.Config        // user config
	list       *approval.List        // approved list: nil, absent
	decision   *approval.Decision    // selection
	present    bool                  // measured: this image, already
	engine     *inspect.Engine       // engine
	info       inspect.Info          // engine
	self       inspect.Container     // engine: our own container; zero for a plain binary
	containers []admission.Container // containers: all but our own, as the boot would find them
	reaching   []admission.Container // sockets: the same, with what they reach the agent's through
	cached     *image.Verified       // cached manifest
	image      *image.Verified       // manifest
	source     *registry.Source      // manifest
	down       bool                  // manifest: the registry doesn't answer
	unresolved error                 // manifest: why not
	unusable   error                 // image: why the engine couldn't take it
	incomplete error                 // layers: why not all are there
	damaged    error                 // download: what doesn't match
	instead    digest.Digest         // fallback: what would run in the end; zero: the selected one, or nothing
	notice     registry.Notice       // rate limit
	id         inspect.ImageID       // image: zero if the engine doesn't have it
	missing    []int                 // image: the layers that are to be fetched
	left       *int64                // image: their bytes
	stays      *admission.Container  // workload: the container that isn't replaced
}

func newFacts(o Options) *facts {
	f := &facts{options: o, log: o.Log, next: o.For == ForBoot}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.options.Patience == 0 {
		f.options.Patience = 5 * time.Second
	}
	if f.options.Proc == "" {
		f.options.Proc = state.Proc
	}
	return f
}

// boots is what is known of the boot that is asked about without any log.
func (f *facts) boots() admission.Facts {
	known := admission.Facts{Settings: f.options.Settings, Self: f.self}
	if !f.next {
		known.Boot = f.boot
	}
	return known
}

// measuring is what decides whether the boot may measure, without the containers. In the next boot
// nothing is measured yet.
func (f *facts) measuring() admission.Facts {
	known := admission.Facts{Settings: f.options.Settings}
	if f.next {
		return known
	}
	known.Boot, known.Record, known.Wanted = f.boot, f.own.Record(f.boot), f.decision
	known.Log = f.logged()
	if f.native() != nil && known.Log != nil && known.Record.Unfinished() && !known.AnImage() {
		known.Record = admission.Record{ID: f.boot} // the register says that nothing came of it
	}
	return known
}

// logged returns the event log that the boot finds; nil where it isn't known, or begins with the boot.
func (f *facts) logged() *rtmr.Log {
	if f.next || f.events == nil {
		return nil
	}
	return &f.events.Log
}

// around is the same with the containers.
func (f *facts) around() admission.Facts {
	known := f.measuring()
	known.Self, known.Containers = f.self, f.containers
	return known
}

// running reports whether the workload runs already, so that a boot would have nothing more to do.
func (f *facts) running() bool { return admission.Running(f.stays, f.present) }

func (f *facts) close() {
	if f.shared != nil {
		f.shared.Close()
	}
}

func (f *facts) now() time.Time {
	if f.options.Now != nil {
		return f.options.Now()
	}
	return time.Now()
}

// arch is the architecture of the machine that is to boot.
func (f *facts) arch() string {
	if f.options.Arch != "" {
		return f.options.Arch
	}
	return runtime.GOARCH
}

// skips reports whether a group is left out.
func (f *facts) skips(g Group) bool {
	return slices.Contains(f.options.Skip, g) || f.options.Offline && g == GroupRegistry
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
			r.record(c.do(ctx, f))
			r.DurationMS = time.Since(begin).Milliseconds()
		})
	}
	wait.Wait()
	for i, c := range all {
		results[i].Step = string(c.step(f.measuring()))
	}
	return results
}

// leftOut reports whether the operator doesn't want a check. A document that was named is looked at
// in any case.
func (f *facts) leftOut(c check) bool {
	return f.skips(c.group) && !(c.name == "app-compose" && f.options.AppCompose != "")
}

func (r *Result) record(o outcome) {
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

// refuse is a check that ends with an error that may be a refusal, which has a code of its own;
// where it isn't one, with this code.
func refuse(code Code, err error) outcome {
	return outcome{findings: []Finding{refused(code, err)}}
}

func refused(code Code, err error) Finding {
	var r *admission.Refusal
	if errors.As(err, &r) {
		code = r.Code
	}
	return failure(code, err)
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
