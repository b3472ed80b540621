package config

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Bounds on what the file may hold, far above what a real one does. The decoder's time grows with the square of the
// number of keys, and the encoder repeats a table's whole path in each header; the original's parser gave up at a depth of 80.
const (
	maxDepth     = 128
	maxKeys      = 10_000
	maxExpansion = 16 << 20
)

// source is the text of the user config, where its keys stand, and what was found to be wrong with it.
type source struct {
	file     string
	lines    []int          // offset of each line
	places   map[string]int // offset of the first mention of a path
	problems Problems
	warnings []Warning
}

func newSource(file string, data []byte) *source {
	s := &source{file: file, lines: []int{0}, places: map[string]int{}}
	for i, b := range data {
		if b == '\n' {
			s.lines = append(s.lines, i+1)
		}
	}
	return s
}

func (s *source) problem(offset int, format string, args ...any) {
	s.problems = append(s.problems, s.at(offset, format, args...))
}

func (s *source) warn(offset int, format string, args ...any) {
	s.warnings = append(s.warnings, Warning(s.at(offset, format, args...)))
}

func (s *source) at(offset int, format string, args ...any) Problem {
	line := sort.SearchInts(s.lines, offset+1)
	return Problem{File: s.file, Line: line, Column: offset - s.lines[line-1] + 1, Message: fmt.Sprintf(format, args...)}
}

// place returns the offset of the path, or of the nearest thing around it.
func (s *source) place(path ...string) int {
	for ; len(path) > 0; path = path[:len(path)-1] {
		if offset, ok := s.places[join(path)]; ok {
			return offset
		}
	}
	return 0
}

func join(path []string) string { return strings.Join(path, "\x00") }

// element is how the path of an array's element ends.
func element(i int) string { return fmt.Sprintf("#%d", i) }

// decode reads the document. It stops at the first thing that isn't TOML, because what follows can't be told then. The
// decoder's own messages are never shown: they quote the document.
func (s *source) decode(data []byte) map[string]any {
	if at := invalidUTF8(data); at >= 0 {
		s.problem(at, "not UTF-8")
		return nil
	}
	if !s.outline(data) {
		return nil
	}
	values := map[string]any{}
	err := toml.Unmarshal(data, &values)
	if err == nil {
		return values
	}
	offset, message := 0, ""
	var decoding *toml.DecodeError
	if errors.As(err, &decoding) {
		line, column := decoding.Position()
		offset = s.lines[min(max(line, 1), len(s.lines))-1] + max(column, 1) - 1
		message = strings.TrimPrefix(decoding.Error(), "toml: ")
	}
	s.problem(offset, "invalid TOML: %s", reason(message))
	return nil
}

func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size <= 1 {
			return i
		}
		i += size
	}
	return -1
}

// outline walks the document's syntax before any value is decoded: it notes where the keys stand and refuses what
// would cost decoder or encoder out of all proportion.
func (s *source) outline(data []byte) bool {
	data = slices.Clip(data)
	var parser unstable.Parser
	parser.Reset(data)
	o := outliner{source: s, elements: map[string]int{}}
	for parser.NextExpression() {
		switch expression := parser.Expression(); expression.Kind {
		case unstable.Table:
			o.header = o.key(nil, expression)
		case unstable.ArrayTable:
			array := o.key(nil, expression)
			i := o.elements[join(array)]
			o.elements[join(array)]++
			o.header = append(array, element(i))
			s.note(o.header, o.last)
		case unstable.KeyValue:
			o.keyValue(o.header, expression)
		}
		if o.overLimit != "" {
			s.problem(o.last, "%s", o.overLimit)
			return false
		}
	}
	if err := parser.Error(); err != nil {
		offset, message := 0, ""
		var parsing *unstable.ParserError
		if errors.As(err, &parsing) {
			// The highlight is a part of data, so what lies behind it says where it begins.
			offset = min(max(len(data)-cap(parsing.Highlight), 0), len(data))
			message = parsing.Message
		}
		s.problem(offset, "invalid TOML: %s", reason(message))
		return false
	}
	return true
}

func (s *source) note(path []string, offset int) {
	// Only these are ever asked for.
	if len(path) > 2 && path[0] != launcherTable || len(path) > 4 {
		return
	}
	if _, ok := s.places[join(path)]; !ok {
		s.places[join(path)] = offset
	}
}

type outliner struct {
	*source
	header    []string
	elements  map[string]int
	last      int // offset of the last key
	keys      int
	longest   int
	overLimit string // why to stop
}

