package config

import (
	"cmp"
	"fmt"
	"strings"

	"tee-launcher/pkg/exit"
)

// Problem is one mistake in the user config and its place. Columns count bytes, from 1; Line 0 is no place in the file.
type Problem struct {
	File         string
	Line, Column int
	Message      string
	Answer       string // what to write instead, where that is known; lines to be copied
}

func (p Problem) String() string {
	if p.Answer != "" {
		return p.line() + "\n\n" + p.Answer
	}
	return p.line()
}

func (p Problem) line() string {
	if p.Line == 0 {
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
}

func (p Problem) compare(q Problem) int {
	return cmp.Or(cmp.Compare(p.Line, q.Line), cmp.Compare(p.Column, q.Column))
}

// Warning is something in the user config that works, but should be changed, and its place.
type Warning Problem

func (w Warning) String() string { return Problem(w).String() }

// Problems is the error of this package: every mistake there is, in the order of the file.
type Problems []Problem

// maxShown keeps a thoroughly broken file from filling the log.
const maxShown = 50

func (p Problems) Error() string {
	text := strings.Join(p.Reasons(), "\n")
	if answer := p.Attachment(); answer != "" {
		text += "\n\n" + answer
	}
	return text
}

// Reasons returns the problems, a line each.
func (p Problems) Reasons() []string {
	lines := make([]string, 0, min(len(p), maxShown)+1)
	for i, problem := range p {
		if i == maxShown {
			return append(lines, fmt.Sprintf("and %d more", len(p)-maxShown))
		}
		lines = append(lines, problem.line())
	}
	return lines
}

// Attachment returns what to write instead of a file in an old form.
func (p Problems) Attachment() string {
	for _, problem := range p {
		if problem.Answer != "" {
			return problem.Answer
		}
	}
	return ""
}

// ExitCode says that the file has to be corrected.
func (p Problems) ExitCode() exit.Code { return exit.Config }

// Hints says how to check the correction.
func (p Problems) Hints() []string {
	return []string{"correct the user config; `launcher verify` names every problem in it and starts nothing"}
}
