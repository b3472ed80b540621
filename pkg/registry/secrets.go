package registry

import (
	"encoding/base64"
	"html"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"tee-launcher/pkg/digest"
)

// secrets are what was sent as such. Whoever was sent them may repeat them, in a form of his own.
type secrets struct {
	mu    sync.Mutex
	known map[string]bool
}

func (s *secrets) add(values ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, value := range values {
		if value != "" && !s.known[value] {
			if s.known == nil {
				s.known = map[string]bool{}
			}
			s.known[value] = true
		}
	}
}

// forms returns what to look for of secrets of at least that length: each, and its base64.
func (s *secrets) forms(length int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var forms []string
	for value := range s.known {
		if len(value) < length {
			continue
		}
		forms = append(forms, value, base64.RawStdEncoding.EncodeToString([]byte(value)),
			base64.RawURLEncoding.EncodeToString([]byte(value)))
		if unpadded := strings.TrimRight(value, "="); unpadded != "" {
			forms = append(forms, unpadded)
		}
	}
	return forms
}

// hide takes secrets out of a text from outside, in whatever case and however they are escaped
// there: with percent signs, backslashes or ampersands.
func (s *secrets) hide(text string) string {
	forms := s.forms(0)
	var b strings.Builder
	for i := 0; i < len(text); {
		n := longest(text[i:], forms)
		if n == 0 {
			b.WriteByte(text[i])
			i++
			continue
		}
		b.WriteString("…")
		i += n
	}
	return b.String()
}

// in reports whether one that is too long to be there by chance is in data.
func (s *secrets) in(data []byte) bool {
	const telling = 12
	forms := s.forms(telling)
	for text := string(data); text != "" && len(forms) > 0; text = text[1:] {
		if longest(text, forms) > 0 {
			return true
		}
	}
	return false
}

// longest returns the length of the longest of forms that text begins with.
func longest(text string, forms []string) int {
	n := 0
	for _, form := range forms {
		if len(text) >= len(form) && strings.EqualFold(text[:len(form)], form) {
			n = max(n, len(form))
		}
		n = max(n, escaped(text, form))
	}
	return n
}

// escaped returns how much of text spells form with escapes, 0 if it doesn't begin with it.
func escaped(text, form string) int {
	n := 0
	for form != "" && n < len(text) {
		if meant, length := unescape(text[n:]); length > 0 && strings.HasPrefix(form, meant) {
			n, form = n+length, form[len(meant):]
		} else if strings.EqualFold(text[n:n+1], form[:1]) {
			n, form = n+1, form[1:]
		} else {
			return 0
		}
	}
	if form != "" {
		return 0
	}
	return n
}

// unescape returns what the escape means that text begins with, and its length, 0 if there is none.
func unescape(text string) (meant string, length int) {
	hex := func(begin, digits int) (uint64, bool) {
		if len(text) < begin+digits {
			return 0, false
		}
		value, err := strconv.ParseUint(text[begin:begin+digits], 16, 32)
		return value, err == nil
	}
	switch text[0] {
	case '+':
		return " ", 1
	case '%':
		if b, ok := hex(1, 2); ok {
			return string([]byte{byte(b)}), 3
		}
	case '&':
		if end := strings.IndexByte(text[:min(len(text), 10)], ';'); end > 0 {
			return html.UnescapeString(text[:end+1]), end + 1
		}
	case '\\':
		if len(text) == 1 {
			return "", 0
		}
		if r, ok := hex(2, 4); ok && text[1] == 'u' {
			return string(rune(r)), 6
		}
		if b, ok := hex(2, 2); ok && text[1] == 'x' {
			return string([]byte{byte(b)}), 4
		}
		return text[1:2], 2
	}
	return "", 0
}

// sentIn returns the secrets that a request carries: of its credentials, of the proxy on its way,
// and of a URL that somebody signed.
func sentIn(request *http.Request, form url.Values) []string {
	var sent []string
	_, value, _ := strings.Cut(request.Header.Get("Authorization"), " ")
	_, password, _ := request.BasicAuth()
	sent = append(sent, value, password, form.Get("refresh_token"), form.Get("password"))
	proxy, err := http.ProxyFromEnvironment(request)
	if err == nil && proxy != nil && proxy.User != nil {
		password, _ := proxy.User.Password()
		sent = append(sent, password, proxy.User.Username()+":"+password)
	}
	if redirectedFrom(request) == nil {
		return sent
	}
	const short = 16 // as no signature is
	for name, values := range request.URL.Query() {
		for _, value := range values {
			_, err := digest.Parse(value)
			if len(value) >= short && err != nil && name != "scope" && name != "service" && name != "ns" {
				sent = append(sent, value)
			}
		}
	}
	return sent
}
