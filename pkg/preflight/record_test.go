package preflight_test

import "testing"

func TestSeedsRecord(t *testing.T) { testSeeds(t, "record") }
