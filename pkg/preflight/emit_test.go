package preflight_test

import "testing"

func TestSeedsEmit(t *testing.T) { testSeeds(t, "emit") }
