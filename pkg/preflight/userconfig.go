package preflight

import (
	"context"
	"errors"
	"fmt"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
)

// checkUserConfig reads the user config and reports every mistake in it.
func checkUserConfig(_ context.Context, f *facts) outcome {
	if f.settings.ConfigFile == "" {
		return outcome{unknown: "its place isn't known"}
	}
	data, err := files.ReadFile(f.settings.ConfigFile, config.MaxSize)
	if err != nil {
		return outcome{findings: []Finding{ending(ConfigUnreadable, exit.Config, fmt.Errorf("user config: %w", err),
			"write the user config there, or name its place with --config")}}
	}
	platform := f.settings.Platform
	if platform == "" {
		platform = config.NONTEE // refuses the least; that the platform is missing is reported anyway
	}
	cfg, warnings, err := config.Parse(f.settings.ConfigFile, data, platform)
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
		return outcome{findings: append(found, failure(ConfigWrong, err))}
	}
	f.config = cfg
	return ok(cfg.Image.String(), found...)
}
