package rtmr

import (
	"encoding/binary"
	"fmt"
)

// Where things stand in a TDX quote: a header of 48 bytes, the TD report, the signature's length.
const (
	quoteTDX     = 0x81
	quoteTEEType = 4
	quoteHeader  = 48
	reportSize   = 584 // of TDX 1.0; that of 1.5 is longer by what stands at its end
	reportSize15 = 648
	reportRTMR3  = 472
)

// quotedRTMR3 reads RTMR3 from a quote. It checks the form, never the signature.
func quotedRTMR3(quote []byte) (Register, error) {
	if len(quote) < quoteHeader+reportSize+4 {
		return Register{}, fmt.Errorf("%d bytes are too few for a TDX quote", len(quote))
	}
	version := binary.LittleEndian.Uint16(quote)
	if version < 3 || version > 5 {
		return Register{}, fmt.Errorf("quote version %d, want 3 to 5", version)
	}
	t := binary.LittleEndian.Uint32(quote[quoteTEEType:])
	if t != quoteTDX {
		return Register{}, fmt.Errorf("quote of TEE type %#x, want %#x (TDX)", t, quoteTDX)
	}
	report, size := quoteHeader, reportSize
	if version == 5 {
		// From version 5 on the report's kind and size stand before it.
		kind := binary.LittleEndian.Uint16(quote[quoteHeader:])
		length := binary.LittleEndian.Uint32(quote[quoteHeader+2:])
		if kind == 2 && length == reportSize || kind == 3 && length == reportSize15 {
			report, size = quoteHeader+6, int(length)
		}
	}
	if len(quote) < report+size+4 {
		return Register{}, fmt.Errorf("%d bytes are too few for a TDX quote", len(quote))
	}
	signature := int64(binary.LittleEndian.Uint32(quote[report+size:]))
	if rest := int64(len(quote) - report - size - 4); signature > rest {
		return Register{}, fmt.Errorf("a signature of %d bytes, and %d are left", signature, rest)
	}
	return Register(quote[report+reportRTMR3 : report+reportRTMR3+len(Register{})]), nil
}
