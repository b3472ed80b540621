package image_test

import (
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
)

// TestErrorText holds the one line that people read to its form.
func TestErrorText(t *testing.T) {
	t.Parallel()
	assert.EqualError(t, &image.Error{Kind: image.Unavailable, Ref: "nearone/mpc-node@sha256:…", Host: "index.docker.io", Err: io.ErrUnexpectedEOF},
		"nearone/mpc-node@sha256:…: index.docker.io: unexpected EOF", "the host is said where the reference doesn't")
	assert.EqualError(t, &image.Error{Kind: image.Refused}, "image is refused")
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