func (o *outliner) key(prefix []string, n *unstable.Node) []string {
	path := slices.Clone(prefix)
	for parts := n.Key(); parts.Next(); {
		part := parts.Node()
		o.keys++
		o.last = int(part.Raw.Offset)
		path = append(path, string(part.Data))
		if len(path) > maxDepth {
			break
		}
		o.note(path, o.last)
	}
	o.bound(path)
	return path
}

// bound notes why the decoding would be out of proportion, if it would.
func (o *outliner) bound(path []string) {
	o.longest = max(o.longest, len(join(path)))
	switch {
	case len(path) > maxDepth:
		o.overLimit = fmt.Sprintf("nested deeper than %d levels", maxDepth)
	case o.keys > maxKeys:
		o.overLimit = fmt.Sprintf("more than %d keys", maxKeys)
	case o.keys*o.longest > maxExpansion:
		o.overLimit = "too many keys for keys as long as these"
	}
}

func (o *outliner) keyValue(prefix []string, n *unstable.Node) {
	path := o.key(prefix, n)
	o.value(path, n.Value())
}

func (o *outliner) value(path []string, n *unstable.Node) {
	if n.Kind == unstable.InlineTable {
		o.keys++ // it may become a header of its own
	}
	if o.bound(path); o.overLimit != "" {
		return
	}
	switch n.Kind {
	case unstable.InlineTable:
		for pairs := n.Children(); pairs.Next(); {
			o.keyValue(path, pairs.Node())
		}
	case unstable.Array:
		i := 0
		for elements := n.Children(); elements.Next(); i++ {
			child := elements.Node()
			below := append(slices.Clone(path), element(i))
			if child.Kind != unstable.Array { // which has no place of its own
				o.note(below, int(child.Raw.Offset))
			}
			o.value(below, child)
		}
	}
}

// reason turns the decoder's message into one of ours, which can't hold a word of the document.
func reason(message string) string {
	for _, known := range [][2]string{
		{"expected newline", "expected the end of the line"},
		{"invalid character at start of key", "a key can't begin like this"},
		{"expected keyword", "expected a value; strings must be quoted"},
		{"expected key", "expected a key"},
		{"expected '=' after key", "expected = after the key"},
		{"expected ']", "expected ] after the table's name"},
		{"expected value", "expected a value"},
		{"unexpected character", "expected a value; strings must be quoted"},
		{"strings must be quoted", "expected a value; strings must be quoted"},
		{"array is incomplete", "the array is not closed"},
		{"inline table is incomplete", "the inline table is not closed"},
		{"expected ',' or ']'", "expected , or ] after the array's element"},
		{"expected ',' or '}'", "expected , or } after the inline table's value"},
		{"unexpected comma", "one comma too many"},
		{"unterminated", "the string is not closed"},
		{"multiline basic string not terminated", "the string is not closed"},
		{"multiline literal string not terminated", "the string is not closed"},
		{"too many quotes", "too many quotes at the end of the string"},
		{"basic strings cannot have new lines", "the string is not closed on its line"},
		{"literal strings cannot have new lines", "the string is not closed on its line"},
		{"invalid escape character", "no such escape in a string"},
		{"unicode escape", "a wrong \\u escape"},
		{"escape sequence", "a wrong \\u escape"},
		{"invalid hexadecimal digit", "a wrong \\u escape"},
		{"need a character after", "a \\ with nothing behind it"},
		{"decimal number is too large", "the integer doesn't fit into 64 bits"},
		{"hexadecimal number is too large", "the integer doesn't fit into 64 bits"},
		{"octal number is too large", "the integer doesn't fit into 64 bits"},
		{"binary number is too large", "the integer doesn't fit into 64 bits"},
		{"unable to parse float", "the float doesn't fit into 64 bits"},
		{"integers cannot have leading zeroes", "a number can't begin with 0"},
		{"basic strings cannot have control", "a control character; write it as an escape"},
		{"literal strings cannot have control", "a control character; write it as an escape"},
		{"multiline basic strings cannot have control", "a control character; write it as an escape"},
		{"multiline literal strings cannot have control", "a control character; write it as an escape"},
		{"control characters are not allowed", "a control character"},
		{"arrays and inline tables are nested", "nested too deep"},
		{"dates are expected", "no such date"},
		{"impossible date", "no such date"},
		{"times are expected", "no such time"},
		{"local datetimes are expected", "no such time"},
		{"invalid date-time timezone", "no such time zone"},
		{"invalid timezone", "no such time zone"},
		{"hour cannot be", "no such time"},
		{"minutes cannot be", "no such time"},
		{"seconds cannot be", "no such time"},
		{"key ", "defined twice, or as two different things"},
		{"table ", "defined twice, or as two different things"},
	} {
		if strings.HasPrefix(message, known[0]) {
			return known[1]
		}
	}
	return "not a value"
}
