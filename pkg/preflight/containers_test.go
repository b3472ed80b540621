package preflight_test

import "testing"

func TestSeedsContainers(t *testing.T) { testSeeds(t, "containers") }
