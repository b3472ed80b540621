// Package digest parses digests the way the contract writes them.
//
// It guarantees that what it returns is SHA-256 in the one spelling that everybody agrees on, so that two digests are
// equal exactly when their texts are. It does not say that anything with that digest exists.
package digest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const prefix = "sha256:"

// Parse reads "sha256:" and 64 lower-case hex digits, and nothing else: no other algorithm, no capitals, no space.
func Parse(s string) (v1.Hash, error) {
	hexDigits, ok := strings.CutPrefix(s, prefix)
	if !ok || len(hexDigits) != 2*sha256.Size || strings.Trim(hexDigits, "0123456789abcdef") != "" {
		return v1.Hash{}, fmt.Errorf("%.100q is not sha256: and 64 lower-case hex digits", s)
	}
	return v1.Hash{Algorithm: "sha256", Hex: hexDigits}, nil
}

// Of returns the SHA-256 digest of b.
func Of(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// Bytes returns the 32 raw bytes of a digest that Parse or Of made, and an error for any other.
func Bytes(h v1.Hash) ([sha256.Size]byte, error) {
	var raw [sha256.Size]byte
	if _, err := Parse(h.String()); err != nil {
		return raw, err
	}
	_, err := hex.Decode(raw[:], []byte(h.Hex))
	return raw, err
}
