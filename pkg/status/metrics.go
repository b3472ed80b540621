package status

import (
	"fmt"
	"strings"
	"time"

	"tee-launcher/pkg/sanitize"
)

// MaxSeries bounds how many series Metrics holds.
const MaxSeries = 30

// Metric describes one for documents.
type Metric struct{ Name, Type, Help string }

const (
	namespace = "launcher_" // with which every name begins
	maxLabel  = 300         // bounds a label's value, in characters
)

// Metrics returns the status as Prometheus's text. No series has a time of its own: whoever scrapes
// says when.
func (s Status) Metrics() []byte {
	var b strings.Builder
	for _, m := range s.series() {
		name := namespace + m.Name
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, m.Help, name, m.Type)
		if m.value != "" {
			fmt.Fprintf(&b, "%s%s %s\n", name, m.labels, m.value)
		}
	}
	return []byte(b.String())
}

// AllMetrics returns all that there are.
func AllMetrics() []Metric {
	var all []Metric
	for _, m := range (Status{}).series() {
		all = append(all, Metric{namespace + m.Name, m.Type, m.Help})
	}
	return all
}

type series struct {
	Metric
	labels string
	value  string // empty: there is none now
}

func (s Status) series() []series {
	const gauge, counter = "gauge", "counter"
	optional := func(n *int) string {
		if n == nil {
			return ""
		}
		return fmt.Sprint(*n)
	}
	image := ""
	if s.Digest != nil {
		image = s.Digest.String()
	}
	staged, stagedFailed := "", ""
	var stagedLabels string
	if g := s.Staged; g != nil && g.State != StagingOff {
		var of string // nothing where the next boot couldn't choose an image
		if g.Digest != nil {
			of = g.Digest.String()
		}
		staged, stagedFailed = "1", number(g.Error != nil)
		stagedLabels = labels("digest", of, "state", g.State)
	}
	var measured string
	if s.Measured != nil {
		measured = number(*s.Measured)
	}
	code := 0
	if s.Error != nil {
		code = int(s.Error.Code)
	}
	var pulled string
	if s.Percent != nil {
		pulled = fmt.Sprintf("%d.%02d", *s.Percent/100, *s.Percent%100)
	}
	return []series{
		{
			Metric{"info", gauge,
				"The launcher and the image it runs; always 1."},
			labels("version", s.Launcher, "boot_id", s.BootID, "reference", s.Reference, "digest", image,
				"reason", s.Reason), "1",
		},
		{
			Metric{"phase", gauge,
				"The step that the boot is at, or waiting; always 1."},
			labels("phase", s.Phase), "1",
		},
		{
			Metric{"phase_start_timestamp_seconds", gauge,
				"When that phase began."},
			"", seconds(&s.Since),
		},
		{
			Metric{"healthy", gauge,
				"1 if the workload runs and, in a CVM, is measured."},
			"", number(s.Healthy()),
		},
		{
			Metric{"measured", gauge,
				"1 if this boot's image is measured in RTMR3; absent outside a CVM."},
			"", measured,
		},
		{
			Metric{"workload_running", gauge,
				"1 if the workload runs."},
			"", number(s.Runs()),
		},
		{
			Metric{"workload_restarts_total", counter,
				"How often this launcher has started the workload again."},
			"", fmt.Sprint(s.Restarts),
		},
		{
			Metric{"workload_last_exit_code", gauge,
				"The code that the workload last ended with; absent if it never did."},
			"", optional(s.LastExitCode),
		},
		{
			Metric{"approved_place", gauge,
				"Place of the running digest in the approved list: 0 newest, -1 not in it; absent without a list."},
			"", optional(s.Approved),
		},
		{
			Metric{"approved_place_start_timestamp_seconds", gauge,
				"Since when this launcher has seen it in that place."},
			"", seconds(s.ApprovedSince),
		},
		{
			Metric{"fallback", gauge,
				"1 if an older approved digest runs because the newest could not be had."},
			"", number(s.FallbackFrom != nil),
		},
		{
			Metric{"staged", gauge,
				"The image that is fetched before it is needed, and how far that is; always 1, absent without one."},
			stagedLabels, staged,
		},
		{
			Metric{"staged_failed", gauge,
				"1 if that image can't be had; absent without one."},
			"", stagedFailed,
		},
		{
			Metric{"pulled_ratio", gauge,
				"How much of the image's bytes are here; absent but while it is pulled and loaded."},
			"", pulled,
		},
		{
			Metric{"error_code", gauge,
				"The exit code of what is wrong; 0 if nothing is."},
			"", fmt.Sprint(code),
		},
	}
}

func number(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func seconds(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%d.%03d", t.Unix(), t.Nanosecond()/int(time.Millisecond))
}

// labels returns pairs of names and values as Prometheus reads them.
func labels(pairs ...string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, `,%s="%s"`, pairs[i], escape.Replace(sanitize.Line(pairs[i+1], maxLabel)))
	}
	return "{" + strings.TrimPrefix(b.String(), ",") + "}"
}
