package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/layout"
	"tee-launcher/pkg/registry"
	"tee-launcher/pkg/state"
)

// imaged is an image whose manifest and config are proved, and its ID where the engine has it,
// which is proved as well.
type imaged struct {
	image  *image.Verified
	source *registry.Source // where its layers come from
	id     docker.ImageID
}

// pull proves manifest and config: from those that an earlier boot cached, if the engine has the
// image, or from wherever they can be had. Sources are those that the user config has in this
// attempt.
func (m *machine) pull(chosen choice) step[imaged] {
	return func(ctx context.Context) (imaged, string, error) {
		ref := chosen.ref
		m.report.Pull = &PullReport{Liars: []string{}}
		info, err := m.info(ctx)
		if err != nil {
			return imaged{}, "", err
		}
		source := m.client(chosen).Source(ref)
		cached, err := m.own.Restore(ref)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.Log.Warn("the cached manifest can't be used", "error", err)
		}
		if err == nil {
			id, err := m.engine.Prove(ctx, info, cached)
			m.report.image(cached, id)
			if err == nil {
				m.report.Pull.Source, m.report.Pull.BytesReused = "engine", cached.Size()
				return imaged{cached, source, id}, "the engine has the image", errSkipped
			}
			if err := inspect.TakesForm(info, cached); err != nil {
				return imaged{}, "", err
			}
			return imaged{image: cached, source: source}, fmt.Sprintf("cached manifest: %d layers, %d bytes", len(cached.Layers()), cached.Size()), nil
		}
		resolved, err := source.Resolve(ctx)
		if err != nil {
			m.report.moved(source.Stats())
			source.Rest()
			return imaged{}, "", err
		}
		if err := inspect.TakesForm(info, resolved); err != nil {
			source.Rest()
			return imaged{}, "", err
		}
		m.report.image(resolved, docker.ImageID{})
		detail := fmt.Sprintf("%d layers, %d bytes", len(resolved.Layers()), resolved.Size())
		if resolved.Chosen() != "" {
			detail += ", " + resolved.Chosen()
		}
		return imaged{image: resolved, source: source}, detail, nil
	}
}

// client is what fetches the image, as the user config of this attempt says.
func (m *machine) client(chosen choice) *registry.Client {
	retry := chosen.retry
	client := &registry.Client{
		Sources: chosen.config.Sources, Ledger: m.ledger, Credentials: chosen.config.Credential,
		Insecure: m.Settings.Insecure, Platform: m.platform, Rounds: retry.Rounds,
		Interval: max(retry.Interval, 1), MaxDelay: max(retry.MaxDelay, 1), // zero would mean the default
		ForbiddenHelperDirs: m.Settings.Unmeasured(),
		Log:                 m.Log,
		Progress:            m.Progress.Fetched,
		Tuning:              registry.Tuning{Now: m.Now, Sleep: m.Sleep},
	}
	m.ahead.tame(client, m.Settings.SharedDir)
	return client
}

// PullTo writes the image that ref names into the OCI image layout in a directory, proved, and asks no
// engine. It returns the report's parts about image and pull.
func (l *Launcher) PullTo(ctx context.Context, ref name.Digest, platform v1.Platform, dir string) (*ImageReport, *PullReport, error) {
	r := l.newRun()
	m := &machine{run: r, platform: platform}
	hash, err := digest.Parse(ref.DigestStr())
	if err != nil {
		return nil, nil, &exit.Error{Code: exit.Usage, Err: err}
	}
	r.report.Image, r.report.Pull = &ImageReport{Reference: ref.String(), Digest: hash}, &PullReport{Source: "registry", Liars: []string{}}
	source := m.client(choice{ref: ref, retry: config.DefaultRetry(), config: new(config.Config)}).Source(ref)
	defer source.Rest()
	v, err := source.Resolve(ctx)
	if err != nil {
		return nil, nil, err
	}
	r.report.image(v, docker.ImageID{})
	r.Progress.Missing(v.Size(), false)
	err = layout.Write(ctx, dir, v, source)
	r.Progress.Stop(err == nil)
	r.report.moved(source.Stats())
	var pull *image.Error
	if err != nil && ctx.Err() == nil && !errors.As(err, &pull) {
		err = &exit.Error{Code: exit.Config, Err: fmt.Errorf("writing the layout: %w", err)}
	}
	return r.report.Image, r.report.Pull, err
}

// load has the engine take the image, unless it has it.
func (m *machine) load(pulled imaged) step[imaged] {
	return func(ctx context.Context) (imaged, string, error) {
		img := pulled
		if !img.id.IsZero() {
			m.engine.ForgetPrefixes(ctx, img.image.Digest()) // of a run that was killed just before it would have
			return img, img.id.String(), errSkipped
		}
		info, err := m.engine.Info(ctx)
		if err != nil {
			return imaged{}, "", err
		}
		img.id, err = m.engine.Prove(ctx, info, img.image)
		var unproved *inspect.UnprovedError
		switch {
		case err == nil:
			m.report.Pull.Source, m.report.Pull.BytesReused = "engine", img.image.Size()
		case errors.Is(err, inspect.ErrNoImage), errors.As(err, &unproved):
			m.seen.engine, m.seen.free, m.seen.size = info, m.free(ctx, info), img.image.Size()
			known := m.own.Known(img.image.Reference().Context())
			var loaded docker.Loaded
			recorded := m.recordBytes(img.source)
			loaded, err = m.engine.Load(ctx, img.image, img.source, docker.LoadOptions{
				Known: known, Space: m.space(ctx, img.image), Progress: m.Progress,
			})
			recorded()
			m.Progress.Stop(err == nil)
			img.id, m.report.Pull.BytesReused, m.report.Pull.Source = loaded.ID, loaded.Reused, cmp.Or(img.source.Stats().From, "registry")
		}
		m.report.moved(img.source.Stats())
		m.report.image(img.image, img.id)
		img.source.Rest()
		if err != nil {
			return imaged{}, "", err
		}
		if m.shared != nil { // `launcher pull` may have none
			if err := m.own.Keep(img.image, m.ahead.spared()...); err != nil {
				m.Log.Warn("manifest and config can't be cached; the next boot will need the registry", "error", err)
			}
		}
		return img, img.id.String(), nil
	}
}

// recordBytes keeps the report up to date about what arrives, until it is told that the load is over.
// Only then may anybody else touch the report.
func (m *machine) recordBytes(source *registry.Source) (over func()) {
	ticker := time.NewTicker(reportInterval)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-ticker.C:
				stats := source.Stats()
				m.report.Pull.Source = cmp.Or(stats.From, "registry")
				m.report.moved(stats)
				m.report.write()
			case <-stop:
				return
			}
		}
	}()
	return func() {
		ticker.Stop()
		close(stop)
		<-stopped
	}
}

// space returns the question whether the engine has room for an image. Where that can't be seen it
// is none: unknown is never a refusal.
func (m *machine) space(ctx context.Context, v *image.Verified) func(inspect.Info, int64) error {
	return func(info inspect.Info, missing int64) error {
		if free := m.free(ctx, info); free != unknownRoom {
			if err := admission.Room(info, missing, free); err != nil {
				return err
			}
		}
		return m.ahead.may(ctx, info, v, missing)
	}
}

// unknownRoom is the room on a disk that can't be seen.
const unknownRoom = -1

// free returns how many bytes are free on the engine's disk.
func (m *machine) free(ctx context.Context, info inspect.Info) int64 {
	if self, err := m.self(ctx); err == nil {
		if free, known := state.Free(info, self, m.Settings, nil); known {
			return free
		}
	}
	return unknownRoom
}
