package launch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
)

const (
	// firstDelay is how long the first restart waits. Each further one waits twice as long as the one before, maxDelay at most.
	firstDelay = time.Second
	maxDelay   = time.Minute
	// stableRun is how long a workload must have run for the next restart to count as the first.
	stableRun = 10 * time.Minute
	// signalWindow is how long before its end a signal may have come that is taken for its cause: a shutdown takes its time, but what
	// survives a signal for longer ended for another reason, and has to be started again. Of a longer `docker stop` it is the stop, which
	// the engine tells when it is over, that counts.
	signalWindow = 10 * time.Minute
	// pollInterval is how often the workload is looked at where nothing seems to happen: an engine under load drops events.
	pollInterval = time.Minute
	// reconnectDelay is how long an engine that is away is left alone.
	reconnectDelay = time.Second
	// shutdownTimeout bounds the orderly stop, because Docker kills what it stops, us included, after ten seconds. Of these the workload
	// gets shutdownGrace to end by itself.
	shutdownTimeout = 8 * time.Second
	shutdownGrace   = 5 * time.Second
	shutdownStart   = 2 * time.Second // what a start that is under way still gets
)

// supervise looks after the workload until it ends with 0 or a signal comes. The container's restart policy is "no": an
// engine that restarts it does so at its own start too, before anything was measured.
func (m *machine) supervise(what started) step[struct{}] {
	return func(ctx context.Context) (none struct{}, detail string, err error) {
		if !m.Settings.Supervised() {
			return none, "the engine looks after the workload", errSkipped
		}
		s := &supervisor{proved: what.proved, log: m.Log, report: m.report, host: m.Settings.DockerHost, now: m.Now, sleep: m.Sleep}
		if what.failed { // it isn't launched before it has stayed
			s.launched = func() { fmt.Fprintln(m.Output, Launched) }
		}
		debug.FreeOSMemory() // what waits for months should be small
		defer m.remind(ctx)()
		ended := m.stageAhead(ctx, what.proved)
		s.log.Info("supervising", "container", s.proved.Name, "id", s.proved.ShortID())
		detail, err = s.watch(ctx)
		ended()
		return none, detail, err
	}
}

// supervisor looks after the one container that was proved, and takes no other one for it.
type supervisor struct {
	proved proved
	log    *slog.Logger
	report *report
	host   string // the engine's
	now    func() time.Time
	sleep  func(context.Context, time.Duration) error

	delay      time.Duration // before the latest restart
	delayReset time.Time     // when the run began for which the delay was last forgotten
	stopped    bool          // somebody stopped the workload on purpose, so it stays so until somebody starts it
	lost       *time.Time    // when the run began before a start whose answer was lost; nil: none was
	away       bool          // the engine was away since the workload was last seen to run, so the engine ended it
	launched   func()        // says that the workload has stayed after its start; nil: that was said
}

// awayError is an engine that doesn't answer, or that says nothing sensible.
type awayError struct{ err error }

func (e *awayError) Error() string { return "the engine doesn't answer: " + e.err.Error() }
func (e *awayError) Unwrap() error { return e.err }

// watch follows the workload, with as many connections to the engine as that takes.
func (s *supervisor) watch(ctx context.Context) (string, error) {
	for {
		detail, err := s.follow(ctx)
		var away *awayError
		switch {
		case ctx.Err() != nil:
			return s.stop(ctx)
		case !errors.As(err, &away):
			return detail, err
		case refused(err):
			s.log.Warn("the engine refuses to report the workload's state, asking again", "error", away.err)
		case !s.away:
			s.away = true
			s.log.Warn("the engine doesn't answer, waiting for it", "error", away.err)
		}
		if s.sleep(ctx, reconnectDelay) != nil {
			return s.stop(ctx)
		}
	}
}

