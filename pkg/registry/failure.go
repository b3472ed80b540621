package registry

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

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
	token   bool // of the token server
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
