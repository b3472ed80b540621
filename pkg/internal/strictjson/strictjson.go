// Package strictjson reads JSON that means one thing to every reader.
//
// It guarantees that a document it takes is exactly one JSON value in UTF-8; that no object in it
// has one name twice, or two names that differ only in letter case; that all text in it is Unicode
// and every number fits a float64; and that it is nested at most MaxDepth deep. Readers disagree
// about everything else: which of two members counts, whether "Name" is "name", what a lone
// surrogate is. Whoever measures or approves must not depend on that.
//
// Time and memory are linear in the size of the document. The caller bounds the size.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxDepth is how deep arrays and objects may be nested: as deep as the NEAR verifier's own reader
// goes.
const MaxDepth = 127

// AmbiguousNameError is a name that stands twice in an object, in one letter case or in two.
type AmbiguousNameError struct{ message string }

func (e *AmbiguousNameError) Error() string { return e.message }

func twice(name string) error {
	return &AmbiguousNameError{fmt.Sprintf("%.40q occurs twice", name)}
}

func otherCase(name, as string) error {
	return &AmbiguousNameError{fmt.Sprintf("%.40q is %.40q in another letter case", name, as)}
}

// Value is one value of a document that Parse took. The zero Value is a member that isn't there.
type Value struct{ raw []byte }

// Parse reads a document. In the objects that stand under one of the names in free, such as
// "Labels", the names are data, so that letter case tells two of them apart.
func Parse(data []byte, free ...string) (Value, error) {
	if !utf8.Valid(data) {
		return Value{}, errors.New("not UTF-8")
	}
	if !json.Valid(data) {
		return Value{}, syntaxError(data)
	}
	s := scanner{data: data, free: free}
	s.space()
	start := s.at
	if err := s.check(0, false); err != nil {
		return Value{}, err
	}
	return Value{data[start:s.at]}, nil
}

func syntaxError(data []byte) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("it is empty")
	}
	if bytes.HasPrefix(data, []byte("\ufeff")) {
		return errors.New("it begins with a byte order mark, which JSON doesn't have")
	}
	var raw json.RawMessage
	err := json.Unmarshal(data, &raw)
	if err == nil {
		return errors.New("not exactly one JSON document")
	}
	return fmt.Errorf("not exactly one JSON document: %w", err)
}

// Present reports whether there is a value.
func (v Value) Present() bool { return v.raw != nil }

// IsArray reports whether the value is an array.
func (v Value) IsArray() bool { return v.starts('[') }

// Null reports whether the value is null.
func (v Value) Null() bool { return string(v.raw) == "null" }

// Raw returns the value as it stands in the document.
func (v Value) Raw() json.RawMessage { return json.RawMessage(v.raw) }

// Object returns the members of an object. A name that is one of known in another letter case is an
// error: Go's own reader, for one, would take it for that.
func (v Value) Object(known ...string) (map[string]Value, error) {
	if !v.starts('{') {
		return nil, v.not("a JSON object")
	}
	folded := make(map[string]string, len(known))
	for _, k := range known {
		folded[fold(k)] = k
	}
	members := map[string]Value{}
	s := scanner{data: v.raw}
	for more := s.open(); more; more = s.next() {
		name := s.text()
		if k, ok := folded[fold(name)]; ok && k != name {
			return nil, otherCase(name, k)
		}
		s.colon()
		start := s.at
		s.skip()
		members[name] = Value{v.raw[start:s.at]}
		s.space()
	}
	return members, nil
}

// Array returns the elements of an array of at most limit.
func (v Value) Array(limit int) ([]Value, error) {
	if !v.starts('[') {
		return nil, v.not("a JSON array")
	}
	var elements []Value
	s := scanner{data: v.raw}
	for more := s.open(); more; more = s.next() {
		if len(elements) == limit {
			return nil, fmt.Errorf("more than %d elements", limit)
		}
		start := s.at
		s.skip()
		elements = append(elements, Value{v.raw[start:s.at]})
		s.space()
	}
	return elements, nil
}

// Text returns a string.
func (v Value) Text() (string, error) {
	if !v.starts('"') {
		return "", v.not("a string")
	}
	s := scanner{data: v.raw}
	return s.text(), nil
}

// Bool returns true or false.
func (v Value) Bool() (bool, error) {
	switch string(v.raw) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, v.not("true or false")
}

// Uint32 returns a number that is written as an integer of 32 bits without a sign: neither 3.0 nor
// -0 is one.
func (v Value) Uint32() (uint32, error) {
	n, err := strconv.ParseUint(string(v.raw), 10, 32)
	if err != nil {
		return 0, v.not("an integer of 32 bits without a sign")
	}
	return uint32(n), nil
}

func (v Value) starts(c byte) bool { return len(v.raw) > 0 && v.raw[0] == c }

func (v Value) not(kind string) error {
	if !v.Present() {
		return errors.New("missing")
	}
	return fmt.Errorf("%.60s is not %s", bytes.Join(bytes.Fields(v.raw), []byte(" ")), kind)
}

