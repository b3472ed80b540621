package preflight_test

import "testing"

func TestSeedsMeasured(t *testing.T) { testSeeds(t, "measured") }
