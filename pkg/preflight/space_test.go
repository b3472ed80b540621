package preflight_test

import "testing"

func TestSeedsSpace(t *testing.T) { testSeeds(t, "space") }