// scanner goes through a document that encoding/json found valid, so that it can rely on its form.
type scanner struct {
	data []byte
	at   int
	free []string
}

// check goes through one value and looks for what Parse refuses.
func (s *scanner) check(depth int, free bool) error {
	switch c := s.data[s.at]; c {
	case '"':
		start := s.at
		s.skip()
		return unicodeOnly(s.data[start:s.at])
	case '{', '[':
		if depth == MaxDepth {
			return fmt.Errorf("nested more than %d deep", MaxDepth)
		}
		var seen names
		for more := s.open(); more; more = s.next() {
			inner := false
			if c == '{' {
				start := s.at
				name := s.text()
				if err := unicodeOnly(s.data[start:s.at]); err != nil {
					return err
				}
				key := name
				if !free {
					key = fold(name)
				}
				if before, there := seen.add(key, name); there && before == name {
					return twice(name)
				} else if there {
					return otherCase(name, before)
				}
				inner = slices.Contains(s.free, name)
				s.colon()
			}
			if err := s.check(depth+1, inner); err != nil {
				return err
			}
			s.space()
		}
		return nil
	case 't', 'f', 'n':
		s.skip()
		return nil
	}
	start := s.at
	s.skip()
	if _, err := strconv.ParseFloat(string(s.data[start:s.at]), 64); err != nil {
		return fmt.Errorf("the number %.60s is out of range", s.data[start:s.at])
	}
	return nil
}

// names are those of an object, by what has to be unlike. Most objects have few, for which a map
// would cost far more than they do.
type names struct {
	few  [][2]string
	many map[string]string
}

// add returns the name that has the key already, and whether there is one.
func (n *names) add(key, name string) (before string, there bool) {
	for _, pair := range n.few {
		if pair[0] == key {
			return pair[1], true
		}
	}
	if len(n.few) < 8 {
		n.few = append(n.few, [2]string{key, name})
		return "", false
	}
	if before, there = n.many[key]; there {
		return before, true
	}
	if n.many == nil {
		n.many = map[string]string{}
	}
	n.many[key] = name
	return "", false
}

// open goes behind the opening bracket and reports whether there is a first element.
func (s *scanner) open() bool {
	s.at++
	s.space()
	return !s.closed()
}

// next goes behind the comma, and reports whether there was one.
func (s *scanner) next() bool {
	if s.closed() {
		return false
	}
	s.at++
	s.space()
	return true
}

func (s *scanner) closed() bool {
	if c := s.data[s.at]; c != '}' && c != ']' {
		return false
	}
	s.at++
	return true
}

func (s *scanner) colon() {
	s.space()
	s.at++
	s.space()
}

func (s *scanner) space() {
	for s.at < len(s.data) && strings.IndexByte(" \t\r\n", s.data[s.at]) >= 0 {
		s.at++
	}
}

// skip goes behind one value.
func (s *scanner) skip() {
	for depth := 0; s.at < len(s.data); {
		switch s.data[s.at] {
		case '"':
			s.skipText()
		case '{', '[':
			depth++
			s.at++
		case '}', ']':
			depth--
			s.at++
		case ',', ':', ' ', '\t', '\r', '\n':
			s.at++
			continue // never the end of a value
		default:
			for s.at < len(s.data) && strings.IndexByte(",]} \t\r\n", s.data[s.at]) < 0 {
				s.at++
			}
		}
		if depth == 0 {
			return
		}
	}
}

func (s *scanner) skipText() {
	for s.at++; s.data[s.at] != '"'; s.at++ {
		if s.data[s.at] == '\\' {
			s.at++
		}
	}
	s.at++
}

// text reads a string and goes behind it.
func (s *scanner) text() string {
	start := s.at
	s.skipText()
	raw := s.data[start:s.at]
	if !slices.Contains(raw, '\\') {
		return string(raw[1 : len(raw)-1])
	}
	var text string
	_ = json.Unmarshal(raw, &text) // it is a valid string
	return text
}

// unicodeOnly refuses a surrogate that is escaped without its other half: readers replace it, keep
// it or fail.
func unicodeOnly(raw []byte) error {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		i++
		if raw[i] != 'u' {
			continue
		}
		r, rest := unit(raw[i+1:]), raw[i+5:]
		switch {
		case r < 0xd800 || r > 0xdfff:
			i += 4
		case r < 0xdc00 && bytes.HasPrefix(rest, []byte(`\u`)) && unit(rest[2:])>>10 == 0xdc00>>10:
			i += 10
		default:
			return fmt.Errorf("half a surrogate pair, \\u%s", raw[i+1:i+5])
		}
	}
	return nil
}

// unit returns the UTF-16 unit that the four digits stand for.
func unit(digits []byte) uint64 {
	n, _ := strconv.ParseUint(string(digits[:4]), 16, 16) // they are hex digits
	return n
}

// fold maps names that strings.EqualFold, and so encoding/json, takes for one to one string.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, s)
}
