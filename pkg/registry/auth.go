package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"tee-launcher/pkg/image"
)

// auth logs in to one repository, when it is asked to and only then. One exchange of a token takes place at a time.
type auth struct {
	s *Source

	turn chan struct{} // held by who speaks to the token server or the keychain

	mu         sync.Mutex
	challenge  *challenge // nil until the registry asked
	credential *credential
	token      string
	renew      time.Time
	exchanges  int      // attempts to get a token
	failed     *failure // of the last one
}

func newAuth(s *Source) *auth {
	return &auth{s: s, turn: make(chan struct{}, 1)}
}

// credentialSource says where the credentials in use came from.
func (a *auth) credentialSource() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.credential == nil {
		return anonymous
	}
	return a.credential.source
}

// explanation says for a hint what was used and, if that is nothing, where it was looked for.
func (a *auth) explanation() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.credential == nil:
		return "none were asked for"
	case a.credential.note != "":
		return a.credential.source + ", " + a.credential.note
	}
	return a.credential.source
}

// authorization returns the header for the next request to the registry; empty until it asked for one.
func (a *auth) authorization(ctx context.Context, t *tries) (string, *failure) {
	a.mu.Lock()
	c, token, valid, exchanges := a.challenge, a.token, a.s.Tuning.Now().Before(a.renew), a.exchanges
	a.mu.Unlock()
	switch {
	case c == nil:
		return "", nil
	case c.scheme == "basic":
		return a.basic(), nil
	case valid:
		return "Bearer " + token, nil
	}
	return a.exchange(ctx, t, exchanges)
}

func (a *auth) basic() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return basicHeader(a.credential)
}

func basicHeader(c *credential) string {
	if c == nil || c.username == "" && c.password == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.username+":"+c.password))
}

// challenged takes in that the registry answered 401 to a request with authorization used, and says whether a further
// request may do better.
func (a *auth) challenged(ctx context.Context, refused *answer, used string) (bool, *failure) {
	c := pick(parseChallenges(refused.Header.Values("WWW-Authenticate")))
	if c == nil {
		return false, nil
	}
	if f := a.lookUp(ctx, refused); f != nil {
		return false, f
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.challenge = c
	if c.scheme == "basic" {
		header := basicHeader(a.credential)
		return header != "" && header != used, nil
	}
	if used == "Bearer "+a.token {
		a.renew = time.Time{} // it expired earlier than it said, or isn't enough
	}
	return true, nil
}

// lookUp finds the credentials for the repository, once.
func (a *auth) lookUp(ctx context.Context, asked *answer) *failure {
	if err := a.take(ctx); err != nil {
		return &failure{err: err}
	}
	defer a.release()
	a.mu.Lock()
	known := a.credential != nil
	a.mu.Unlock()
	if known {
		return nil
	}
	var c *credential
	if asked.url.Scheme == "https" || isLoopback(asked.url.Host) {
		c = a.s.findCredential(ctx)
	} else {
		c = &credential{source: anonymous, note: "because credentials are not sent over plain http"}
	}
	if ctx.Err() != nil {
		return &failure{err: context.Cause(ctx)}
	}
	a.s.Log.Info("the registry asks for credentials", "host", a.s.host(), "credentials", c.source, "note", c.note)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.credential = c
	return nil
}

func (a *auth) take(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *auth) release() { <-a.turn }

// exchange gets a token, or the one that somebody else got in the meantime. seen is the count of exchanges that the
// caller knew: who waited while one failed has the same failure, instead of asking a broken token server in turn.
func (a *auth) exchange(ctx context.Context, t *tries, seen int) (string, *failure) {
	if err := a.take(ctx); err != nil {
		return "", &failure{err: err}
	}
	defer a.release()
	a.mu.Lock()
	c, credential, token, valid := a.challenge, a.credential, a.token, a.s.Tuning.Now().Before(a.renew)
	failed, others := a.failed, a.exchanges != seen
	a.mu.Unlock()
	if valid {
		return "Bearer " + token, nil
	}
	if others && failed != nil {
		return "", failed
	}
	answer, f := a.fetchToken(ctx, t, c, credential)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.exchanges++
	a.failed = f
	if f != nil {
		return "", f
	}
	a.token = answer.token
	// In good time, so that no request is on its way when the token ends.
	a.renew = a.s.Tuning.Now().Add(answer.life - answer.life/4)
	if answer.refresh != "" && credential.identity != "" {
		renewed := *credential
		renewed.identity = answer.refresh
		a.credential = &renewed
	}
	return "Bearer " + answer.token, nil
}

type tokenAnswer struct {
	token   string
	refresh string
	life    time.Duration
}

// fetchToken asks the token server that the registry named.
func (a *auth) fetchToken(ctx context.Context, t *tries, c *challenge, credential *credential) (*tokenAnswer, *failure) {
	if credential.registryToken != "" {
		return &tokenAnswer{token: credential.registryToken, life: time.Hour}, nil
	}
	realm, err := a.realm(c.params["realm"])
	if err != nil {
		return nil, &failure{class: permanent, host: a.s.host(), err: err}
	}
	scope := c.params["scope"]
	if scope == "" {
		scope = "repository:" + a.s.ref.Context().RepositoryStr() + ":pull"
	}
	values := realm.Query()
	header := http.Header{}
	var answer *answer
	var f *failure
	if credential.identity != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {credential.identity}, "client_id": {"tee-launcher"},
			"service": {c.params["service"]}, "scope": {scope}}
		answer, f = a.s.send(ctx, t, http.MethodPost, realm, header, form)
	} else {
		if service := c.params["service"]; service != "" {
			values.Set("service", service)
		}
		values.Set("scope", scope)
		realm.RawQuery = values.Encode()
		if basic := basicHeader(credential); basic != "" {
			header.Set("Authorization", basic)
		}
		answer, f = a.s.send(ctx, t, http.MethodGet, realm, header, nil)
	}
	if f != nil {
		f.err = fmt.Errorf("token: %w", f.err)
		return nil, f
	}
	if answer.StatusCode != http.StatusOK {
		f := a.s.rejected(answer)
		f.err = errors.New("the token server refused")
		return nil, f
	}
	defer answer.Close()
	got, err := readToken(answer)
	if err != nil {
		return nil, &failure{host: answer.host, err: fmt.Errorf("token: %w", err)}
	}
	return got, nil
}

