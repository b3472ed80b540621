package launchtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// logIn says whether a request may pass, and what is answered if not.
func (r *Registry) logIn(q *http.Request) (reply, bool) {
	var challenge string
	switch r.o.Auth {
	case RegistryOpen:
		if q.Header.Get("Authorization") != "" {
			r.odd(q, "credentials that nobody asked for")
		}
		return reply{}, true
	case RegistryBasic:
		if user, password, ok := q.BasicAuth(); ok && r.known(user, password) {
			return reply{}, true
		}
		challenge = `Basic realm="test registry"`
	case RegistryBearer:
		token, ok := strings.CutPrefix(q.Header.Get("Authorization"), "Bearer ")
		r.mu.Lock()
		end, known := r.tokens[token]
		r.mu.Unlock()
		if ok && known && time.Now().Before(end) {
			return reply{}, true
		}
		challenge = fmt.Sprintf(`Bearer realm=%q,service="test registry"`, r.realm())
		if _, repository, _ := strings.Cut(q.URL.Path, "/v2/"); repository != "" {
			elements := strings.Split(repository, "/")
			challenge += fmt.Sprintf(`,scope="repository:%s:pull"`, strings.Join(elements[:len(elements)-2], "/"))
		}
		if ok {
			challenge += `,error="invalid_token"`
		}
	}
	a := errorReply(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	a.header.Set("WWW-Authenticate", challenge)
	return a, false
}

func (r *Registry) realm() string {
	if r.o.Realm != "" {
		return r.o.Realm
	}
	if r.o.TLS {
		return "https://" + r.address + "/token"
	}
	return "http://" + r.address + "/token"
}

func (r *Registry) known(user, password string) bool {
	return r.o.Username != "" && user == r.o.Username && password == r.o.Password
}

// token is the token server.
func (r *Registry) token(q *http.Request) reply {
	granted := r.o.Public && q.Header.Get("Authorization") == ""
	var refresh string
	switch q.Method {
	case http.MethodPost:
		identity := q.FormValue("refresh_token")
		granted = r.o.IdentityToken != "" && identity == r.o.IdentityToken && q.FormValue("grant_type") == "refresh_token"
		refresh = identity
	case http.MethodGet:
		if user, password, ok := q.BasicAuth(); ok {
			granted = r.known(user, password)
		}
	}
	if q.FormValue("scope") == "" || q.FormValue("service") == "" {
		r.odd(q, "no scope or service for a token")
	}
	if !granted {
		return errorReply(http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
	}
	r.mu.Lock()
	r.issued++
	token := fmt.Sprintf("token-%d", r.issued)
	r.tokens[token] = time.Now().Add(r.o.TokenLife)
	r.mu.Unlock()
	body := must(json.Marshal(map[string]any{
		"token": token, "expires_in": max(60, int(r.o.TokenLife/time.Second)), "refresh_token": refresh,
	}))
	return reply{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}}, body: body}
}