// follow looks at the workload whenever something happens to it, until it ends for good, the engine goes away or ctx ends.
func (s *supervisor) follow(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	engine, err := s.connect()
	if err != nil {
		return "", err
	}
	happened, err := engine.Watch(ctx, s.proved.ID)
	if err != nil {
		return "", &awayError{err}
	}
	for {
		if detail, err := s.look(ctx); err != nil || detail != "" {
			return detail, err
		}
		select {
		case _, open := <-happened:
			if !open {
				return "", &awayError{errors.New("it ended the stream of events")}
			}
		case <-time.After(s.poll()):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// poll is how long the workload isn't looked at where nothing happens.
func (s *supervisor) poll() time.Duration {
	if s.launched != nil { // whoever waits for the launch hears of it soon
		return startGrace
	}
	return pollInterval
}

// connect returns the engine by way of a new connection. An engine that is about to end takes no new ones any more, while it still
// answers on old ones and stops our workload: that must not look like somebody's purpose.
func (s *supervisor) connect() (*docker.Engine, error) { return docker.New(s.host) }

// look finds out how the workload is and does what has to be done. A detail says that it ended well.
func (s *supervisor) look(ctx context.Context) (detail string, err error) {
	for {
		c, err := s.inspect(ctx)
		switch {
		case err != nil:
			return "", err
		case c.Live():
			if s.stopped || s.away {
				s.log.Info("the workload runs", "status", c.Status)
			}
			s.stopped, s.away = false, false
			if s.launched != nil && c.Status == "running" && s.now().Sub(c.StartedAt) >= startGrace {
				s.log.Info("the workload stays now", "restarts", s.report.restarts())
				s.launched()
				s.launched = nil
			}
			return "", nil
		case s.stopped:
			return "", nil
		case s.away:
			s.log.Warn("the workload ended with its engine")
		default:
			if purpose, err := s.stoppedOnPurpose(ctx, c); err != nil || purpose {
				return "", err
			}
			if c.ExitCode == 0 {
				return "the workload ended with 0", nil
			}
		}
		if err := s.restart(ctx, c); err != nil {
			return "", err
		}
	}
}

// restart starts the workload again after a while, if it is still as it was proved and nobody wants it otherwise by then.
func (s *supervisor) restart(ctx context.Context, c docker.Container) error {
	if c.FinishedAt.Sub(c.StartedAt) >= stableRun && !c.StartedAt.Equal(s.delayReset) { // once: a start that is refused leaves the times as they are
		s.delay, s.delayReset = 0, c.StartedAt
	}
	s.delay = min(max(2*s.delay, firstDelay), maxDelay)
	s.log.Warn("the workload ended and is started again", "exit_code", c.ExitCode, "delay", s.delay, "restarts", s.report.restarts(),
		"hint", "until then docker stop does nothing, and tells nobody: to keep it stopped, stop the launcher")
	if err := s.sleep(ctx, s.delay); err != nil {
		return err
	}
	c, err := s.inspect(ctx)
	if err != nil || c.Live() {
		return err
	}
	if !s.away {
		if purpose, err := s.stoppedOnPurpose(ctx, c); err != nil || purpose {
			return err
		}
	}
	if err := s.proved.want.Check(c); err != nil {
		return err
	}
	engine, err := s.connect()
	if err != nil {
		return err
	}
	// Not to be interrupted: a start that may still happen can't be stopped.
	starting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if s.sleep(starting, shutdownStart) == nil {
			cancel()
		}
	})()
	err = engine.Start(starting, c.ID)
	switch {
	case err == nil:
		s.lost = nil
		s.report.restarted()
	case refused(err):
		s.log.Warn("the workload can't be started", "error", err) // and so it has ended again
		return nil
	default:
		s.lost = &c.StartedAt // inspect finds out whether it happened
		return &awayError{err}
	}
	return nil
}

// inspect returns the container as it is, and notes that for the report. That it is gone is the end.
func (s *supervisor) inspect(ctx context.Context) (docker.Container, error) {
	engine, err := s.connect()
	if err != nil {
		return docker.Container{}, err
	}
	c, err := engine.Container(ctx, s.proved.ID)
	switch {
	case inspect.NotFound(err):
		// Without it nothing references the volume with the keys, which the prune of the next boot would take.
		if _, err := holder(ctx, engine, s.proved.want.ID, s.proved.want.Base); err != nil {
			s.log.Warn("no container references the data volume", "error", err)
		}
		return c, &exit.Error{Code: exit.Workload, Err: fmt.Errorf("container %s (%s) was removed", s.proved.Name, s.proved.ShortID()),
			Hint: []string{"start the launcher again: it makes a new one, with the same volumes"}}
	case err != nil:
		return c, &awayError{err}
	}
	s.proved.Container = c
	if s.lost != nil && !c.StartedAt.Equal(*s.lost) {
		s.lost = nil
		s.report.restarted()
	}
	s.report.observe(c)
	return c, nil
}

// stoppedOnPurpose reports whether the workload ended because somebody stopped or killed it since it was started, and remembers that.
func (s *supervisor) stoppedOnPurpose(ctx context.Context, c docker.Container) (bool, error) {
	engine, err := s.connect()
	if err != nil {
		return false, err
	}
	end := c.FinishedAt
	if now := s.now(); end.After(now) { // the clock was set back
		end = now
	}
	since := end.Add(-signalWindow)
	if since.Before(c.StartedAt) {
		since = c.StartedAt
	}
	events, err := engine.Events(ctx, c.ID, since, "kill", "stop")
	if err != nil {
		return false, &awayError{err}
	}
	for _, e := range events {
		if e.Action == "stop" || meantToEnd(e.Signal, c.StopSignal) {
			s.stopped = true
			s.log.Info("the workload was stopped on purpose, waiting until it is started", "exit_code", c.ExitCode)
			return true, nil
		}
	}
	return false, nil
}

// meantToEnd reports whether a signal that somebody sent was meant to end the workload: others have it reload its configuration, and
// say nothing about an end that comes later. Own is the signal by which its image wants to be stopped.
func meantToEnd(signal, own string) bool {
	number, err := strconv.Atoi(signal)
	if err != nil {
		return false
	}
	s := syscall.Signal(number)
	switch s {
	case unix.SIGKILL, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT:
		return true
	}
	return own == signal || s == unix.SignalNum("SIG"+strings.TrimPrefix(strings.ToUpper(own), "SIG"))
}

// refused tells an engine that said no from one that didn't answer.
func refused(err error) bool {
	var e *docker.Error
	return errors.As(err, &e) && e.Status != 0
}

// stop ends the workload because a signal told us to end.
func (s *supervisor) stop(ctx context.Context) (string, error) {
	s.log.Info("stopping the workload", "because", context.Cause(ctx))
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go func() {
		if s.sleep(ctx, shutdownTimeout) == nil {
			cancel()
		}
	}()
	engine, err := s.connect()
	if err != nil {
		return "", err
	}
	err = engine.Stop(ctx, s.proved.ID, shutdownGrace)
	switch {
	case err == nil:
		if c, err := engine.Container(ctx, s.proved.ID); err == nil {
			s.report.observe(c)
		}
	case inspect.NotFound(err):
	case refused(err):
		return "", err
	default:
		// The answer is lost, or there was none: an engine that ends, as in a shutdown, stops the workload. One that is gone can't.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		c, again := engine.Container(ctx, s.proved.ID)
		if again == nil {
			s.report.observe(c)
		}
		if again != nil || c.Live() {
			s.log.Warn("the engine doesn't answer, the workload is left to it", "error", err)
		}
	}
	return "ended by a signal", nil
}
