package preflight_test

import "testing"

func TestSeedsEngine(t *testing.T) { testSeeds(t, "engine") }
