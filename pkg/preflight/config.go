package preflight

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/state"
)

// checkUserConfig reads the user config and reports every mistake in it.
func checkUserConfig(_ context.Context, f *facts) outcome {
	if f.options.ConfigFile == "" {
		return outcome{unknown: "its place isn't known"}
	}
	settings := f.options.Settings
	if settings.Platform == "" {
		settings.Platform = config.NONTEE // refuses the least; that the platform is missing is reported anyway
	}
	cfg, warnings, err := state.UserConfig(settings)
	var found []Finding
	for _, w := range warnings {
		found = append(found, warning(ConfigOld, w.String()))
	}
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		for _, p := range problems {
			found = append(found, ending(ConfigWrong, exit.Config, errors.New(p.String()), "correct the user config"))
		}
		return outcome{findings: found}
	case err != nil:
		return outcome{findings: append(found, refused(ConfigWrong, err))}
	}
	f.config = cfg
	return ok(cfg.Image.String(), found...)
}

// checkApproved reads the approved list. That there is none is what a first boot finds.
func checkApproved(_ context.Context, f *facts) outcome {
	list, err := state.Approved(f.shared)
	switch {
	case err != nil:
		return refuse("", err)
	case list == nil:
		return ok("there is none, so the default digest is used")
	}
	f.list = list
	return ok(fmt.Sprintf("%d approved", len(list.Digests())))
}

// checkSelection decides which digest would run, and why.
func checkSelection(_ context.Context, f *facts) outcome {
	if f.list == nil && f.options.DefaultDigest.IsZero() && len(f.options.Mistakes) > 0 {
		return outcome{unknown: "the default digest isn't known"}
	}
	var found []Finding
	if f.list == nil && f.config.Override != nil {
		found = append(found, warning(OverrideIgnored, "mpc_hash_override has no effect without an approved list: the default digest runs"))
	}
	known := f.boots()
	if !f.next && f.events != nil {
		known.Log = &f.events.Log
	}
	decision, err := known.Select(f.list, f.config.Override)
	if err != nil {
		return refuse("", err)
	}
	f.decision = &decision
	return ok(decision.Digest.String()+" ("+string(decision.Reason)+")", found...)
}
