package launchtest_test

import (
	"testing"

	"tee-launcher/pkg/launchtest"
)

// TestConformance holds the engine double, as every engine that it plays, to what the real ones do.
func TestConformance(t *testing.T) {
	t.Parallel()
	for _, played := range []struct {
		api        string
		containerd bool
	}{{"1.41", false}, {"1.45", false}, {"1.45", true}, {"1.51", false}, {"1.51", true},
		{"1.52", false}, {"1.52", true}} {
		var double *launchtest.Engine
		o := playing(func() *launchtest.Engine { return double }, launchtest.EngineOptions{
			APIVersion: played.api, Containerd: played.containerd,
			Exists: func(path string) bool { return path != "/nosuch/path" },
		})
		double, socket := newDouble(t, o)
		_ = double
		t.Run(played.api, func(t *testing.T) {
			t.Parallel()
			conforms(t, socket, []byte("runs on no double"))
		})
	}
}
