package rtmr

import (
	"crypto/sha512"
	"encoding/hex"
)

// DigestV2 is the digest of an event where the app-compose asks dstack 0.6 for event log version 2: over canonical JSON
// (RFC 8785) instead. No log with such an event is believed: it is there to say why.
func DigestV2(name string, payload []byte) Register {
	b := append([]byte(`{"name":`), canonicalString(name)...)
	b = append(b, `,"payload":"`...)
	b = hex.AppendEncode(b, payload)
	b = append(b, `","type":134217729}`...)
	return sha512.Sum384(b)
}

// canonicalString quotes s as RFC 8785 wants it. encoding/json escapes more than that.
func canonicalString(s string) []byte {
	const digits = "0123456789abcdef"
	short := map[byte]byte{'"': '"', '\\': '\\', '\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't'}
	b := []byte{'"'}
	for i := range len(s) {
		c := s[i]
		if e, ok := short[c]; ok {
			b = append(b, '\\', e)
		} else if c < 0x20 {
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return append(b, '"')
}
