package preflight_test

import "testing"

func TestSeedsLayers(t *testing.T) { testSeeds(t, "layers") }
