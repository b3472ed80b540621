package preflight_test

import "testing"

func TestSeedsWorkload(t *testing.T) { testSeeds(t, "workload") }
