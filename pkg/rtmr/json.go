package rtmr

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// object reads one JSON object. Readers disagree about a name that occurs twice, and Go's own takes a name in any letter
// case; where a document has two readings, a verifier elsewhere could take the other one. So both are errors here.
func object(raw []byte, known ...string) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	} else if t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	members := make(map[string]json.RawMessage)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name := t.(string) // the decoder takes nothing else before a colon
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("%.100q occurs twice", name)
		}
		for _, k := range known {
			if name != k && strings.EqualFold(name, k) {
				return nil, fmt.Errorf("%.100q is %q in another letter case", name, k)
			}
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		members[name] = value
	}
	return members, end(dec)
}

// array reads one JSON array of at most limit elements.
func array(raw []byte, limit int) ([]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("not a JSON array: %w", err)
	} else if t != json.Delim('[') {
		return nil, errors.New("not a JSON array")
	}
	var elements []json.RawMessage
	for dec.More() {
		if len(elements) == limit {
			return nil, fmt.Errorf("more than %d elements", limit)
		}
		var element json.RawMessage
		if err := dec.Decode(&element); err != nil {
			return nil, err
		}
		elements = append(elements, element)
	}
	return elements, end(dec)
}

// end takes the closing bracket and insists that nothing follows.
func end(dec *json.Decoder) error {
	if _, err := dec.Token(); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the document")
	}
	return nil
}

func isString(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '"' }

func text(raw json.RawMessage) (string, error) {
	if !isString(raw) {
		return "", errors.New("not a string")
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}

// hexBytes reads what the agent writes: lower-case hex without a prefix. The NEAR verifier compares some of it as text.
func hexBytes(raw json.RawMessage) ([]byte, error) {
	s, err := text(raw)
	if err != nil {
		return nil, err
	}
	if len(s)%2 != 0 || strings.Trim(s, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%.100q is not lower-case hex", s)
	}
	return hex.DecodeString(s)
}

func register(raw json.RawMessage) (Register, error) {
	b, err := hexBytes(raw)
	if err != nil {
		return Register{}, err
	}
	if len(b) != len(Register{}) {
		return Register{}, fmt.Errorf("%d bytes, want %d", len(b), len(Register{}))
	}
	return Register(b), nil
}

func number(raw json.RawMessage) (uint32, error) {
	n, err := strconv.ParseUint(string(raw), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%.100q is not a number of 32 bits", raw)
	}
	return uint32(n), nil
}
