package preflight_test

import "testing"

func TestSeedsUserConfig(t *testing.T) { testSeeds(t, "user config") }
