package preflight_test

import "testing"

func TestSeedsEventLog(t *testing.T) { testSeeds(t, "event log") }
