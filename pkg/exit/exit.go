// Package exit is the one table of exit codes and the way from an error to its code and hints.
//
// A package's typed errors say by their methods which code they end in and what helps; nobody looks at an error's
// text. An error that says nothing is a bug in this program and ends in Internal.
package exit

import (
	"errors"
	"strings"
)

// Code is an exit code of the process.
type Code int

// The codes, as the contract numbers them.
const (
	OK          Code = 0
	Internal    Code = 1
	Usage       Code = 2
	Config      Code = 3
	Unavailable Code = 4
	Refused     Code = 5
	Mismatch    Code = 6
	Engine      Code = 7
	Measurement Code = 8
	Workload    Code = 9
	Busy        Code = 10
	Interrupted Code = 130
	Terminated  Code = 143
)

// Class describes one code for help texts and documents.
type Class struct {
	Code    Code
	Name    string
	Meaning string
	Helps   string // what an operator can do; may be empty
}

// Classes returns every code in ascending order.
func Classes() []Class {
	return []Class{
		{OK, "ok", "running, and measured in TEE mode (`verify`: `run` would succeed)", ""},
		{Internal, "internal", "a bug", "report it"},
		{Usage, "usage", "bad flag or environment variable", "fix the compose file"},
		{Config, "config", "user config or approved list unreadable or invalid; override not approved; reserved key; one of the launcher's own files can't be written", "fix the file"},
		{Unavailable, "unavailable", "registry or network, after all retries: time-outs, 5xx, 429, connection and TLS faults", "try again later"},
		{Refused, "refused", "permanent answer of the registry: 401, 403, 404, no such platform; an image in a form that can't be used", "fix access or the reference"},
		{Mismatch, "mismatch", "bytes that aren't what the digest says, or an image that contradicts itself", "suspect the source; a launcher that supervises asks again"},
		{Engine, "engine", "Docker daemon unreachable, out of disk, load failed or not proved", "fix the host"},
		{Measurement, "measurement", "agent unreachable or unable, another digest already measured, log unreadable or not replaying, another container holds the agent's socket", "usually: reboot the CVM"},
		{Workload, "workload", "compose missing or failed, container not running", "look at the workload's logs"},
		{Busy, "busy", "another launcher is at work here", "wait, or stop it"},
		{Interrupted, "interrupted", "SIGINT before the workload ran", ""},
		{Terminated, "terminated", "SIGTERM before the workload ran", ""},
	}
}

// Name returns the code's name, for programs that read it.
func (c Code) Name() string {
	for _, class := range Classes() {
		if class.Code == c {
			return class.Name
		}
	}
	return ""
}

// Coder is what a typed error implements to choose its exit code.
type Coder interface {
	error
	ExitCode() Code
}

// Hinter is what a typed error implements where something can be done about it: one line for each hint.
type Hinter interface {
	error
	Hints() []string
}

// Teller is what an error implements that isn't told in one line.
type Teller interface {
	error
	Reasons() []string  // a line each
	Attachment() string // lines to be copied; may be empty
}

// Tell returns the lines in which an error is told, and what there is to copy. Only an error's type
// makes several lines of it: a line break in its text may come from outside.
func Tell(err error) (reasons []string, attachment string) {
	// told is the error that has several reasons. What stands around its text goes with the first
	// and the last of them.
	var told error
	var several Teller
	if errors.As(err, &several) {
		told, reasons, attachment = several, several.Reasons(), several.Attachment()
	}
	for e := err; e != nil && told == nil; e = errors.Unwrap(e) {
		joined, ok := e.(interface{ Unwrap() []error })
		if !ok || errors.Join(joined.Unwrap()...).Error() != e.Error() {
			continue
		}
		told = e
		for _, part := range joined.Unwrap() {
			lines, _ := Tell(part)
			reasons = append(reasons, lines...)
		}
	}
	if told == nil || len(reasons) == 0 {
		return []string{err.Error()}, ""
	}
	before, after, ok := strings.Cut(err.Error(), told.Error())
	if !ok {
		return []string{err.Error()}, "" // it was reworded on its way
	}
	reasons[0] = before + reasons[0]
	reasons[len(reasons)-1] += after
	return reasons, attachment
}

// Of returns the code of the outermost error in err's chain that chooses one: OK for nil, Internal where none does.
func Of(err error) Code {
	if err == nil {
		return OK
	}
	var c Coder
	if errors.As(err, &c) {
		return c.ExitCode()
	}
	return Internal
}

// Hints returns the hints of the outermost error in err's chain that has any.
func Hints(err error) []string {
	var h Hinter
	if errors.As(err, &h) {
		return h.Hints()
	}
	return nil
}

// Error gives an error a code and hints where no other package's typed error fits.
type Error struct {
	Code Code
	Err  error
	Hint []string
}

func (e *Error) Error() string   { return e.Err.Error() }
func (e *Error) Unwrap() error   { return e.Err }
func (e *Error) ExitCode() Code  { return e.Code }
func (e *Error) Hints() []string { return e.Hint }
