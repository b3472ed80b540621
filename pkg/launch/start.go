package launch

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/sanitize"
)

// start starts the very container that was checked, and looks whether it stays.
func (m *machine) start(ready measured) step[started] {
	return func(ctx context.Context) (s started, detail string, err error) {
		defer func() {
			if err == nil || errors.Is(err, errSkipped) {
				fmt.Fprintln(m.Output, Launched)
			}
		}()
		if ready.running {
			m.committed = true
			return started(ready), ready.ShortID() + " runs already", errSkipped
		}
		c, err := m.again(ctx, ready.proved)
		if err != nil {
			return started{}, "", err
		}
		m.committed = true // it runs, or is about to
		ready.Container = c
		if c.Status == "running" {
			return started(ready), c.ShortID() + " runs already", errSkipped
		}
		if err := admission.Startable(c); err != nil {
			return started{}, "", err
		}
		// Not to be interrupted: nobody can say of a start that is given up whether it happens.
		if err := m.engine.Start(context.WithoutCancel(ctx), c.ID); err != nil {
			return started{}, "", &exit.Error{Code: exit.Workload, Err: err, Hint: []string{"free what it names and start the launcher again; the measurement stands"}}
		}
		return m.settle(ctx, ready.proved)
	}
}

// started is a container that was started.
type started struct {
	proved
}

// settle watches the container for the grace period, or until a signal comes.
func (m *machine) settle(ctx context.Context, p proved) (started, string, error) {
	for deadline := m.Now().Add(startGrace); ; {
		c, err := m.engine.Container(context.WithoutCancel(ctx), p.ID)
		if err != nil {
			return started{}, "", &exit.Error{Code: exit.Workload, Err: err}
		}
		p.Container = c
		m.report.note(c)
		switch {
		case c.Status == "exited" && c.ExitCode == 0:
			return started{p}, c.ShortID() + " ended with 0", nil
		case c.Status != "running":
			m.lastWords(ctx, c)
			if !m.Settings.Supervised() {
				return started{}, "", &exit.Error{Code: exit.Workload, Err: fmt.Errorf("container %s is %s with exit code %d", c.Name, c.Status, c.ExitCode),
					Hint: []string{"look at its log: docker logs " + c.Name}}
			}
			return started{p}, fmt.Sprintf("%s is %s with exit code %d", c.ShortID(), c.Status, c.ExitCode), nil
		case !m.Now().Before(deadline):
			return started{p}, c.ShortID() + " runs", nil
		}
		if m.Sleep(ctx, startPoll) != nil {
			return started{p}, c.ShortID() + " runs", nil
		}
	}
}

// lastWords shows people the last lines of a workload that didn't stay.
func (m *machine) lastWords(ctx context.Context, c docker.Container) {
	if log, err := m.engine.Logs(ctx, c.ID, 20, 16<<10); err == nil && len(log) > 0 {
		m.Log.Warn("the workload didn't stay, these are its last lines", "container", c.Name, "status", c.Status, "exit_code", c.ExitCode)
		// Nothing in them may move the cursor, or begin a line that passes for one of ours.
		for _, line := range sanitize.Lines(string(log), lastBytes) {
			m.Foreign(c.Name, line)
		}
	}
}
