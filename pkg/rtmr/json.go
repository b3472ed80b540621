package rtmr

import (
	"encoding/hex"
	"fmt"
	"strings"

	"tee-launcher/pkg/internal/strictjson"
)

// hexBytes reads what the agent writes: lower-case hex without a prefix. The NEAR verifier compares some of it as text.
func hexBytes(v strictjson.Value) ([]byte, error) {
	s, err := v.Text()
	if err != nil {
		return nil, err
	}
	if len(s)%2 != 0 || strings.Trim(s, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%.100q is not lower-case hex", s)
	}
	return hex.DecodeString(s)
}

func register(v strictjson.Value) (Register, error) {
	b, err := hexBytes(v)
	if err != nil {
		return Register{}, err
	}
	if len(b) != len(Register{}) {
		return Register{}, fmt.Errorf("%d bytes, want %d", len(b), len(Register{}))
	}
	return Register(b), nil
}

// document reads one document within bounds.
func document(b []byte) (strictjson.Value, error) {
	if len(b) > MaxSize {
		err := fmt.Errorf("%d bytes, at most %d are read", len(b), MaxSize)
		return strictjson.Value{}, &FormatError{"event log", err}
	}
	v, err := strictjson.Parse(b)
	if err != nil {
		return strictjson.Value{}, &FormatError{"event log", err}
	}
	return v, nil
}
