package config

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Bounds on what the file may hold, far above what a real one does: with them, nothing in 1 MiB
// costs decoder or encoder more than 64 MiB and 2 s. The decoder keeps a node for each part of an
// expression, and its time grows with the square of the number of keys; the encoder repeats a
// table's whole path in each header. The original's parser gave up at a depth of 80.
const (
	maxMarks     = 80_000 // of what stands before a value or a part of a key: . = , [ {
	maxDepth     = 128
	maxKeys      = 10_000
	maxExpansion = 4 << 20 // bytes of all paths, each written out
	maxPorts     = 3_000   // as many as maxKeys leaves room for
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
	lines := make([]int, 1, 1+bytes.Count(data, []byte("\n")))
	s := &source{file: file, lines: lines, places: map[string]int{}}
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

// elementName is how the path of an array's element ends.
func elementName(i int) string { return fmt.Sprintf("#%d", i) }

// decode reads the document. It stops at the first thing that isn't TOML, because what follows can't be told then. The
// decoder's own messages are never shown: they quote the document.
func (s *source) decode(data []byte) map[string]any {
	if at := invalidUTF8(data); at >= 0 {
		s.problem(at, "not UTF-8")
		return nil
	}
	if at := tooManyMarks(data); at >= 0 {
		s.problem(at, "too many keys and values: more than %d of the characters . = , [ {", maxMarks)
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

// tooManyMarks returns where the document has more marks than nodes may be made for, or -1. It is
// no judge of syntax: what it misreads, the parser refuses there.
func tooManyMarks(data []byte) int {
	marks := 0
	for i := 0; i < len(data); i++ {
		switch c := data[i]; c {
		case '.', '=', ',', '[', '{':
			if marks++; marks > maxMarks {
				return i
			}
		case '#':
			i = endOf(data, i, "\n", false)
		case '"', '\'':
			quote := string(c)
			triple := strings.Repeat(quote, 3)
			if !bytes.HasPrefix(data[i:], []byte(triple)) {
				i = endOf(data, i+1, quote, c == '"')
				continue
			}
			i = endOf(data, i+3, triple, c == '"')
			for range 2 { // quotes that belong to the text
				if bytes.HasPrefix(data[min(i+1, len(data)):], []byte(quote)) {
					i++
				}
			}
		}
	}
	return -1
}

// endOf returns where the next end from i on has its last byte, or the length of data.
func endOf(data []byte, i int, end string, escapes bool) int {
	for ; i < len(data); i++ {
		switch {
		case data[i] == end[0] && bytes.HasPrefix(data[i:], []byte(end)):
			return i + len(end) - 1
		case escapes && data[i] == '\\':
			i++
		}
	}
	return len(data)
}

// outline walks the document's syntax before any value is decoded: it notes where the keys stand
// and refuses what would cost decoder or encoder out of all proportion.
func (s *source) outline(data []byte) bool {
	data = slices.Clip(data)
	var parser unstable.Parser
	parser.Reset(data)
	o := outliner{source: s, listed: map[string]int{}}
	for parser.NextExpression() {
		switch expression := parser.Expression(); expression.Kind {
		case unstable.Table:
			o.header = o.key(position{}, expression)
		case unstable.ArrayTable:
			array := o.key(position{}, expression)
			if array.isListed() {
				o.header = array.element(o.listed[array.names[1]])
				o.note(o.header, o.last)
				o.listed[array.names[1]]++
			} else {
				o.header = array.element(0)
			}
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
		s.problem(offset, "invalid TOML: %s%s", reason(message), otherFormat(data[offset:]))
		return false
	}
	return true
}

// position is where something stands in the document.
type position struct {
	names []string // of the first maxNoted levels
	depth int
	size  int // of the whole path
}

// maxNoted is the depth down to which places are ever asked for, that of a port's numbers.
const maxNoted = 4

// below returns where what has that name in p stands.
func (p position) below(name string) position {
	p.depth++
	p.size += len(name) + 1
	if p.depth <= maxNoted {
		p.names = append(slices.Clip(p.names), name)
	}
	return p
}

// isListed reports whether p is one of the arrays whose elements have places of their own.
func (p position) isListed() bool {
	return p.depth == 2 && p.names[0] == launcherTable && (p.names[1] == portsKey || p.names[1] == sourcesKey)
}

// element returns where the element i of the array p stands; where that is never asked for, it is
// enough how deep.
func (p position) element(i int) position {
	if p.isListed() {
		return p.below(elementName(i))
	}
	return p.below("")
}

func (s *source) note(p position, offset int) {
	if p.depth > 2 && p.names[0] != launcherTable || p.depth > maxNoted {
		return // nobody will ask for it
	}
	path := join(p.names)
	if _, ok := s.places[path]; !ok {
		s.places[path] = offset
	}
}

type outliner struct {
	*source
	header    position
	listed    map[string]int // tables of such an array so far
	last      int            // offset of the last key
	keys      int
	expansion int
	overLimit string // why to stop
}

func (o *outliner) key(prefix position, n *unstable.Node) position {
	for parts := n.Key(); parts.Next(); {
		part := parts.Node()
		o.last = int(part.Raw.Offset)
		prefix = prefix.below(string(part.Data))
		if o.count(prefix); !o.within(prefix) {
			break
		}
		o.note(prefix, o.last)
	}
	return prefix
}

// count counts what may become a header.
func (o *outliner) count(p position) {
	o.keys++
	o.expansion += p.size
}

// within reports whether the decoding is in proportion so far, and notes why not.
func (o *outliner) within(p position) bool {
	switch {
	case p.depth > maxDepth:
		o.overLimit = fmt.Sprintf("nested deeper than %d levels", maxDepth)
	case o.keys > maxKeys:
		o.overLimit = fmt.Sprintf("more than %d keys", maxKeys)
	case o.expansion > maxExpansion:
		o.overLimit = "too many keys for keys as long as these"
	}
	return o.overLimit == ""
}

func (o *outliner) keyValue(prefix position, n *unstable.Node) {
	path := o.key(prefix, n)
	o.value(path, n.Value())
}

func (o *outliner) value(path position, n *unstable.Node) {
	if n.Kind == unstable.InlineTable {
		o.count(path)
	}
	if !o.within(path) {
		return
	}
	switch n.Kind {
	case unstable.InlineTable:
		for pairs := n.Children(); pairs.Next() && o.overLimit == ""; {
			o.keyValue(path, pairs.Node())
		}
	case unstable.Array:
		i := 0
		for elements := n.Children(); elements.Next() && o.overLimit == ""; i++ {
			child := elements.Node()
			below := path.element(i)
			if path.isListed() && child.Kind != unstable.Array { // which has no place of its own
				o.note(below, int(child.Raw.Offset))
			}
			o.value(below, child)
		}
	}
}

// otherFormat asks whether the file is in the format that is usual elsewhere for what stands there.
func otherFormat(rest []byte) string {
	switch {
	case bytes.HasPrefix(rest, []byte(":")):
		return ", not a colon; is this YAML?"
	case bytes.HasPrefix(rest, []byte("{")):
		return "; is this JSON?"
	}
	return ""
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
