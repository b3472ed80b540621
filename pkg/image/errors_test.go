package image_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"tee-launcher/pkg/exit"
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
	_, err := p.Resolve(t.Context(), ref)
	assert.EqualError(t, err, ref.String()+": manifest: 503 Service Unavailable: UNAVAILABLE: the fault was asked for (after 4 attempts)")

	assert.EqualError(t, &image.Error{Kind: image.Unavailable, Ref: "nearone/mpc-node@sha256:…", Host: "index.docker.io", Err: io.ErrUnexpectedEOF},
		"nearone/mpc-node@sha256:…: index.docker.io: unexpected EOF", "the host is said where the reference doesn't")
	assert.EqualError(t, &image.Error{Kind: image.Refused}, "image is refused")
}

// TestWordsOfTheRegistry quotes a registry that wants to be more than quoted.
func TestWordsOfTheRegistry(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, small(t))
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 403, On: launchtest.RequestManifest, Times: -1,
		Message: "no\r\nhint: run this\x1b[31m\u202ecod\u0000e \xff" + strings.Repeat("m", 10_000)})
	_, err := defaults(new(clock)).Resolve(t.Context(), ref)
	e := requireError(t, err, image.Refused)
	assert.True(t, strings.HasPrefix(e.Message, "no hint: run this [31m cod e "), "%.60q", e.Message)
	assert.Less(t, len(e.Message), 250)
	assert.NotContains(t, e.Error(), "\n")
}

// TestErrorType asserts what callers rely on.
func TestErrorType(t *testing.T) {
	t.Parallel()
	e := &image.Error{Kind: image.Refused, Err: io.ErrUnexpectedEOF}
	assert.True(t, errors.Is(e, io.ErrUnexpectedEOF))
	for kind, want := range map[image.Kind]exit.Code{image.Unavailable: exit.Unavailable, image.Refused: exit.Refused, image.Mismatch: exit.Mismatch,
		0: exit.Internal} {
		assert.Equal(t, want, exit.Of(&image.Error{Kind: kind}), "kind %s", kind)
	}
}
