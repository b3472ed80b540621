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

// hasPlainSize reports whether a layer can claim the size of its tar.
func hasPlainSize(l image.Layer) bool {
	return (l.MediaType == types.DockerLayer || l.MediaType == types.OCILayer) && l.Size >= 18 && l.Size <= maxHinted
}

// claimed reads the last four bytes of a gzip layer.
func claimed(trailer [4]byte, l image.Layer) (int64, bool) {
	size := int64(binary.LittleEndian.Uint32(trailer[:]))
	// What claims to be far smaller than its blob has wrapped around, or is one of several members.
	return size, size >= l.Size/2 && size <= maxHintedRatio*l.Size
}

func (s *remote) plainSize(ctx context.Context, l image.Layer) (int64, bool) {
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", l.Size-4, l.Size-1)}}
	a, f := s.open(ctx, &tries{}, newTrack(l), header)
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
	return claimed(trailer, l)
}
