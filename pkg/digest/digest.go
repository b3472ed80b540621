// Package digest is SHA-256 as the contract writes it.
//
// It guarantees that a Digest is 32 bytes with one spelling that everybody agrees on, so that two
// digests are equal exactly when their texts are, and that a text in any other spelling is none. It
// does not say that anything with that digest exists.
package digest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const prefix = "sha256:"

// Digest is a SHA-256. The zero value is no digest, and is refused wherever a digest decides.
type Digest [sha256.Size]byte

// ErrNone refuses the zero Digest where one has to be.
var ErrNone = errors.New("no digest is given")

// Parse reads "sha256:" and 64 lower-case hex digits, and nothing else: no other algorithm, no
// capitals, no space. 64 zeros are the zero value.
func Parse(s string) (d Digest, err error) {
	hexDigits, ok := strings.CutPrefix(s, prefix)
	// hex.Decode takes capitals too.
	if !ok || len(hexDigits) != 2*len(d) || strings.Trim(hexDigits, "0123456789abcdef") != "" {
		const form = "%.100q is not sha256: and 64 lower-case hex digits"
		if len(s) != len(prefix)+2*len(d) {
			return Digest{}, fmt.Errorf(form+", 71 characters: it has %d", s, len(s))
		}
		return Digest{}, fmt.Errorf(form, s)
	}
	_, err = hex.Decode(d[:], []byte(hexDigits))
	return d, err
}

// Of returns the digest of b.
func Of(b []byte) Digest { return sha256.Sum256(b) }

// String returns what Parse reads.
func (d Digest) String() string { return prefix + d.Hex() }

// Hex returns the 64 digits alone.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d is no digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText returns what String does.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what Parse does.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = Parse(string(text))
	return err
}
