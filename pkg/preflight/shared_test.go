package preflight_test

import "testing"

func TestSeedsSharedDirectory(t *testing.T) { testSeeds(t, "shared directory") }

func TestSeedsSharedVolume(t *testing.T) { testSeeds(t, "shared volume") }
