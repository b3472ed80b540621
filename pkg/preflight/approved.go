package preflight

import (
	"context"
	"fmt"

	"tee-launcher/pkg/state"
)

// checkApproved reads the approved list. That there is none is what a first boot finds.
func checkApproved(_ context.Context, f *facts) outcome {
	list, err := state.Approved(f.shared)
	switch {
	case err != nil:
		return refuse("", err)
	case list == nil:
		return ok("there is none, so the default digest counts")
	}
	f.list = list
	return ok(fmt.Sprintf("%d approved", len(list.Digests())))
}
