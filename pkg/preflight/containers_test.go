package preflight_test

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launch"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
)

func (w *world) engine(method, target string, body any) {
	w.t.Helper()
	_, err := w.Engine.Call(method, target, body)
	require.NoError(w.t, err)
}

// TestTheNextBoot is asked about on a machine where something is measured and runs, and is free of all that.
func TestTheNextBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.load()
	w.keep()
	w.Agent.Emit("mpc-image-digest", make([]byte, 32)) // another image than the chosen one
	w.engine(http.MethodPost, "/containers/create?name=other", map[string]any{
		"Image": w.names["@config0@"], "Cmd": []string{"sleep"}, "HostConfig": map[string]any{
			"PortBindings": map[string]any{"11780/tcp": []any{map[string]string{"HostPort": "11780"}}},
			"Binds":        []string{"/:/host"},
		},
	})
	w.engine(http.MethodPost, "/containers/other/start", nil)
	w.settings.For = preflight.ForNow
	assert.Equal(t, exit.Measurement, w.run().ExitCode)

	w.settings.For = preflight.ForBoot
	report := w.run()
	assert.Equal(t, exit.OK, report.ExitCode, "%s", report.Summary)
	assert.Equal(t, "At the next boot, run would succeed: measure the image, start the workload, with the list, config and sources as they are now.", report.Summary)
	assert.Nil(t, report.WouldRun.RTMR3, "nobody knows what the next boot measures before us")

	w.engine(http.MethodPost, "/containers/other/update", map[string]any{"RestartPolicy": map[string]any{"Name": "always"}})
	report = w.run()
	assert.Equal(t, []string{"ENG008", "HST002"}, codes(report), "it starts by itself")
	assert.True(t, noted(report, preflight.StartsByItself))
	assert.Equal(t, exit.Measurement, report.ExitCode)
	w.engine(http.MethodPost, "/containers/other/stop", nil)
	assert.Equal(t, []string{"ENG008", "HST002"}, codes(w.run()), "with its port, though it doesn't run now")

	w.engine(http.MethodDelete, "/containers/other?force=1", nil)
	report = w.run()
	assert.True(t, noted(report, preflight.ImagePrunable))
	assert.Positive(t, *report.WouldRun.BytesLeft, "it may be pruned")
	require.NoError(t, w.Registry.Stop())
	assert.Equal(t, exit.Unavailable, w.run().ExitCode)
}

// TestTheNextBootFindsTheLayersOfWhatIsHeld: a prune takes an image, and no layer that another one has too
// which a container holds.
func TestTheNextBootFindsTheLayersOfWhatIsHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.For = preflight.ForBoot
	all := *w.run().WouldRun.BytesLeft
	layers, err := launchtest.RandomLayers(1, 50_000) // the lowest of the wanted image
	require.NoError(t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	require.NoError(t, err)
	id, err := w.Engine.AddImage(img, "other:1")
	require.NoError(t, err)
	assert.Equal(t, all, *w.run().WouldRun.BytesLeft, "nothing holds it")
	w.engine(http.MethodPost, "/containers/create?name=other", map[string]any{"Image": id, "Cmd": []string{"sleep"}})
	assert.Less(t, *w.run().WouldRun.BytesLeft, all)
}

// TestAPausedWorkload can't be started, and whether it may be stays with whoever paused it.
func TestAPausedWorkload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.Platform, w.settings.Supervise = config.NONTEE, admission.SuperviseOff
	now := time.Now()
	l := launch.Launcher{
		Settings: w.settings.Settings, BootID: bootID, Now: func() time.Time { return now },
		Sleep: func(ctx context.Context, d time.Duration) error { now = now.Add(d); return ctx.Err() },
	}
	require.NoError(t, l.Run(t.Context()))
	assert.Equal(t, exit.OK, w.run().ExitCode)
	w.engine(http.MethodPost, "/containers/mpc-node/pause", nil)
	report := w.run()
	assert.Equal(t, []string{"ENG012"}, codes(report))
	assert.Equal(t, exit.Workload, report.ExitCode)
	assert.Equal(t, exit.Workload, exit.Of(l.Run(t.Context())))
}

// TestAHolderBesideTheWorkload keeps a boot from starting anything, and not from leaving alone what runs.
func TestAHolderBesideTheWorkload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.Supervise = admission.SuperviseOff
	now := time.Now()
	l := launch.Launcher{
		Settings: w.settings.Settings, BootID: bootID, Now: func() time.Time { return now },
		Sleep: func(ctx context.Context, d time.Duration) error { now = now.Add(d); return ctx.Err() },
	}
	require.NoError(t, l.Run(t.Context()))
	w.engine(http.MethodPost, "/containers/create?name=other", map[string]any{
		"Image": w.Engine.Containers()[0].Image, "Cmd": []string{"sleep"},
		"HostConfig": map[string]any{"Binds": []string{"/:/host"}},
	})
	w.engine(http.MethodPost, "/containers/other/start", nil)
	assert.Equal(t, exit.OK, w.run().ExitCode)
	require.NoError(t, l.Run(t.Context()))

	text, err := os.ReadFile(w.ConfigFile)
	require.NoError(t, err)
	text = bytes.Replace(text, []byte("host = 11780"), []byte("host = 11781"), 1)
	require.NoError(t, os.WriteFile(w.ConfigFile, text, 0o600))
	report := w.run()
	assert.Equal(t, exit.Measurement, report.ExitCode)
	assert.Equal(t, []string{"ENG008", "ENG009", "SET004"}, codes(report))
	assert.Equal(t, exit.Measurement, exit.Of(l.Run(t.Context())))
	report = w.run()
	assert.Equal(t, []string{"ENG008", "ENG009", "SET004"}, codes(report), "and once where nothing runs any more")
}

// TestPodman answers much as Docker does, and fails only once everything is loaded.
func TestPodman(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	socket := filepath.Join(filepath.Dir(w.ConfigFile), "podman.sock")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Api-Version", "1.41")
		rw.Header().Set("Libpod-Api-Version", "4.9.3")
		if r.URL.Path == "/info" {
			_, _ = rw.Write([]byte(`{"ServerVersion":"4.9.3","OSType":"linux","Architecture":"x86_64"}`))
		}
	})}
	go server.Serve(listener)
	defer server.Close()
	w.settings.DockerHost = "unix://" + socket
	report := w.run()
	assert.Equal(t, []string{"ENG013"}, codes(report))
	assert.Equal(t, exit.Engine, report.ExitCode)
	l := launch.Launcher{Settings: w.settings.Settings, BootID: bootID}
	assert.Equal(t, exit.Engine, exit.Of(l.Run(t.Context())))
	assert.Zero(t, w.Agent.Emits())
}

func TestWhatTheNextBootFinds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy, now string
		code        int
		then        string
	}{
		{"no", "running", 0, "exited"}, {"no", "exited", 1, "exited"}, {"no", "created", 0, "created"},
		{"always", "running", 0, "running"}, {"always", "exited", 0, "running"}, {"always", "created", 0, "created"},
		{"unless-stopped", "paused", 0, "running"}, {"unless-stopped", "exited", 0, "exited"},
		{"on-failure", "running", 0, "running"}, {"on-failure", "exited", 0, "exited"}, {"on-failure", "exited", 1, "running"},
	} {
		now := inspect.Container{RestartPolicy: c.policy, Status: c.now, ExitCode: c.code}
		if c.now != "created" {
			now.StartedAt = time.Now()
		}
		then := preflight.NextBoot([]admission.Container{{Container: now}})
		assert.Equal(t, c.then, then[0].Status, "%+v", c)
	}
}
