package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/sanitize"
)

// class says how many attempts a failed one deserves.
type class int

const (
	transient class = iota // outages: quick attempts, then rounds
	permanent              // answers that rarely change: three attempts
	refusal                // answers that a push or a login changes: three attempts, then rounds
	lie                    // bytes that are not what was asked for: three attempts
	final                  // what no other attempt can change: none
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
	strange bool // it holds no error document, although a body was asked for

	whole  bool       // a whole document or layer was another one
	moved  bool       // no attempt was made: another part of the layer went elsewhere
	from   upstream   // whose attempt it was
	others []*failure // those of the other sources in the same pass
}

func (f *failure) error() error {
	if f.err != nil {
		return f.err
	}
	return fmt.Errorf("%d %s", f.status, http.StatusText(f.status))
}

// networkFailure says why a request got no answer.
func (s *remote) networkFailure(host string, err error) *failure {
	f := &failure{class: transient, host: host, err: err}
	f.hints = networkHints(s.guard.shown(host), err, s.Tuning.Now())
	if unchanging(err) {
		f.class = final
	}
	return f
}

// unchanging reports whether err is one of those that waiting can't change, but whoever set
// something up wrongly.
func unchanging(err error) bool {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		proxy    *proxyError
	)
	return errors.As(err, &unknown) || errors.As(err, &hostname) || speaksPlain(err) ||
		errors.As(err, &proxy) && proxy.status == http.StatusProxyAuthRequired
}

// speaksPlain reports whether err came of a server that answered to https with plain http.
func speaksPlain(err error) bool {
	var record tls.RecordHeaderError
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &record)
}

// proxyError is a proxy that let no connection through.
type proxyError struct{ status int }

func (e *proxyError) Error() string {
	return fmt.Sprintf("the proxy answers %d %s", e.status, http.StatusText(e.status))
}

