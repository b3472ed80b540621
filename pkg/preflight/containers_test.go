package preflight_test

import "testing"

func TestSeedsContainers(t *testing.T) { testSeeds(t, "containers") }

func TestSeedsHolders(t *testing.T) { testSeeds(t, "holders") }

func TestSeedsImpostor(t *testing.T) { testSeeds(t, "impostor") }
