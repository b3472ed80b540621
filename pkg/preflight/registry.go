package preflight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"runtime"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/registry"
)

// checkCached proves the manifest and config that an earlier boot cached. Where the engine still has the image, no registry is needed.
func checkCached(_ context.Context, f *facts) outcome {
	if f.arch() != runtime.GOARCH {
		return outcome{skipped: "it is for this machine's architecture"}
	}
	v, err := f.own.Restore(f.config.Image.At(f.decision.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return ok("there is none")
	}
	if err != nil {
		return ok("", warning(CachedUnusable, fmt.Sprintf("the cached manifest can't be used: %v", err), "nothing to do: it is replaced when the image is loaded"))
	}
	f.cached = v
	return ok("proved")
}

// headerTimeout is how long a registry may take to answer at first; the puller doubles it twice.
const headerTimeout = 5 * time.Second

// sourceOf is that of a boot, but without its patience: what doesn't answer now is what is to be said.
func (f *facts) sourceOf(h digest.Digest) *registry.Source {
	tuning := f.options.Tuning
	if tuning.HeaderTimeout == 0 {
		tuning.HeaderTimeout = headerTimeout
	}
	client := &registry.Client{
		Sources: f.config.Sources, Credentials: f.config.Credential,
		Platform: v1.Platform{OS: "linux", Architecture: f.arch()},
		Insecure: f.options.Insecure, ForbiddenHelperDirs: f.options.Unmeasured(), Log: f.log, Tuning: tuning,
	}
	return client.Source(f.config.Image.At(h))
}

// checkManifest proves the manifest, the config and the platform of the selected image.
func checkManifest(ctx context.Context, f *facts) outcome {
	f.source = f.sourceOf(f.decision.Digest)
	v, err := f.source.Resolve(ctx)
	if err != nil {
		var e *image.Error
		f.down = errors.As(err, &e) && e.Kind == image.Unavailable
		f.unresolved = err
		return fail(codeOf(err), err)
	}
	f.image = v
	stats := f.source.Stats()
	detail := fmt.Sprintf("%d layers, %s, credentials: %s", len(v.Layers()), Size(v.Size()), stats.Credential)
	if stats.From != "" {
		detail += ", from " + stats.From
	}
	if v.Index() != nil {
		detail += ", from an index"
	}
	if v.Chosen() != "" {
		detail += ": " + v.Chosen()
	}
	return ok(detail)
}

// codeOf returns the code for the end of a pull.
func codeOf(err error) Code {
	var e *image.Error
	if !errors.As(err, &e) {
		return RegistryDown
	}
	switch {
	case e.Kind == image.Mismatch:
		return ManifestWrong
	case e.Kind != image.Refused:
		return RegistryDown
	case e.NoPlatform():
		return PlatformMissing
	case e.BadForm():
		return ImageUnusable
	case e.Status == http.StatusNotFound:
		return ManifestMissing
	}
	return RegistryRefuses
}

// maxOthers is how many further approved digests are asked for.
const maxOthers = 5

// checkOthers finds the approved digest that can be pulled where a newer one can't.
func checkOthers(ctx context.Context, f *facts) outcome {
	switch {
	case f.list == nil:
		return outcome{skipped: "there is no approved list"}
	case f.down:
		return outcome{unknown: "the registry doesn't answer"}
	}
	approved := f.list.Digests()
	at := slices.Index(approved, f.decision.Digest)
	if f.image.Valid() {
		newer := approved[:at]
		for _, h := range newer[max(0, len(newer)-maxOthers):] {
			if err := f.resolves(ctx, h); err != nil {
				return ok("", warning(NewerUnavailable, fmt.Sprintf("%s is approved and newer than the selected digest, and can't be pulled: %v", h, err),
					"push it before you remove mpc_hash_override"))
			}
		}
		if len(newer) == 0 {
			return ok("the selected one is the newest")
		}
		return ok("newer ones can be pulled too")
	}
	older := approved[at+1:]
	for _, h := range older[:min(maxOthers, len(older))] {
		if f.resolves(ctx, h) == nil {
			return ok("", warning(NewerUnavailable, fmt.Sprintf("the selected digest can't be pulled, but %s, which is approved and older, can", h),
				"push the selected one, or write this into [launcher_config] of the user config:", fmt.Sprintf("mpc_hash_override = %q", h)))
		}
	}
	return ok("no older one can be pulled either")
}

// checkFallback finds what would run in the end where the selected digest can't be had, and an older one may.
func checkFallback(ctx context.Context, f *facts) outcome {
	older := f.options.Older(*f.decision)
	err := errors.Join(f.unusable, f.incomplete, f.damaged)
	if !f.cached.Valid() { // by which an earlier boot proves it
		err = errors.Join(f.unresolved, err)
	}
	var e *image.Error
	switch {
	case len(older) == 0:
		return outcome{skipped: "none would be tried"}
	case err == nil:
		return outcome{skipped: "the selected one can be had"}
	case errors.As(err, &e) && e.Kind == image.Unavailable && !e.Answered:
		return outcome{unknown: "what doesn't answer says nothing of the selected one, so none would be tried"}
	}
	for _, h := range older {
		if f.obtainable(ctx, h) {
			f.instead = h
			return ok(fmt.Sprintf("%s would be tried after %s", h, waits(f.options.FallbackAfter)))
		}
	}
	return ok("none that would be tried can be had either")
}

// obtainable reports whether a boot would come by an approved image: the engine may have it, as the one that ran before, and where its
// manifest was kept, too, no registry is asked for anything.
func (f *facts) obtainable(ctx context.Context, h digest.Digest) bool {
	source := f.sourceOf(h)
	v, err := f.own.Restore(f.config.Image.At(h))
	if err != nil || f.arch() != runtime.GOARCH {
		v, err = source.Resolve(ctx)
	}
	if err != nil {
		return false
	}
	if f.engine != nil {
		if id, err := f.engine.Prove(ctx, f.info, v); err == nil && (!f.next || f.held(id.String())) {
			return true
		}
		if inspect.Takes(f.info, v) != nil || inspect.TakesForm(f.info, v) != nil {
			return false
		}
	}
	return source.CheckLayers(ctx, v, everyLayer(v)) == nil
}

// waits prints a wait for people.
func waits(d time.Duration) string {
	switch {
	case d == time.Minute:
		return "1 minute"
	case d%time.Minute == 0:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return d.String()
}

// everyLayer returns the indices of all layers.
func everyLayer(v *image.Verified) []int {
	indices := make([]int, len(v.Layers()))
	for i := range indices {
		indices[i] = i
	}
	return indices
}

func (f *facts) resolves(ctx context.Context, h digest.Digest) error {
	_, err := f.sourceOf(h).Resolve(ctx)
	return err
}

// lowRate is how many requests should be left: a boot that is repeated a few times, and an index.
const lowRate = 10

// checkRate reads what the registry says beside its answers: how many more there will be, and its clock.
func checkRate(ctx context.Context, f *facts) outcome {
	notice, err := f.source.Notice(ctx)
	if err != nil {
		return outcome{unknown: "the registry doesn't say"}
	}
	f.notice = notice
	switch {
	case !notice.Limited:
		return ok("the registry states none")
	case notice.Remaining < lowRate:
		return ok("", warning(RateLow, fmt.Sprintf("the registry allows %d more of %d requests", notice.Remaining, notice.Limit),
			"wait, or log in for a higher limit: with [launcher_config.registry_auth] in the user config"))
	}
	return ok(fmt.Sprintf("%d of %d requests left", notice.Remaining, notice.Limit))
}

// checkLayers asks whether the registry has every layer, and fetches none.
func checkLayers(ctx context.Context, f *facts) outcome {
	if !f.id.IsZero() {
		return outcome{skipped: "the engine has the image"}
	}
	v := f.verified()
	if v == nil {
		return outcome{unknown: "it isn't known which image is wanted"}
	}
	if err := f.sourceOf(f.decision.Digest).CheckLayers(ctx, v, f.missing); err != nil {
		code := LayerMissing
		var e *image.Error
		if errors.As(err, &e) && e.Kind == image.Unavailable {
			code = RegistryDown
		}
		f.incomplete = err
		return fail(code, err)
	}
	who := "the registry has"
	if len(f.config.Sources) > 0 {
		who = "the sources have"
	}
	return ok(fmt.Sprintf("%s all %d, %s", who, len(v.Layers()), Size(v.Size())))
}

// checkSources asks each source of the user config, and the registry, what it has of the image.
func checkSources(ctx context.Context, f *facts) outcome {
	if len(f.config.Sources) == 0 {
		return outcome{skipped: "the user config names none"}
	}
	v := f.verified()
	if v == nil {
		return outcome{unknown: "it isn't known which image is wanted"}
	}
	all, err := f.sourceOf(f.decision.Digest).Survey(ctx, v, f.missing)
	if err != nil {
		return outcome{unknown: "they weren't all asked"}
	}
	var findings []Finding
	first := ""
	for _, s := range all {
		switch {
		case s.Lied:
			findings = append(findings, warning(SourceLies, fmt.Sprintf("%s lies: %v", s.Name, errors.Join(s.Err, s.Why)),
				"don't use this source until that is explained; run would ask it last once it noticed"))
		case s.WantsLogin:
			findings = append(findings, warning(SourceWantsLogin, fmt.Sprintf("%s wants a login, and doesn't take what there is: %s", s.Name, s.Credential),
				fmt.Sprintf("put one into [launcher_config.registry_auth] of the user config: %s", "a robot's that can only read")))
		case s.Err != nil:
			findings = append(findings, warning(SourceMisses, fmt.Sprintf("%s can't give manifest and config: %v", s.Name, s.Err),
				"nothing to do as long as another source can"))
		case s.Missing > 0:
			findings = append(findings, warning(SourceMisses, fmt.Sprintf("%s can't give %d of %d layers: %v", s.Name, s.Missing, len(f.missing), s.Why),
				"nothing to do as long as another source can"))
		case first == "":
			first = s.Name
		}
	}
	detail := "none has all, so the boot would take each part from the first one that has it"
	if first != "" {
		detail = "the first that has all, and that the boot would use: " + first
	}
	return ok(detail, findings...)
}

// checkDownload fetches and hashes every layer, and keeps nothing.
func checkDownload(ctx context.Context, f *facts) outcome {
	if !f.options.Deep {
		return outcome{skipped: "only with --deep"}
	}
	indices := everyLayer(f.image)
	if err := readAll(ctx, f.image, f.source, indices); err != nil {
		code := LayerMissing
		var e *image.Error
		switch {
		case errors.As(err, &e) && e.Kind == image.Unavailable:
			code = RegistryDown
		case errors.As(err, &e) && e.Kind == image.Mismatch:
			code = LayerWrong
		}
		f.damaged = err
		return fail(code, err)
	}
	return ok(fmt.Sprintf("%d layers, %s, all match their digests", len(indices), Size(f.image.Size())))
}

// readAll reads the layers to their ends, which proves them, again where a registry's damage may be gone.
func readAll(ctx context.Context, v *image.Verified, from image.Source, layers []int) error {
	for {
		n, err := readOnce(ctx, v, from, layers)
		var e *image.Error
		if !errors.As(err, &e) || !e.Restart {
			return err
		}
		layers = layers[n:]
	}
}

// readOnce returns how many layers were proved.
func readOnce(ctx context.Context, v *image.Verified, from image.Source, layers []int) (n int, err error) {
	stream := v.Open(ctx, from, layers)
	defer func() { err = errors.Join(err, stream.Close()) }()
	for {
		layer, err := stream.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if _, err := io.Copy(io.Discard, layer); err != nil {
			return n, err
		}
		if err := layer.Close(); err != nil {
			return n, err
		}
		n++
	}
}