// realm returns the URL of the token server if credentials may go there: https, or a loopback host that a registry on
// a loopback host names.
func (a *auth) realm(value string) (*url.URL, error) {
	realm, err := url.Parse(value)
	if err != nil || realm.Host == "" || realm.User != nil {
		return nil, errors.New("the registry names no usable token server")
	}
	local := isLoopback(a.s.host())
	switch {
	case isLoopback(realm.Host) && !local:
		return nil, errors.New("the registry names a token server on this machine, which isn't asked")
	case realm.Scheme == "https", realm.Scheme == "http" && local && isLoopback(realm.Host):
		return realm, nil
	case realm.Scheme == "http" && a.s.plainAllowed(a.s.host()) && a.s.plainAllowed(realm.Host):
		// The operator allowed it; there are no credentials on a plain connection, only the token of anybody.
		return realm, nil
	}
	return nil, fmt.Errorf("the registry names a token server that isn't https: %s", image.Clean(realm.Host, 100))
}

const maxToken = 64 << 10

// readToken reads a token server's answer.
func readToken(r io.Reader) (*tokenAnswer, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxToken+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxToken {
		return nil, fmt.Errorf("answer of more than %d bytes", maxToken)
	}
	var document struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		Refresh     string  `json:"refresh_token"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		// Without the bytes: they may hold half a token.
		return nil, errors.New("the answer is not the JSON of a token")
	}
	token := document.Token
	if token == "" {
		token = document.AccessToken
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("there is no token in the answer")
	}
	// The protocol's default where nothing is said, and no belief in tokens that last for ever.
	seconds := min(document.ExpiresIn, 24*60*60)
	if seconds <= 0 {
		seconds = 60
	}
	return &tokenAnswer{token: token, refresh: document.Refresh, life: time.Duration(seconds * float64(time.Second))}, nil
}

// challenge is one way to log in that a registry offers.
type challenge struct {
	scheme string            // in lower case
	params map[string]string // by lower-case name
}

// pick returns the challenge that can be met best, nil if there is none.
func pick(challenges []challenge) *challenge {
	for _, scheme := range []string{"bearer", "basic"} {
		for i := range challenges {
			if challenges[i].scheme == scheme {
				return &challenges[i]
			}
		}
	}
	return nil
}

// parseChallenges reads WWW-Authenticate headers (RFC 9110, 11.6.1) as far as they make sense. The first of two equal
// parameters counts.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, header := range headers {
		const enough = 8 << 10
		if len(header) > enough {
			continue
		}
		all = append(all, parseChallenge(header)...)
	}
	return all
}

func parseChallenge(rest string) []challenge {
	var all []challenge
	for {
		rest = strings.TrimLeft(rest, " \t,")
		word, after := cutToken(rest)
		if word == "" {
			return all
		}
		after = strings.TrimLeft(after, " \t")
		if value, isParam := strings.CutPrefix(after, "="); isParam {
			text, after, ok := cutValue(strings.TrimLeft(value, " \t"))
			if !ok || len(all) == 0 {
				return all
			}
			params := all[len(all)-1].params
			if name := strings.ToLower(word); params[name] == "" {
				params[name] = text
			}
			rest = after
			continue
		}
		all = append(all, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
		rest = after
	}
}

// cutToken cuts a token (RFC 9110, 5.6.2) off s.
func cutToken(s string) (token, rest string) {
	end := strings.IndexFunc(s, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
	if end < 0 {
		return s, ""
	}
	return s[:end], s[end:]
}

// cutValue cuts a token or quoted string off s.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			i++
			if i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
