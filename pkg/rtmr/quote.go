package rtmr

import (
	"encoding/binary"
	"fmt"
)

// Where things stand in a TDX quote of version 4: a header of 48 bytes, the TD report of 584, the signature's length.
const (
	quoteVersion   = 4
	quoteTDX       = 0x81
	quoteTEEType   = 4
	quoteRTMR3     = 520
	quoteSignature = 48 + 584
)

// quotedRTMR3 reads RTMR3 from a quote. It checks the form, never the signature.
func quotedRTMR3(quote []byte) (Register, error) {
	if len(quote) < quoteSignature+4 {
		return Register{}, fmt.Errorf("%d bytes are too few for a TDX quote", len(quote))
	}
	if v := binary.LittleEndian.Uint16(quote); v != quoteVersion {
		return Register{}, fmt.Errorf("quote version %d, want %d", v, quoteVersion)
	}
	if t := binary.LittleEndian.Uint32(quote[quoteTEEType:]); t != quoteTDX {
		return Register{}, fmt.Errorf("quote of TEE type %#x, want %#x (TDX)", t, quoteTDX)
	}
	signature := binary.LittleEndian.Uint32(quote[quoteSignature:])
	if int64(signature) > int64(len(quote)-quoteSignature-4) {
		return Register{}, fmt.Errorf("a signature of %d bytes doesn't fit a quote of %d", signature, len(quote))
	}
	return Register(quote[quoteRTMR3 : quoteRTMR3+len(Register{})]), nil
}
