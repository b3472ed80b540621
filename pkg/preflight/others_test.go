package preflight_test

import "testing"

func TestSeedsOtherDigests(t *testing.T) { testSeeds(t, "other digests") }
