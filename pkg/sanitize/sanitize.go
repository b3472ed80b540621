// Package sanitize makes text from outside fit to be shown: what a registry, an engine, a
// certificate or a workload says could otherwise move a cursor, turn the direction of a line
// around, hide in it, or begin a line that passes for one of ours.
//
// It guarantees that what it returns is valid UTF-8 of at most the given length in which every
// character has a width of its own. It doesn't look for secrets.
package sanitize

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxLine is as long a line as any message needs, in characters.
const MaxLine = 8000

// Line makes one line of text: everything that can't be seen becomes a space, and several spaces
// become one. What is longer than limit is cut, and ends in "…".
func Line(text string, limit int) string {
	var line []rune
	space := false
	for _, r := range text { // r is U+FFFD in place of a byte that isn't UTF-8
		if r == ' ' || !visible(r) {
			space = len(line) > 0
			continue
		}
		if space {
			line = append(line, ' ')
		}
		space = false
		if line = append(line, r); len(line) > limit {
			return strings.TrimRight(string(line[:limit-1]), " ") + "…"
		}
	}
	return string(line)
}

// Lines is Line for each line of text, of which at most limit characters are looked at. Lines that
// say nothing are left out.
func Lines(text string, limit int) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if limit <= 0 {
			return append(lines, "…")
		}
		if line = Line(line, limit); line != "" {
			lines = append(lines, line)
		}
		limit -= utf8.RuneCountInString(line) + 1
	}
	return lines
}

// JSON escapes, in the text of a JSON document, what can't be seen. To a reader of JSON nothing
// changes.
func JSON(document []byte) []byte {
	const digits = "0123456789abcdef"
	escape := func(b []byte, u rune) []byte {
		return append(b, '\\', 'u', digits[u>>12], digits[u>>8&15], digits[u>>4&15], digits[u&15])
	}
	clean := make([]byte, 0, len(document))
	for _, r := range string(document) {
		switch {
		case r == '\n' || r == '\t' || visible(r):
			clean = utf8.AppendRune(clean, r)
		case r > 0xffff:
			clean = escape(clean, 0xd800+(r-0x10000)>>10)
			clean = escape(clean, 0xdc00+(r-0x10000)&0x3ff)
		default:
			clean = escape(clean, r)
		}
	}
	return clean
}

// visible reports whether a character takes up room on a line, in the direction in which it is
// read. Control and format characters, separators, and the marks that are made to be ignored don't.
func visible(r rune) bool {
	return unicode.IsPrint(r) &&
		!unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}
