package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/rtmr"
	"tee-launcher/pkg/sanitize"
	"tee-launcher/pkg/state"
	"tee-launcher/pkg/status"
)

// reportInterval is how often the report is written while layers move.
const reportInterval = 2 * time.Second

// ReportVersion is the version of the report's schema.
const ReportVersion = 2

// Report is the launch report: what was done, how far it came and how it ended. It holds no secret, and nothing that
// Compose or the workload printed.
type Report struct {
	Version     int                `json:"version"`
	BootID      string             `json:"boot_id"`
	StartedAt   time.Time          `json:"started_at"`
	FinishedAt  *time.Time         `json:"finished_at"` // null while it runs
	Platform    config.Platform    `json:"platform"`
	Image       *ImageReport       `json:"image"` // null until it is known
	Steps       []StepReport       `json:"steps"`
	Pull        *PullReport        `json:"pull"`
	Measurement *MeasurementReport `json:"measurement"`
	Workload    *WorkloadReport    `json:"workload"`
	Staged      *StagedReport      `json:"staged"`    // null: nothing is to be
	Attempt     int                `json:"attempt"`   // which one all of the above is about
	ExitCode    *exit.Code         `json:"exit_code"` // null while it runs
	Error       *string            `json:"error"`     // while it runs: why it waits for the next attempt
}

// ImageReport says which image was chosen, and why.
type ImageReport struct {
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest"` // of the manifest, as approved
	Reason    string        `json:"reason,omitempty"`
	// FallbackFrom is the newer digest that could not be had; null: there is no fallback.
	FallbackFrom *digest.Digest `json:"fallback_from"`
	ConfigDigest string         `json:"config_digest"` // empty until the manifest is proved
	ImageID      string         `json:"image_id"`      // the engine's; empty until the image is proved there
	SizeBytes    int64          `json:"size_bytes"`    // of all layers as they are in the registry
	Layers       int            `json:"layers"`
}

// Status is how far a step came.
type Status string

const (
	pending Status = "pending"
	running Status = "running"
	done    Status = "done"
	skipped Status = "skipped"
	failed  Status = "failed"
)

// StepReport is one step of the sequence.
type StepReport struct {
	Name       string     `json:"name"`
	Status     Status     `json:"status"`
	StartedAt  *time.Time `json:"started_at"` // null while pending
	DurationMS int64      `json:"duration_ms"`
	Detail     string     `json:"detail"`
}

// PullReport says what was moved over the network.
type PullReport struct {
	BytesFetched int64  `json:"bytes_fetched"`
	BytesReused  int64  `json:"bytes_reused"`
	Requests     int    `json:"requests"`
	Resumes      int    `json:"resumes"`
	Source       string `json:"source"` // registry, engine, or the address of a source of the user config

	Liars []string `json:"liars"` // the sources that lied, in this attempt or an earlier one
}

// MeasurementReport says what stands in the register.
type MeasurementReport struct {
	Event          string        `json:"event"`
	Digest         digest.Digest `json:"digest"`
	RTMR3          string        `json:"rtmr3"` // 96 hex digits
	AlreadyPresent bool          `json:"already_present"`
}

// WorkloadReport says what became of the container.
type WorkloadReport struct {
	ContainerID  string `json:"container_id"`
	Status       string `json:"status"`
	Restarts     int    `json:"restarts"`
	LastExitCode *int   `json:"last_exit_code"` // null if it never ended
}

// report keeps the document and the place it is written to.
type report struct {
	Report
	status   outside
	log      *slog.Logger
	progress Progress
	to       func(data []byte) error // nil: not written
	step     int                     // the latest
	failing  bool                    // it couldn't be written the last time

	mu sync.Mutex // while it supervises: staging reports beside it
}

// open chooses where the report goes: to path, or, where that is empty, to our own directory. A report that can't be written is a
// warning.
func (r *report) open(path string, own state.Dir, shared *files.Dir) {
	switch path {
	case admission.NoReport:
	case "":
		r.to = func(data []byte) error { return own.Write(state.ReportName, data) }
	default:
		r.to = func(data []byte) error { return writeAt(path, shared, data) }
	}
}

// writeAt replaces the file at path.
func writeAt(path string, shared *files.Dir, data []byte) error {
	dir, err := state.ReportDir(path, shared)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Write(filepath.Base(path), data, 0o644)
}

func (r *report) plan(steps ...admission.Step) {
	for _, name := range steps {
		r.Steps = append(r.Steps, StepReport{Name: string(name), Status: pending})
	}
}

