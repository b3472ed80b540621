package preflight_test

import "testing"

func TestSeedsCompose(t *testing.T) { testSeeds(t, "compose") }
