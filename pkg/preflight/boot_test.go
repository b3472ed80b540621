package preflight_test

import "testing"

func TestSeedsBoot(t *testing.T) { testSeeds(t, "boot") }
