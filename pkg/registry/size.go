package registry

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"tee-launcher/pkg/image"
)

const (
	// trailerTimeout bounds the question for a hint that a pull does as well without.
	trailerTimeout = 5 * time.Second
	// maxHinted is below where gzip's 32 bits of size wrap around, whatever a layer compresses to.
	maxHinted = 1 << 30
	// maxHintedRatio is how many times its size a layer may claim: somebody makes room for it, and
	// what really compresses better costs more to send unpacked than it spares.
	maxHintedRatio = 20
)

// PlainSize returns the size that a gzip layer claims for its uncompressed tar, from the last four
// bytes of its blob. It is a hint for what has to name a size before it sees the bytes: nothing
// proves it, and a layer of several gzip members claims that of its last one. False means that
// there is no hint.
func (s *Source) PlainSize(ctx context.Context, l image.Layer) (int64, bool) {
	if l.MediaType != types.DockerLayer && l.MediaType != types.OCILayer || l.Size < 18 || l.Size > maxHinted {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(ctx, trailerTimeout)
	defer cancel()
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", l.Size-4, l.Size-1)}}
	a, f := s.open(ctx, &tries{}, newBlob(l, "size of "+l.Digest.String()), header)
	if f != nil {
		return 0, false
	}
	defer a.Close()
	var trailer [4]byte
	if a.StatusCode != http.StatusPartialContent {
		return 0, false
	}
	if _, err := io.ReadFull(a, trailer[:]); err != nil {
		return 0, false
	}
	size := int64(binary.LittleEndian.Uint32(trailer[:]))
	// What claims to be far smaller than its blob has wrapped around, or is one of several members.
	return size, size >= l.Size/2 && size <= maxHintedRatio*l.Size
}
