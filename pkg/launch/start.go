package launch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/sanitize"
)

// start starts the very container that was checked, and looks whether it stays.
func (m *machine) start(ready measured) step[started] {
	return func(ctx context.Context) (s started, detail string, err error) {
		defer func() {
			if !s.failed && (err == nil || errors.Is(err, errSkipped)) {
				fmt.Fprintln(m.Output, Launched)
			}
		}()
		if ready.running {
			m.committed = true
			return started{proved: ready.proved}, ready.ShortID() + " runs already", errSkipped
		}
		c, err := m.again(ctx, ready.proved)
		if err != nil {
			return started{}, "", err
		}
		m.committed = true // it runs, or is about to
		ready.Container = c
		if c.Status == "running" {
			return started{proved: ready.proved}, c.ShortID() + " runs already", errSkipped
		}
		if err := admission.Startable(c); err != nil {
			return started{}, "", err
		}
		// Not to be interrupted: nobody can say of a start that is given up whether it happens.
		if err := m.engine.Start(context.WithoutCancel(ctx), c.ID); err != nil && !refused(err) {
			return started{}, "", err // the engine is away, which says nothing of the workload
		} else if err != nil {
			return started{}, "", &exit.Error{Code: exit.Workload, Err: err, Hint: []string{startHint(err)}}
		}
		return m.settle(ctx, ready.proved)
	}
}

// started is a container that was started.
type started struct {
	proved
	failed bool // it has ended again, with another code than 0
}

// settle watches the container for the grace period, or until a signal comes.
func (m *machine) settle(ctx context.Context, p proved) (started, string, error) {
	for deadline := m.Now().Add(startGrace); ; {
		c, err := m.engine.Container(context.WithoutCancel(ctx), p.ID)
		switch {
		case err != nil && !refused(err):
			return started{}, "", err
		case err != nil:
			return started{}, "", &exit.Error{Code: exit.Workload, Err: err}
		}
		p.Container = c
		m.report.note(c)
		switch {
		case c.Status == "exited" && c.ExitCode == 0:
			return started{proved: p}, c.ShortID() + " ended with 0", nil
		case c.Status != "running":
			m.lastWords(ctx, c)
			if !m.Settings.Supervised() {
				return started{}, "", &exit.Error{
					Code: exit.Workload, Hint: endingHints(c),
					Err: fmt.Errorf("the workload didn't stay: container %s is %s, %s", c.Name, c.Status, ending(c)),
				}
			}
			return started{p, true}, fmt.Sprintf("%s is %s, %s", c.ShortID(), c.Status, ending(c)), nil
		case !m.Now().Before(deadline):
			return started{proved: p}, c.ShortID() + " runs", nil
		}
		if m.Sleep(ctx, startPoll) != nil {
			return started{proved: p}, c.ShortID() + " runs", nil
		}
	}
}

// ending says how a workload ended.
func ending(c docker.Container) string {
	code := fmt.Sprintf("exit code %d", c.ExitCode)
	switch {
	case c.OOMKilled:
		return code + ": the kernel killed it, its memory was used up"
	case c.ExitCode == 126:
		return code + ": its program can't be run"
	case c.ExitCode == 127:
		return code + ": its program isn't in the image"
	case c.ExitCode == 137:
		return code + ": it was killed"
	}
	return code
}

// endingHints says what helps where a workload ended by itself.
func endingHints(c docker.Container) []string {
	log := "look at its log: docker logs " + c.Name
	switch {
	case c.OOMKilled:
		return []string{"give the machine more memory", log}
	case c.ExitCode == 126, c.ExitCode == 127:
		return []string{wrongImage, log}
	}
	return []string{log}
}

const wrongImage = "the image has no /app/mpc-node that this machine can run: approve the digest of another"

// startHint says what helps where the engine didn't start the container. Only its words say why.
func startHint(err error) string {
	said := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(err.Error(), w) })
	}
	switch {
	case said("address already in use", "port is already allocated"):
		return "a port is taken: `ss -ltnp` and `docker ps` show by what; " +
			"free it, or map another in port_mappings of the user config, and start the launcher again"
	case said("privileged port"):
		return "a rootless engine can't open a port below 1024: " +
			"map another in port_mappings of the user config, or allow that as the engine says"
	case said("no such file or directory", "executable file not found", "exec format error"):
		return wrongImage
	}
	return "mend what the engine names, and start the launcher again: it goes on from here"
}

// lastWords shows people the last lines of a workload that didn't stay.
func (m *machine) lastWords(ctx context.Context, c docker.Container) {
	if log, err := m.engine.Logs(ctx, c.ID, 20, 16<<10); err == nil && len(log) > 0 {
		m.Log.Warn("the workload didn't stay, these are its last lines", "container", c.Name, "status", c.Status, "exit_code", c.ExitCode)
		m.foreign(c.Name, log)
	}
}

// maxForeign is in characters, of four bytes at most: an engine keeps a line of more than 16 KiB in
// pieces, of which a later one would stand without its prefix where the log is read from there.
const maxForeign = 4000

// foreign shows what somebody else wrote. Nothing in it may move the cursor, or begin a line that
// passes for one of ours.
func (m *machine) foreign(from string, log []byte) {
	for _, line := range sanitize.Lines(string(log), lastBytes) {
		m.Foreign(from, sanitize.Line(line, maxForeign))
	}
}
