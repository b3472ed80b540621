package preflight

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/rtmr"
)

// ReportVersion is that of the report's schema.
const ReportVersion = 1

// Severity says what a finding means for a boot.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // the boot would end there
	Warning Severity = "warning" // it would go on; look at it nevertheless
	Note    Severity = "note"    // good to know
)

// Finding is one thing that was found.
type Finding struct {
	Code     Code      `json:"code"`
	Severity Severity  `json:"severity"`
	ExitCode exit.Code `json:"exit_code"` // of the boot that ends at an error; 0 for the others
	Found    string    `json:"found"`
	Fix      []string  `json:"fix"` // what helps, one line each; may be empty
}

// Status is how a check ended.
type Status string

// The statuses.
const (
	OK        Status = "ok"        // checked, and no error was found
	Failed    Status = "failed"    // an error was found
	Skipped   Status = "skipped"   // left out, or nothing to check here
	Unchecked Status = "unchecked" // it needs what a failed check would have found out
)

// Result is what one check came to.
type Result struct {
	Check      string    `json:"check"`
	Group      Group     `json:"group"`
	Step       string    `json:"step"` // of the boot that would come across it; empty: none
	Status     Status    `json:"status"`
	Detail     string    `json:"detail"`
	Findings   []Finding `json:"findings"`
	DurationMS int64     `json:"duration_ms"`
}

// Event is what would be measured.
type Event struct {
	Name    string `json:"name"`
	Payload string `json:"payload"` // hex
	Digest  string `json:"digest"`  // hex; what RTMR3 is extended with
}

// WouldRun is what the boot would run. What couldn't be found out is null.
type WouldRun struct {
	Reference      string         `json:"reference"`
	Digest         digest.Digest  `json:"digest"`
	Reason         string         `json:"reason"`
	ManifestDigest *digest.Digest `json:"manifest_digest"` // of the image itself, where Digest is that of an index
	ConfigDigest   *digest.Digest `json:"config_digest"`
	ImageID        *digest.Digest `json:"image_id"` // as the engine would show it
	SizeBytes      *int64         `json:"size_bytes"`
	Layers         *int           `json:"layers"`
	BytesLeft      *int64         `json:"bytes_left"` // at most so many are to be downloaded
	Event          *Event         `json:"event"`      // null outside a CVM
	RTMR3          *string        `json:"rtmr3"`      // after the event
	Fallback       *digest.Digest `json:"fallback"`   // what would run in the end instead of Digest, which can't be had
}

// Report is all that was found.
type Report struct {
	Version    int             `json:"version"`
	StartedAt  time.Time       `json:"started_at"`
	DurationMS int64           `json:"duration_ms"`
	Platform   config.Platform `json:"platform"`
	For        For             `json:"for"` // now: a run that begins now; boot: the first one of the next boot
	ExitCode   exit.Code       `json:"exit_code"`
	Summary    string          `json:"summary"`
	Skipped    []Group         `json:"skipped"` // groups that were left out
	Checks     []Result        `json:"checks"`
	WouldRun   *WouldRun       `json:"would_run"` // null where no digest was selected
}

// report puts everything together once all checks have ended.
func (f *facts) report(results []Result, started time.Time) *Report {
	r := &Report{
		Version: ReportVersion, StartedAt: started.UTC().Truncate(time.Millisecond), DurationMS: f.now().Sub(started).Milliseconds(),
		Platform: f.options.Platform, Skipped: f.skippedGroups(), Checks: results, WouldRun: f.wouldRun(), For: ForNow,
	}
	if f.next {
		r.For = ForBoot
	}
	f.demote(r.Checks)
	last := len(admission.Steps()) // what no step comes across
	first, count := last+1, 0
	var code Code
	for _, c := range r.Checks {
		rank := slices.Index(append(admission.Steps(), ""), admission.Step(c.Step))
		for _, finding := range c.Findings {
			if finding.Severity != Error {
				continue
			}
			count++
			if rank < first {
				first, r.ExitCode, code = rank, finding.ExitCode, finding.Code
			}
		}
	}
	var at admission.Step
	if first < last {
		at = admission.Steps()[first]
	}
	r.Summary = f.summary(r, code, count, at)
	return r
}

// demote takes back what a boot would not come across after all.
func (f *facts) demote(results []Result) {
	for i := range results {
		r := &results[i]
		// An earlier boot cached what proves the image, and the layers are checked by that.
		spared := f.cached.Valid() && (r.Check == "manifest" || r.Group == GroupRegistry && !f.id.IsZero())
		// The workload runs, proved and measured.
		spared = spared || f.running() && (r.Step == string(admission.AtCreate) || r.Step == string(admission.AtStart))
		if !spared || r.Status != Failed {
			continue
		}
		r.Status = OK
		for j := range r.Findings {
			if r.Findings[j].Severity == Error {
				r.Findings[j].Severity, r.Findings[j].ExitCode = Warning, exit.OK
			}
		}
	}
}

