package launch

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/state"
	"tee-launcher/pkg/status"
)

// metricsName is the name of the metrics' file in our own directory.
const metricsName = "metrics.prom"

// outside is what the status says beside the report.
type outside struct {
	teller  *status.Teller // nil: nobody is told
	version string         // the launcher's
	waiting *time.Time     // since when the boot waits for its next attempt; nil: it doesn't
	failure *status.Error  // why it ended or waits
	silence func()         // ends what is said from time to time
}

// tell says from outside how it is, once a step has begun.
func (r *report) tell() {
	if r.status.teller == nil || r.Steps[r.step].StartedAt == nil && r.status.waiting == nil {
		return
	}
	r.status.teller.Tell(r.seen())
}

// seen is the report as it is told outside.
func (r *report) seen() status.Status {
	step := r.Steps[r.step]
	s := status.Status{
		Version: status.Version, Phase: step.Name, BootID: r.BootID, Launcher: r.status.version,
		Error: r.status.failure,
	}
	if r.status.waiting != nil {
		s.Phase, s.Since = status.Waiting, *r.status.waiting
	} else {
		s.Since = *step.StartedAt
	}
	if i := r.Image; i != nil {
		s.Reference, s.Digest, s.Reason, s.FallbackFrom = i.Reference, &i.Digest, i.Reason, i.FallbackFrom
	}
	if r.Platform == config.TEE {
		measured := r.Measurement != nil
		s.Measured = &measured
		if measured {
			s.RTMR3 = r.Measurement.RTMR3
		}
	}
	if w := r.Workload; w != nil {
		s.Restarts, s.LastExitCode = w.Restarts, w.LastExitCode
		if s.Phase == status.Supervise && s.Error == nil && w.Status != "running" {
			s.Error = &status.Error{Code: exit.Workload, Message: "the workload is " + w.Status}
			if w.LastExitCode != nil {
				s.Error.Message += fmt.Sprintf(", exit code %d", *w.LastExitCode)
			}
		}
	}
	if g := r.Staged; g != nil {
		s.Staged = &status.Staged{Digest: g.Digest, State: string(g.State), Error: g.Error, At: g.At}
	}
	if at := admission.Step(s.Phase); at == admission.AtPull || at == admission.AtLoad {
		percent := 0
		if r.Image != nil && r.Image.SizeBytes > 0 && r.Pull != nil {
			percent = int(min(100*(r.Pull.BytesFetched+r.Pull.BytesReused)/r.Image.SizeBytes, 100))
		}
		s.Percent = &percent
	}
	return s
}

// teller tells by lines, from the first step on.
func (r *run) teller() *status.Teller {
	return &status.Teller{
		Every: r.StatusEvery, Now: r.Now, Print: func(line string) { fmt.Fprintln(r.Output, line) },
	}
}

// speak has the teller do all the rest, from the lock on: a second launcher says nothing in the
// place of the first. What can't be said is a warning, because no node should be down for it.
func (m *machine) speak() {
	teller := m.report.status.teller
	var failing, unread bool
	teller.Use(func(metrics []byte) {
		err := m.own.Write(metricsName, metrics)
		if err != nil && !failing {
			m.Log.Warn("the metrics can't be written", "error", err)
		}
		failing = err != nil // once is enough to say
	}, func(d digest.Digest) *int {
		list, err := state.Approved(m.shared)
		if err != nil && !unread {
			m.Log.Warn("the approved list can't be read: with this one, the next boot ends", "error", err)
		}
		unread = err != nil
		place := status.NotListed
		switch {
		case err != nil:
		case list == nil:
			return nil
		default:
			place = slices.Index(list.Digests(), d) // -1 is NotListed
		}
		return &place
	})
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { teller.Run(ctx) })
	var listeners []net.Listener
	serve := func(what string, l net.Listener, err error) {
		if err != nil {
			m.Log.Warn(what+" can't be served", "error", err)
			return
		}
		listeners = append(listeners, l)
		all.Go(func() {
			if err := teller.Serve(l); err != nil {
				m.Log.Warn(what+" are served no more", "error", err)
			}
		})
	}
	if m.Temporary != "" {
		l, err := status.Listen(m.Temporary)
		serve("health checks", l, err)
	}
	if m.MetricsListen != "" {
		l, err := net.Listen("tcp", m.MetricsListen)
		serve("metrics", l, err)
	}
	m.report.status.silence = func() {
		cancel()
		for _, l := range listeners {
			l.Close()
		}
		all.Wait()
	}
}

// whole is a writer for several goroutines, to which each writes whole lines.
type whole struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *whole) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(p)
}
