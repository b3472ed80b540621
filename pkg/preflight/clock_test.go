package preflight_test

import "testing"

func TestSeedsClock(t *testing.T) { testSeeds(t, "clock") }
