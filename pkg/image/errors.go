package image

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/sanitize"
)

// Kind says how a pull failed, and so whether it is worth another try.
type Kind int

// The kinds of failure.
const (
	// Unavailable is a registry or network that didn't answer well within all attempts.
	Unavailable Kind = iota + 1
	// Refused is a permanent answer: no access, not there, no such platform, nothing this package may follow.
	Refused
	// Mismatch is an answer that isn't what the digest says.
	Mismatch
)

// String returns the kind's name in the table of exit codes.
func (k Kind) String() string {
	switch k {
	case Unavailable:
		return "unavailable"
	case Refused:
		return "refused"
	case Mismatch:
		return "mismatch"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Error is the end of a pull that failed. An interrupted one ends in the context's cause instead.
type Error struct {
	Kind     Kind
	Ref      string // the reference that was pulled
	Part     string // which document or layer; empty for all of it
	Host     string // who answered so, or didn't; empty where nobody was asked
	Status   int    // of the HTTP answer; 0 if there was none
	Attempts int    // of the request that failed
	Code     string // the registry's own code, such as MANIFEST_UNKNOWN
	Message  string // the registry's own words, trimmed
	Err      error  // what went wrong, where it isn't just the status

	// Restart is set for a layer that turned out damaged only after its first bytes had been handed out, while a new
	// Stream of the same Verified may end well: damage on the way is repaired so, at most twice for each Verified. A
	// registry that always lies is what Restart ends for.
	Restart bool

	hints []string
}

// Error returns the path from the reference to the cause, on one line.
func (e *Error) Error() string {
	var parts []string
	for _, part := range []string{e.Ref, e.Part} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	// The host is said where the reference doesn't say it, and once.
	if e.Host != "" && !strings.HasPrefix(e.Ref, e.Host+"/") {
		parts = append(parts, e.Host)
	}
	if e.Status != 0 {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))))
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	for _, part := range []string{e.Code, e.Message} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		parts = append(parts, "image is "+e.Kind.String())
	}
	text := strings.Join(parts, ": ")
	if e.Attempts > 1 {
		text += fmt.Sprintf(" (after %d attempts)", e.Attempts)
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the code the contract gives to this kind.
func (e *Error) ExitCode() exit.Code {
	switch e.Kind {
	case Unavailable:
		return exit.Unavailable
	case Refused:
		return exit.Refused
	case Mismatch:
		return exit.Mismatch
	}
	return exit.Internal
}

// Hints returns what an operator can do, one line each.
func (e *Error) Hints() []string { return e.hints }

// errNotVerified is what a zero Verified answers.
var errNotVerified = errors.New("not a verified image")

// class says how many attempts a failed one deserves.
type class int

const (
	transient class = iota // outages: quick attempts, then rounds
	permanent              // answers that rarely change: three attempts
	lie                    // bytes that are not what was asked for: three attempts
)

// failure is one attempt that failed.
type failure struct {
	class   class
	host    string
	status  int
	code    string
	message string
	after   time.Duration // Retry-After
	err     error
	hints   []string
}

func (f *failure) error() error {
	if f.err != nil {
		return f.err
	}
	return fmt.Errorf("%d %s", f.status, http.StatusText(f.status))
}

// networkFailure says why a request got no answer.
func networkFailure(host string, err error, now time.Time) *failure {
	return &failure{class: transient, host: host, err: err, hints: networkHints(err, now)}
}

func networkHints(err error, now time.Time) []string {
	var (
		invalid  x509.CertificateInvalidError
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		dns      *net.DNSError
	)
	clock := "the clock says " + now.UTC().Format(time.RFC3339) + ": set it if that is wrong, certificates depend on it"
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		return []string{fmt.Sprintf("%s (this certificate is valid from %s to %s)", clock,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))}
	case errors.As(err, &invalid):
		return []string{clock}
	case errors.As(err, &unknown):
		return []string{"the certificate's issuer isn't known here: SSL_CERT_FILE names a file with further ones"}
	case errors.As(err, &hostname):
		return []string{"somebody else answered under this name: look at DNS and proxies"}
	case errors.As(err, &dns):
		return []string{"the name can't be resolved: check the registry's name, DNS and the network"}
	}
	return nil
}

// clean makes one short printable line of what an untrusted server said.
func clean(s string, limit int) string { return sanitize.Line(s, limit) }
