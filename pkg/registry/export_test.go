package registry

import (
	"context"

	"github.com/google/go-containerregistry/pkg/name"
)

// ParseContentRange is for tests.
func ParseContentRange(s string) (start, end, total int64, err error) { return parseContentRange(s) }

// Challenge is for tests.
type Challenge struct {
	Scheme string
	Params map[string]string
}

// ParseChallenges is for tests.
func ParseChallenges(headers []string) []Challenge {
	var all []Challenge
	for _, c := range parseChallenges(headers) {
		all = append(all, Challenge{c.scheme, c.params})
	}
	return all
}

// Credential is for tests.
type Credential struct{ Username, Password, IdentityToken, RegistryToken, Source, Note string }

// FindCredential asks the Docker keychain of the environment.
func FindCredential(ctx context.Context, p *Client, repo name.Repository) Credential {
	c := newSource(p.settings(), repo.Tag("latest")).findCredential(ctx)
	return Credential{c.username, c.password, c.identity, c.registryToken, c.source, c.note}
}
