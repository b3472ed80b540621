package preflight_test

import "testing"

func TestSeedsNodeConfig(t *testing.T) { testSeeds(t, "node config") }
