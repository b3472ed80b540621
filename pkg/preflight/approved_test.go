package preflight_test

import "testing"

func TestSeedsApprovedList(t *testing.T) { testSeeds(t, "approved list") }
