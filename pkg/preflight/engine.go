package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/state"
)

// oldestAPI is the minor version of the API of the oldest engine that was tried, 20.10.
const oldestAPI = 41

// checkEngine asks the engine what it is.
func checkEngine(ctx context.Context, f *facts) outcome {
	if f.options.DockerHost == "" {
		return outcome{unknown: "the engine's socket isn't known"}
	}
	engine, err := inspect.New(f.options.DockerHost)
	if err != nil {
		return outcome{findings: []Finding{ending(EngineDown, exit.Usage, err)}}
	}
	info, err := engine.Info(ctx)
	if err != nil {
		return fail(EngineDown, err)
	}
	if err := admission.Engine(info); err != nil {
		return refuse("", err)
	}
	self, err := state.Self(ctx, engine, f.options.Proc)
	if err != nil {
		return fail(EngineContradicts, err)
	}
	f.engine, f.info, f.self = engine, info, self
	var found []Finding
	if !info.APIAtLeast(oldestAPI) {
		found = append(found, warning(EngineOld, fmt.Sprintf("engine %s speaks API %s; 1.%d, which is 20.10, is the oldest that was tested", info.Version, info.API, oldestAPI),
			"upgrade the Docker engine"))
	}
	if info.OS != "linux" || info.Architecture != f.arch() {
		found = append(found, warning(EngineOther, fmt.Sprintf("the engine is for %s/%s, but the launcher and the image that it would pull are for linux/%s",
			info.OS, info.Architecture, f.arch()), "use the launcher that was built for the engine's platform"))
	}
	return ok(fmt.Sprintf("%s, API %s, %s store, %s/%s", info.Version, info.API, info.Store, info.OS, info.Architecture), found...)
}

// checkImage looks whether the engine has the image already, whole, and what would be left to
// download. At the next boot only what a container holds is sure to be there still: dstack prunes
// images.
func checkImage(ctx context.Context, f *facts) outcome {
	v := f.verified()
	if v == nil {
		return outcome{unknown: "it isn't known which image is wanted"}
	}
	if err := inspect.Takes(f.info, v); err != nil {
		f.unusable = err
		return fail(ImageTooDeep, err)
	}
	id, err := f.engine.Prove(ctx, f.info, v)
	var found []Finding
	var unproved *inspect.UnprovedError
	switch {
	case err == nil && (!f.next || f.held(id.String())):
		f.id, f.left = id, new(int64)
		if !f.info.TellsUnpacked() && !f.held(id.String()) { // a container needs it unpacked
			found = append(found, note(ImageUntried, "this engine doesn't say whether it could unpack the image; "+
				"`run` tries that with a container, and loads the image again where it couldn't"))
		}
		detail := "in the engine already"
		if slices.ContainsFunc(f.containers, func(c admission.Container) bool {
			return c.Image == id.String() && c.Name == compose.Staged
		}) {
			detail += ", staged"
		}
		return ok(detail, found...)
	case err == nil:
		found = append(found, note(ImagePrunable, "the engine has the image, but no container uses it, so it may be pruned before it is needed"))
	case errors.Is(err, inspect.ErrNoImage):
	case errors.As(err, &unproved):
		found = append(found, warning(ImageBroken, err.Error(), "nothing to do: it would be loaded again"))
	default:
		return fail(EngineContradicts, err)
	}
	if err := inspect.TakesForm(f.info, v); err != nil {
		f.unusable = err
		return fail(ImageUnusable, err)
	}
	var stays func(id string) bool
	if f.next {
		stays = f.held
	}
	has, err := f.engine.Present(ctx, f.info, v, f.own.Known(v.Reference().Context()), stays)
	if err != nil {
		return fail(EngineContradicts, err)
	}
	f.left = new(int64)
	for i, layer := range v.Layers() {
		if !has(i) {
			f.missing = append(f.missing, i)
			*f.left += layer.Size
		}
	}
	return ok(fmt.Sprintf("not in the engine, %s to download at most", Size(*f.left)), found...)
}

// held reports whether a container has the image of that ID.
func (f *facts) held(id string) bool {
	return slices.ContainsFunc(f.containers, func(c admission.Container) bool { return c.Image == id })
}

// checkSpace compares the room on the engine's disk with what the download and the unpacked layers
// need at the very least.
func checkSpace(_ context.Context, f *facts) outcome {
	if !f.id.IsZero() {
		return outcome{skipped: "nothing needs to be loaded"}
	}
	free, known := state.Free(f.info, f.self, f.options.Settings, f.options.Free)
	if !known {
		return outcome{unknown: "the engine's disk can't be seen from here"}
	}
	if err := admission.Room(f.info, *f.left, free); err != nil {
		return refuse("", err)
	}
	return ok(fmt.Sprintf("%s free at %s", Size(free), f.info.Root))
}

// checkVolume looks for the volume that holds the workload's keys, and whether it and its like are where they seem to be.
func checkVolume(ctx context.Context, f *facts) outcome {
	var found []Finding
	for _, odd := range state.Oddities(ctx, f.engine) {
		found = append(found, warning(PlacedElsewhere, odd, "nothing to do if you made it so; otherwise find out who did"))
	}
	_, err := f.engine.Volume(ctx, compose.DataVolume)
	if inspect.NotFound(err) {
		found = append(found, note(DataVolumeMissing, "there is no volume "+compose.DataVolume+": it would be created, and the node would start without keys",
			"nothing to do for a new node; otherwise find out where it went before you boot"))
		return ok("", found...)
	}
	if err != nil {
		return outcome{unknown: err.Error()} // a boot doesn't ask, it makes it where it is missing
	}
	return ok(compose.DataVolume+" is there", found...)
}
