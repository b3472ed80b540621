package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/exit"
)

// checkSettings passes on what the parsing of flags and environment found.
func checkSettings(_ context.Context, f *facts) outcome {
	var found []Finding
	for _, err := range f.options.Mistakes {
		found = append(found, ending(SettingWrong, exit.Usage, err, "see `launcher run --help`"))
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
	return ok("platform "+string(f.options.Platform), found...)
}