func (f *facts) skippedGroups() []Group {
	skipped := []Group{}
	for _, g := range Groups() {
		if f.skips(g) {
			skipped = append(skipped, g)
		}
	}
	return skipped
}

func (f *facts) wouldRun() *WouldRun {
	if f.decision == nil {
		return nil
	}
	w := &WouldRun{Reference: f.config.Image.String(), Digest: f.decision.Digest, Reason: string(f.decision.Reason)}
	if !f.instead.IsZero() {
		w.Fallback = &f.instead
	}
	if v := f.verified(); v != nil {
		manifest, config, size, layers := v.ManifestDigest(), v.ConfigDigest(), v.Size(), len(v.Layers())
		w.ManifestDigest, w.ConfigDigest, w.SizeBytes, w.Layers = &manifest, &config, &size, &layers
		if f.engine != nil {
			id := inspect.ID(f.info.Store, v)
			w.ImageID = &id
		}
		if f.left != nil {
			w.BytesLeft = f.left
		} else {
			w.BytesLeft = &size
		}
	}
	if f.options.TEE() {
		w.Event = eventOf(f.decision.Digest)
	}
	if f.events != nil && !f.next {
		register, err := f.events.Log.Predict(f.decision.Digest)
		if f.present {
			register = f.events.Log.Replay()
		}
		if err == nil && (f.present || len(f.events.Log.Images()) == 0) {
			text := register.String()
			w.RTMR3 = &text
		}
	}
	return w
}

func eventOf(h digest.Digest) *Event {
	return &Event{
		Name: rtmr.EventName, Payload: h.Hex(),
		Digest: rtmr.DigestV1(rtmr.EventName, h[:]).String(),
	}
}

// verified returns the proved image, from wherever it is known; nil if it isn't.
func (f *facts) verified() *image.Verified {
	switch {
	case f.cached.Valid(): // as a boot does
		return f.cached
	case f.image.Valid():
		return f.image
	}
	return nil
}

// AsOfNow is what holds for every answer about the next boot.
const AsOfNow = "with the list, config and sources as they are now"

// summary says in one sentence of one line what a boot would come to. At is the step at which it comes
// across the first error; empty: none does.
func (f *facts) summary(r *Report, code Code, count int, at admission.Step) string {
	left := []string{}
	for _, g := range r.Skipped {
		left = append(left, string(g))
	}
	run, end := "run", "."
	if f.next {
		run, end = "At the next boot, run", ", "+AsOfNow+"."
	}
	if f.waits && !f.otherwise(r) {
		end = ", " + AsOfNow + "; the same goes for the next attempt of the launcher that waits here."
	}
	switch {
	case count > 0:
		name := ""
		for _, c := range exit.Classes() {
			if c.Code == r.ExitCode {
				name = c.Name
			}
		}
		would := "end"
		if f.options.Passes(at, r.ExitCode, false) {
			would = "fail"
			if !f.instead.IsZero() && r.ExitCode != exit.Engine && (at == admission.AtPull || at == admission.AtLoad) {
				end = fmt.Sprintf("; it would wait for %s, and fall back to %s after %s%s",
					f.decision.Digest, f.instead, waits(f.options.FallbackAfter), end)
			} else {
				end = "; it would wait and try again" + end
			}
		}
		s := fmt.Sprintf("%s would %s with exit code %d, %s: %s", run, would, r.ExitCode, name, code)
		if at == "" {
			what := "verifiers would refuse the node"
			if r.ExitCode == exit.Config {
				what = "the named document can't be judged"
			}
			s = fmt.Sprintf("%s would go on, but %s: exit code %d, %s", run, what, r.ExitCode, code)
		}
		switch count {
		case 1:
			return s + end
		case 2:
			return s + ", and 1 more error" + end
		}
		return fmt.Sprintf("%s, and %d more errors%s", s, count-1, end)
	case len(left) > 0:
		return "No error was found; not checked: " + strings.Join(left, ", ") + end
	case f.running():
		return run + " would succeed and change nothing: the workload is already running" + end
	}
	s := run + " would succeed: "
	if w := r.WouldRun; w != nil && w.BytesLeft != nil && *w.BytesLeft > 0 {
		s += "download " + Size(*w.BytesLeft) + ", "
	}
	switch {
	case !f.options.TEE():
		return s + "start the workload, unmeasured" + end
	case f.present:
		return s + "start the workload, which is already measured" + end
	}
	return s + "measure the image, start the workload" + end
}

// otherwise reports whether the next attempt of a launcher that waits may come to something else than the
// next boot: where an image is measured in this one, or is in the engine only until then.
func (f *facts) otherwise(r *Report) bool {
	return f.events == nil && f.options.TEE() || f.events != nil && len(f.events.Log.Images()) > 0 ||
		slices.ContainsFunc(r.Checks, func(c Result) bool {
			return slices.ContainsFunc(c.Findings, func(found Finding) bool { return found.Code == ImagePrunable })
		})
}

// Size prints bytes for people, in decimal units as registries describe them.
func Size(n int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}} {
		if n >= unit.bytes {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.bytes), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
