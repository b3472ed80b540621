package registry

import (
	"context"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// ParseContentRange is for tests.
func ParseContentRange(s string) (start, end, total int64, err error) { return parseContentRange(s) }

// Credential is for tests.
type Credential struct {
	authn.AuthConfig
	Source, Note string
}

// FindCredential asks the Docker keychain of the environment.
func FindCredential(ctx context.Context, c *Client, repo name.Repository) Credential {
	settings := c.settings()
	s := newRemote(settings, newCommon(settings), repo.Tag("latest"))
	s.guard.speaks("https")
	found := s.findCredential(ctx)
	return Credential{found.config, found.source, found.note}
}

// Hide takes secrets out of a text.
func Hide(text string, values ...string) string {
	var s secrets
	s.add(values...)
	return s.hide(text)
}
