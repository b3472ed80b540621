package preflight_test

import "testing"

func TestSeedsPorts(t *testing.T) { testSeeds(t, "ports") }
