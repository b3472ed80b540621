package preflight

import (
	"context"
	"fmt"
	"time"
)

// maxSkew is how far two clocks may be apart before it is worth a word.
const maxSkew = 5 * time.Minute

// checkClock compares the clock with the registry's, and with the time at which this program can't have run.
func checkClock(_ context.Context, f *facts) outcome {
	now := f.now().UTC()
	const fix = "set the clock; certificates and tokens depend on it"
	if earliest := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC); now.Before(earliest) {
		return ok("", warning(ClockWrong, fmt.Sprintf("it says %s, which is in the past", now.Format(time.RFC3339)), fix))
	}
	if f.notice.Date.IsZero() {
		return ok("there is no other clock to compare with")
	}
	skew := now.Sub(f.notice.Date).Round(time.Second)
	if skew.Abs() > maxSkew {
		return ok("", warning(ClockWrong, fmt.Sprintf("it says %s, the registry's says %s", now.Format(time.RFC3339), f.notice.Date.UTC().Format(time.RFC3339)), fix))
	}
	return ok(fmt.Sprintf("within %s of the registry's", maxSkew))
}
