package preflight_test

import "testing"

func TestSeedsKeptCopy(t *testing.T) { testSeeds(t, "kept copy") }
