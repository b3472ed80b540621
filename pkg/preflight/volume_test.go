package preflight_test

import "testing"

func TestSeedsDataVolume(t *testing.T) { testSeeds(t, "data volume") }
