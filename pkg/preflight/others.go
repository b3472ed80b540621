package preflight

import (
	"context"
	"fmt"
	"slices"

	"tee-launcher/pkg/digest"
)

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
					"push it before mpc_hash_override is removed"))
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
			return ok("", warning(NewerUnavailable, fmt.Sprintf("the selected digest can't be pulled, %s, which is approved and older, can", h),
				"push the selected one, or write this into [launcher_config] of the user config:", fmt.Sprintf("mpc_hash_override = %q", h)))
		}
	}
	return ok("no older one can be pulled either")
}

func (f *facts) resolves(ctx context.Context, h digest.Digest) error {
	_, err := f.sourceOf(h).Resolve(ctx)
	return err
}
