package preflight_test

import "testing"

func TestSeedsManifest(t *testing.T) { testSeeds(t, "manifest") }
