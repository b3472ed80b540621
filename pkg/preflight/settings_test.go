package preflight_test

import "testing"

func TestSeedsSettings(t *testing.T) { testSeeds(t, "settings") }
