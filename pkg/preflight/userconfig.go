package preflight

import (
	"context"
	"errors"

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
