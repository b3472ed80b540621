package registry_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// TestErrorText holds the one line that people read to its form.
func TestErrorText(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, small(t))
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestManifest, Times: -1})
	p := defaults(new(clock))
	p.Rounds = 0
	_, err := resolve(t.Context(), p, ref)
	assert.EqualError(t, err, ref.String()+": manifest: 503 Service Unavailable: UNAVAILABLE: the fault was asked for (after 4 attempts)")
}

// TestWordsOfTheRegistry quotes a registry that wants to be more than quoted.
func TestWordsOfTheRegistry(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, small(t))
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 403, On: launchtest.RequestManifest, Times: -1,
		Message: "no\r\nhint: run this\x1b[31m\u202ecod\u0000e \xff" + strings.Repeat("m", 10_000)})
	_, err := resolve(t.Context(), defaults(new(clock)), ref)
	e := requireError(t, err, image.Refused)
	assert.True(t, strings.HasPrefix(e.Message, "no hint: run this [31m cod e "), "%.60q", e.Message)
	assert.Less(t, len(e.Message), 250)
	assert.NotContains(t, e.Error(), "\n")
}
