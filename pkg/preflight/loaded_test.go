package preflight_test

import "testing"

func TestSeedsImage(t *testing.T) { testSeeds(t, "image") }
