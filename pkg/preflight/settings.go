package preflight

import (
	"context"
	"fmt"
	"slices"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/state"
)

// checkSettings passes on what the parsing of flags and environment found.
func checkSettings(_ context.Context, f *facts) outcome {
	var found []Finding
	for _, err := range f.options.Mistakes {
		found = append(found, ending(SettingWrong, exit.Usage, err, slices.Concat(exit.Hints(err), []string{"see `launcher run --help`"})...))
	}
	for _, w := range f.options.Warnings {
		found = append(found, warning(SettingUnknown, w, "correct or remove it"))
	}
	for _, host := range f.options.Insecure {
		found = append(found, warning(SettingInsecure, fmt.Sprintf("plain http is allowed for %s", host), "remove it from --insecure-registry where the registry speaks https"))
	}
	if f.options.TEE() && !f.options.Supervised() {
		found = append(found, warning(SettingAlone,
			"not supervised: after a power loss the engine may start the old workload before anything is measured", "leave --supervise at auto"))
	}
	if f.options.FallbackAfter > 0 && f.options.Supervised() {
		found = append(found, warning(SettingFallback,
			"an older approved image may run than the newest, where that can't be had: whoever controls the network can bring that about, for any that is still listed",
			"leave --fallback at off, unless every image that is still listed may run"))
	}
	return ok("platform "+string(f.options.Platform), found...)
}

// checkBoot asks the kernel which boot this is: by that a boot knows what belongs to it.
func checkBoot(_ context.Context, f *facts) outcome {
	id, err := state.BootID(f.options.Proc)
	switch {
	case err == nil:
		f.boot = id
		return ok("its ID is known")
	case !f.options.TEE():
		return outcome{unknown: "the kernel doesn't say which it is, and outside a CVM nothing depends on it"}
	}
	return refuse("", err)
}

// checkSharedDir opens the shared directory.
func checkSharedDir(_ context.Context, f *facts) outcome {
	if f.options.SharedDir == "" {
		return outcome{unknown: "its place isn't known"}
	}
	dir, err := state.OpenShared(f.options.Settings)
	if err != nil {
		return refuse("", err)
	}
	f.shared, f.own = dir, state.In(dir)
	return ok(f.options.SharedDir)
}

// checkSharedVolume looks whether it is what the workload will see.
func checkSharedVolume(ctx context.Context, f *facts) outcome {
	if err := state.IsVolume(ctx, f.engine, f.self, f.shared, f.options.Proc); err != nil {
		return refuse(EngineContradicts, err)
	}
	return ok("the workload will see this very directory")
}

// checkReport looks whether the launch report would replace what is no report.
func checkReport(_ context.Context, f *facts) outcome {
	if err := state.CanReport(f.options.Settings, f.shared); err != nil {
		return refuse("", err)
	}
	return ok("replaces nothing else")
}

// checkOwnDir looks whether the launcher's own directory exists, or could be created.
func checkOwnDir(_ context.Context, f *facts) outcome {
	if err := f.own.CanMake(); err != nil {
		return ok("", warning(admission.OwnDirBlocked, fmt.Sprintf("our own directory can't be used: %v", err),
			"mount the shared volume writable, with room in it, and remove what stands in the directory's place; nothing of value is kept there"))
	}
	return ok("exists, or could be created")
}

// checkRecord looks whether the record could be written without which nothing is measured.
func checkRecord(_ context.Context, f *facts) outcome {
	switch {
	case f.options.Platform == "":
		return outcome{unknown: "the platform isn't known"}
	case !f.options.TEE():
		return outcome{skipped: "nothing is measured outside a CVM"}
	case f.measuring().AnImage():
		return outcome{skipped: "an image is already measured"}
	}
	if err := f.own.CanRecord(); err != nil {
		return refuse("", err)
	}
	return ok("could be written")
}

// checkLock finds, without taking it, the holder of the shared directory's lock. Where it is a
// launcher, which looks after the workload, what is asked about is the next boot, unless somebody
// says otherwise.
func checkLock(ctx context.Context, f *facts) outcome {
	lock, err := state.LockHolder(ctx, f.engine, f.shared, f.options.Proc)
	switch {
	case err != nil:
		return outcome{unknown: fmt.Sprintf("its holder can't be found: %v", err)}
	case lock.PID == "":
		return ok("free")
	}
	if lock.Container != nil && f.boots().Impostor(*lock.Container) {
		return ok("held by container " + lock.Container.Name + ", which would be ended")
	}
	if f.options.For == ForAuto {
		f.next = lock.Launcher()
		f.waits = f.next && state.Waits(f.options.Settings, f.shared, f.boot)
	}
	holder := "process " + lock.PID
	if lock.Container != nil {
		holder += " of container " + lock.Container.Name
	}
	if f.next {
		return ok("held", note(admission.AnotherLauncher, holder+" holds the lock: until it ends, another run ends with exit code 10"))
	}
	return refuse("", state.Locked(fmt.Errorf("%s holds the lock of %s", holder, f.shared.Path())))
}
