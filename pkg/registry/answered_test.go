package registry_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// TestWhetherASourceAnswered is told by how a pull failed: from no answer nothing follows about the digest.
func TestWhetherASourceAnswered(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	status := func(on launchtest.RequestKind, code int) launchtest.RegistryFault {
		return launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: on, Status: code, Times: -1}
	}
	way := func(on launchtest.RequestKind, kind launchtest.RegistryFaultKind) launchtest.RegistryFault {
		return launchtest.RegistryFault{Kind: kind, On: on, Times: -1}
	}
	for name, c := range map[string]struct {
		fault    launchtest.RegistryFault
		down     bool
		kind     image.Kind
		answered bool
	}{
		"nobody listens":    {down: true, kind: image.Unavailable},
		"nothing comes":     {fault: way(launchtest.RequestPing, launchtest.FaultNoHeader), kind: image.Unavailable},
		"it isn't HTTP":     {fault: way(launchtest.RequestPing, launchtest.FaultGarbage), kind: image.Unavailable},
		"it isn't there":    {fault: status(launchtest.RequestManifest, 404), kind: image.Refused, answered: true},
		"it is overloaded":  {fault: status(launchtest.RequestManifest, 503), kind: image.Unavailable, answered: true},
		"it breaks off":     {fault: way(launchtest.RequestManifest, launchtest.FaultCut), kind: image.Unavailable, answered: true},
		"layers don't come": {fault: way(launchtest.RequestBlob, launchtest.FaultNoHeader), kind: image.Unavailable, answered: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, network *launchtest.Network) {
				r := newRegistry(t, launchtest.RegistryOptions{Network: network})
				ref := push(t, r, img)
				if c.fault.Kind != "" {
					r.Fail(c.fault)
				}
				if c.fault.On == launchtest.RequestPing { // and whatever else it is asked for
					c.fault.On = launchtest.RequestManifest
					r.Fail(c.fault)
				}
				if c.down {
					require.NoError(t, r.Stop())
				}
				client := within(network)
				client.Rounds = 1
				_, _, err := pull(t.Context(), client, ref)
				var e *image.Error
				require.True(t, errors.As(err, &e), "%v", err)
				assert.Equal(t, c.kind, e.Kind, "%v", err)
				assert.Equal(t, c.answered, e.Answered, "%v", err)
			})
		})
	}
}