// begin begins the first step that is pending.
func (r *report) begin() {
	now := now()
	r.step = slices.IndexFunc(r.Steps, func(s StepReport) bool { return s.Status == pending })
	r.Steps[r.step].Status, r.Steps[r.step].StartedAt = running, &now
	r.status.waiting, r.status.failure = nil, nil
	r.progress.Step(r.Steps[r.step].Name, r.step+1, len(r.Steps))
	r.write()
}

// end ends the step that was begun.
func (r *report) end(outcome Status, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.Steps[r.step]
	s.Status, s.Detail, s.DurationMS = outcome, detail, time.Since(*s.StartedAt).Milliseconds()
	r.write()
}

// moved takes over what was moved over the network so far.
func (r *report) moved(s registry.Stats) {
	r.Pull.BytesFetched, r.Pull.Requests, r.Pull.Resumes = s.Fetched, s.Requests, s.Resumes
	r.Pull.Liars = append([]string{}, s.Liars...)
}

// image says what is proved of the image, and its ID if that is.
func (r *report) image(v *image.Verified, id docker.ImageID) {
	r.Image.ConfigDigest, r.Image.ImageID = v.ConfigDigest().String(), id.String()
	r.Image.SizeBytes, r.Image.Layers = v.Size(), len(v.Layers())
}

func (r *report) measured(register rtmr.Register, digest digest.Digest, already bool) {
	r.Measurement = &MeasurementReport{Event: rtmr.EventName, Digest: digest, RTMR3: register.String(), AlreadyPresent: already}
}

// note takes over the container's state, and reports whether it changed.
func (r *report) note(c docker.Container) bool {
	before := WorkloadReport{}
	if r.Workload != nil {
		before = *r.Workload
	}
	now := before
	now.ContainerID, now.Status = c.ID, c.Status
	// While it runs the engine tells 0, which says nothing.
	ended := c.Status != "running" && c.Status != "paused" && !c.FinishedAt.IsZero()
	if ended && (now.LastExitCode == nil || *now.LastExitCode != c.ExitCode) {
		now.LastExitCode = &c.ExitCode
	}
	r.Workload = &now
	return now != before
}

// observe is what the supervision sees of the workload.
func (r *report) observe(c docker.Container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.note(c) {
		r.write()
	}
}

// restarted counts a restart by the supervision.
func (r *report) restarted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Workload.Restarts++
	r.write()
}

func (r *report) restarts() int { return r.Workload.Restarts }

// stage takes over how far staging is.
func (r *report) stage(s *StagedReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s != nil {
		s.At = now()
	}
	r.Staged = s
	r.write()
}

func (r *report) finish(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, code := now(), exit.Of(err)
	r.FinishedAt, r.ExitCode = &now, &code
	r.fail(err)
}

// fail says why the boot ended or waits; nil: it didn't fail.
func (r *report) fail(err error) {
	if err != nil {
		text := shown(err, sanitize.MaxLine)
		r.Error = &text
		r.status.failure = &status.Error{Code: exit.Of(err), Message: text}
		// Until it ends, the step comes behind the error: near/mpc's own check of a node in a CVM takes any
		// line in which "error" follows "pull" for the end of the launcher.
		if failed := (*StepError)(nil); r.status.waiting != nil && errors.As(err, &failed) {
			r.status.failure.Message = fmt.Sprintf("%s, in %s", shown(failed.Err, 500), failed.Step)
		}
	}
	r.write()
}

// waits says why the boot waits for its next attempt.
func (r *report) waits(err error) {
	now := now()
	r.status.waiting = &now
	r.fail(err)
}

// again begins the next attempt, which knows nothing of the one before. From outside it waits until
// its first step begins.
func (r *report) again() {
	r.Attempt++
	r.Image, r.Pull, r.Measurement, r.Workload, r.Staged, r.Error = nil, nil, nil, nil, nil, nil
	for i, s := range r.Steps {
		if admission.Step(s.Name) != admission.AtSettings {
			r.Steps[i] = StepReport{Name: s.Name, Status: pending}
		}
	}
	r.save()
}

// shown is an error's text for the report, of so many characters at most: what Compose printed is for the
// console alone.
func shown(err error, limit int) string {
	text := err.Error()
	if c := (*compose.Error)(nil); errors.As(err, &c) {
		text = strings.ReplaceAll(text, c.Error(), c.Summary())
	}
	return sanitize.Line(text, limit)
}

// write tells everybody how it is.
func (r *report) write() {
	r.tell()
	r.save()
}

// save writes the document.
func (r *report) save() {
	if r.to == nil {
		return
	}
	data, err := json.MarshalIndent(r.Report, "", "  ")
	if err == nil {
		err = r.to(append(sanitize.JSON(data), '\n'))
	}
	if err != nil && !r.failing {
		r.log.Warn("the report can't be written", "error", err)
	}
	r.failing = err != nil // once is enough to say
}

// now is the time as the report writes it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
