package preflight

import (
	"context"
	"fmt"
)

// fewLeft is how many requests should be left: a boot that is repeated a few times, and an index.
const fewLeft = 10

// checkRate reads what the registry says beside its answers: how many more there will be, and its clock.
func checkRate(ctx context.Context, f *facts) outcome {
	notice, err := f.source.Notice(ctx)
	if err != nil {
		return outcome{unknown: "the registry doesn't say"}
	}
	f.notice = notice
	switch {
	case !notice.Limited:
		return ok("the registry tells none")
	case notice.Remaining < fewLeft:
		return ok("", warning(RateLow, fmt.Sprintf("the registry allows %d more of %d requests", notice.Remaining, notice.Limit),
			"wait, or log in for a higher limit: docker login, with DOCKER_CONFIG where the launcher runs"))
	}
	return ok(fmt.Sprintf("%d of %d requests left", notice.Remaining, notice.Limit))
}
