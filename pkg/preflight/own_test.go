package preflight_test

import "testing"

func TestSeedsOwnDirectory(t *testing.T) { testSeeds(t, "own directory") }
