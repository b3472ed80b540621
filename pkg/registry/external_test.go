//go:build external

package registry_test

import (
	"io"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/registry"
)

// TestExternal pulls from registries on the internet, for people who have it: make test-external.
// The digest is that of the launcher in near/mpc's public attestation fixtures; the tags are
// resolved first.
func TestExternal(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"nearone/mpc-launcher@sha256:5618a93a78c9ac9173e7ebf7c8af173bd675be6832a2f8c2a9a7149ac2678f54",
		"hello-world:latest",
		"ghcr.io/regclient/regctl:latest",
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			ref, err := name.ParseReference(text)
			require.NoError(t, err)
			p := &registry.Client{Rounds: 2, Interval: time.Second}
			described, err := p.Describe(t.Context(), ref)
			require.NoError(t, err)
			v, err := resolve(t.Context(), p, ref.Context().Digest(described.Digest.String()))
			require.NoError(t, err)
			var all []int
			for i := range v.Layers() {
				all = append(all, i)
			}
			stream := v.Open(t.Context(), all)
			defer stream.Close()
			for _, layer := range v.Layers() {
				r, err := stream.NextPlain() // digest, size and diffID
				require.NoError(t, err)
				_, err = io.Copy(io.Discard, r)
				require.NoError(t, err, "%s", layer.Digest)
				assert.NoError(t, r.Close())
			}
		})
	}
}
