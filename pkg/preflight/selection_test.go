package preflight_test

import "testing"

func TestSeedsSelection(t *testing.T) { testSeeds(t, "selection") }