func networkHints(host string, err error, now time.Time) []string {
	var (
		invalid  x509.CertificateInvalidError
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		dns      *net.DNSError
		op       *net.OpError
		proxy    *proxyError
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
		return []string{"another server answered under this name: check DNS and proxies"}
	case errors.As(err, &proxy) && proxy.status == http.StatusProxyAuthRequired:
		return []string{"the proxy wants a login: put it into the URL in " + proxyVariable("https")}
	case errors.As(err, &proxy), errors.As(err, &op) && op.Op == "proxyconnect":
		return []string{"the proxy in " + proxyVariable("https") + " doesn't connect to " + host +
			": check it, or name the host in NO_PROXY"}
	case speaksPlain(err):
		return []string{host + " speaks plain http: if it may, allow that with --insecure-registry " + host}
	case errors.As(err, &dns):
		return []string{"the name can't be resolved: check the registry's name, DNS and the network"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return []string{"nothing listens at " + host + ": check whether the registry is up, and the port"}
	case errors.Is(err, errNoHeader):
		return []string{"check the network and firewalls on the way to " + host}
	}
	return nil
}

// proxyVariables are the variables that name the proxy for a scheme, the first one wins.
func proxyVariables(scheme string) []string {
	if scheme == "http" {
		return []string{"HTTP_PROXY", "http_proxy"}
	}
	return []string{"HTTPS_PROXY", "https_proxy"}
}

// proxyVariable is the one that is set.
func proxyVariable(scheme string) string {
	names := proxyVariables(scheme)
	for _, name := range names {
		if os.Getenv(name) != "" {
			return name
		}
	}
	return names[0]
}

// wrongProxy returns the name of a variable that should name a proxy but holds no URL: Go goes
// without one then, or makes another of it, and says nothing. Its value may hold a password.
func wrongProxy() string {
	for _, scheme := range []string{"https", "http"} {
		name := proxyVariable(scheme)
		value := os.Getenv(name)
		if !strings.Contains(value, "://") {
			value = "http://" + value // as Go reads it
		}
		if _, err := url.Parse(value); err != nil {
			return name
		}
	}
	return ""
}

// failed makes the error of the last failure.
func (s *remote) failed(part string, t *tries, f *failure) *image.Error {
	e := &image.Error{
		Ref: s.ref.String(), Part: part, Host: s.guard.shown(f.host), Status: f.status, Attempts: t.total,
		Answered: s.at.answered.Load(),
		Code:     f.code, Message: f.message, Err: s.guard.redactError(f.err), Help: f.hints,
	}
	if f.status != 0 {
		e.Answer = strings.TrimSpace(fmt.Sprintf("%d %s", f.status, http.StatusText(f.status)))
	}
	switch f.class {
	case transient:
		e.Kind = image.Unavailable
	case permanent, refusal:
		e.Kind = image.Refused
	case final:
		e.Kind = image.Unavailable
		if errors.Is(f.err, image.ErrTooLarge) {
			e.Kind = image.Refused
		}
	case lie:
		e.Kind = image.Mismatch
		e.Help = slices.Concat(f.hints, []string{
			"what arrives is not what was approved: suspect the registry, a mirror or a proxy on the way"})
	}
	e.Help = slices.Concat(e.Help, s.statusHints(part, f))
	return e
}

// ownHint says where the user config has credentials for the registry.
func (s *remote) ownHint() string {
	return fmt.Sprintf("on a node, credentials are those in [launcher_config.registry_auth.%q] of the user config: "+
		"a robot's that can only read, because host and workload can read that file", s.host())
}

func (s *remote) statusHints(part string, f *failure) []string {
	host := s.guard.shown(f.host)
	switch {
	case f.status == 0:
		return nil
	case f.token && f.status == http.StatusNotFound:
		return []string{fmt.Sprintf("the registry names %s as its token server, but it has none there", host)}
	case !f.token && f.host != s.host() && f.status < 500:
		return []string{fmt.Sprintf("the registry redirects to %s for this; no credentials are sent there", host)}
	}
	switch f.status {
	case http.StatusUnauthorized:
		logIn := "such as with `docker login " + s.host() + "`"
		switch {
		case s.login.own():
			return []string{"the registry refuses the credentials of " + s.login.explanation() +
				": check what they are and that they haven't expired", s.ownHint()}
		case s.login.credentialSource() != anonymous:
			return []string{"the registry refuses the credentials of " + s.login.explanation() +
				": correct them, " + logIn, s.ownHint()}
		}
		return []string{"log in to the registry, " + logIn + "; credentials: " + s.login.explanation(), s.ownHint()}
	case http.StatusForbidden:
		if s.login.credentialSource() == anonymous {
			return []string{"ask whoever runs " + s.host() + " for access, or for an account there to log in with; " +
				"credentials: " + s.login.explanation()}
		}
		return []string{"log in to the registry as somebody who may read this repository; credentials: " +
			s.login.explanation()}
	case http.StatusNotFound:
		if part != image.PartManifest {
			return []string{"the registry has the image's manifest, and not this part of it: push the image again"}
		}
		hints := []string{"check the repository's name, and that this tag or digest was pushed there; " +
			"for a private repository this may also mean " +
			"missing credentials (" + s.login.explanation() + ")"}
		if f.strange {
			hints = append(hints, "is it a registry that listens at "+host+"? It doesn't answer as one")
		}
		return hints
	case http.StatusProxyAuthRequired:
		return []string{"the proxy wants a login: put it into the URL in " + proxyVariable("http")}
	case http.StatusInternalServerError:
		return []string{host + " is broken: try again later, and tell whoever runs it"}
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return []string{host + " is overloaded or down, or a proxy before it can't reach it: try again later"}
	case http.StatusTooManyRequests:
		return []string{"the registry limits the rate: wait, or log in for a higher limit"}
	}
	return nil
}

// rejected reads an answer that isn't the one hoped for, and closes it.
func (s *remote) rejected(a *answer) *failure {
	defer a.Close()
	f := &failure{
		class: transient, host: a.host, status: a.StatusCode,
		after: retryAfter(a.Header.Get("Retry-After"), s.Tuning.Now()),
	}
	switch {
	case a.StatusCode < 400:
		f.err = errors.New("this answer makes no sense here")
	case a.StatusCode < 500:
		switch a.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
			http.StatusMisdirectedRequest:
		case http.StatusProxyAuthRequired:
			f.class = final
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
			http.StatusMethodNotAllowed, http.StatusGone, http.StatusUnavailableForLegalReasons:
			f.class = refusal
		default:
			f.class = permanent
		}
	}
	f.code, f.message = s.said(a)
	f.strange = f.code == "" && f.message == "" && a.Request.Method == http.MethodGet
	return f
}

// storeMessage is where stores that speak XML say why.
var storeMessage = regexp.MustCompile(`(?s)^\s*<(?:\?xml|Error).*<Message>([^<]*)</Message>`)

// said returns what the registry's error document says, if there is one.
func (s *remote) said(a *answer) (code, message string) {
	const limit = 16 << 10
	data, err := io.ReadAll(io.LimitReader(a, limit))
	if err != nil {
		return "", ""
	}
	var document struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // token servers
	}
	// Whatever can't be read has nothing to say: a proxy's page is no message.
	_ = json.Unmarshal(data, &document)
	if len(document.Errors) == 0 {
		text := document.Details
		if found := storeMessage.FindSubmatch(data); found != nil {
			text = string(found[1])
		}
		return "", sanitize.Line(s.guard.redact(text), 200)
	}
	code = sanitize.Line(s.guard.redact(document.Errors[0].Code), 40)
	message = sanitize.Line(s.guard.redact(document.Errors[0].Message), 200)
	if strings.EqualFold(code, message) {
		message = ""
	}
	return code, message
}
