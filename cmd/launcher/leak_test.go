package main_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	main "tee-launcher/cmd/launcher"
	"tee-launcher/pkg/launchtest"
)

// canaries are secrets, one of each kind, none with a piece of another. A kind that is added here
// has to be planted by a way to log in, or by a failure.
var canaries = map[string]string{
	"password":          `p455 "w0rd"\%41/+&<é`,
	"identity token":    `1dentity "t0ken"\%42/+&<é`,
	"registry token":    "reg1stry.t0ken-/+==",
	"token answer":      "an5wer.t0ken-/+==",
	"signed URL":        "5ignature0f/the+store==",
	"proxy password":    `pr0xy "w0rd"\%43/+&<é`,
	"malformed config":  "c0nfig-that-is-none",
	"malformed value":   "v4riable-that-is-none",
	"words of a helper": "helper5-own-words",
	"node config value": "n0de-key-of-the-table",
	"own password":      `0wn "pa55word"\%44/+&<é`,
	"own token":         "0wn.regi5try-t0ken-/+==",
}

const robot = "robot" // whose password it is

// spellings are the ways in which a secret may come back.
var spellings = map[string]func(string) string{
	"plain":           func(s string) string { return s },
	"base64":          func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"base64 for URLs": func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
	"base64 with the user": func(s string) string {
		return base64.StdEncoding.EncodeToString([]byte(robot + ":" + s))
	},
	"form":         url.QueryEscape,
	"path":         url.PathEscape,
	"lower-case %": func(s string) string { return strings.ToLower(url.QueryEscape(s)) },
	"JSON": func(s string) string {
		text, _ := json.Marshal(s)
		return string(text[1 : len(text)-1])
	},
	"JSON of others": func(s string) string {
		return strings.ReplaceAll(strings.Trim(strconv.QuoteToASCII(s), `"`), "/", `\/`)
	},
	"HTML": html.EscapeString,
}

// loginWay is a way to log in, and the canary that goes there.
type loginWay struct {
	challenge string // the scheme
	config    string // of the entry in Docker's config
	canary    string
	own       string // of the entry in the user config: it is for https alone
}

var loginWays = map[string]loginWay{
	"basic":          {"Basic", `"auth":"` + spellings["base64 with the user"](canaries["password"]) + `"`, "password", ""},
	"token":          {"Bearer", `"auth":"` + spellings["base64 with the user"](canaries["password"]) + `"`, "password", ""},
	"identity token": {"Bearer", `"identitytoken":` + strconv.Quote(canaries["identity token"]), "identity token", ""},
	"registry token": {"Bearer", `"registrytoken":"` + canaries["registry token"] + `"`, "registry token", ""},
	"own password":   {"Bearer", "", "own password", "username = \"" + robot + "\"\npassword = '" + canaries["own password"] + "'"},
	"own basic":      {"Basic", "", "own password", "username = \"" + robot + "\"\npassword = '" + canaries["own password"] + "'"},
	"own token":      {"Bearer", "", "own token", "registry_token = '" + canaries["own token"] + "'"},
}

// parrot is a registry, its token server and its store, which repeat what they were sent.
type parrot struct {
	*httptest.Server
	way      loginWay
	spelling func(string) string
	at       string // what fails: "token", "manifest", "blob", "store"
	fails    func(p *parrot, w http.ResponseWriter, words string)
	proxy    http.Handler // the registry behind it

	mu   sync.Mutex
	sent []string // secrets
	hits int
}

// words are what the parrot was sent, as it says them.
func (p *parrot) words(q *http.Request) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hits++
	_, raw, _ := strings.Cut(q.Header.Get("Authorization"), " ")
	words := []string{"you said", raw}
	for _, secret := range p.sent {
		words = append(words, p.spelling(secret))
	}
	return strings.Join(words, " ")
}

// listen takes in which canaries a request brings.
func (p *parrot) listen(q *http.Request, body []byte) {
	form, _ := url.ParseQuery(string(body))
	_, password, _ := q.BasicAuth()
	heard := []string{
		password, form.Get("refresh_token"), form.Get("password"), strings.TrimPrefix(q.Header.Get("Authorization"), "Bearer "),
		q.URL.Query().Get("X-Amz-Signature"),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, secret := range canaries {
		if slices.Contains(heard, secret) && !slices.Contains(p.sent, secret) {
			p.sent = append(p.sent, secret)
		}
	}
}

func (p *parrot) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, _ := io.ReadAll(q.Body)
	p.listen(q, body)
	where := "token"
	switch {
	case strings.Contains(q.URL.Path, "/manifests/"):
		where = "manifest"
	case strings.Contains(q.URL.Path, "/blobs/"):
		where = "blob"
	case strings.HasPrefix(q.URL.Path, "/store"):
		where = "store"
	case q.URL.Path == "/v2/":
		where = "ping"
	}
	scheme, _, _ := strings.Cut(q.Header.Get("Authorization"), " ")
	known := scheme == p.way.challenge || where == "token" || where == "store"
	switch {
	case known && where == p.at:
		p.fails(p, w, p.words(q))
	case where == "token":
		fmt.Fprintf(w, `{"token":%q}`, canaries["token answer"])
	case !known:
		w.Header().Set("WWW-Authenticate", p.way.challenge+` realm="`+p.URL+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	case where == "blob" && p.at == "store":
		http.Redirect(w, q, "/store?X-Amz-Signature="+url.QueryEscape(canaries["signed URL"]), http.StatusTemporaryRedirect)
	default:
		q.Header.Del("Authorization")
		p.proxy.ServeHTTP(w, q)
	}
}

// raw answers with bytes that needn't be HTTP.
func raw(w http.ResponseWriter, text string) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_, _ = io.WriteString(c, text)
	_ = c.Close()
}

// oneLine keeps an answer's line an answer's line.
func oneLine(text string) string { return strings.NewReplacer("\r", "", "\n", "").Replace(text) }

// failures are the classes of failure, and where each strikes.
var failures = map[string]struct {
	at    []string
	fails func(p *parrot, w http.ResponseWriter, words string)
}{
	"refused": {[]string{"token", "manifest", "blob", "store"}, func(_ *parrot, w http.ResponseWriter, words string) {
		refuse(w, http.StatusForbidden, map[string]any{
			"errors": []any{map[string]any{"code": words, "message": words, "detail": words}},
		})
	}},
	"refused in a token server's way": {[]string{"token"}, func(_ *parrot, w http.ResponseWriter, words string) {
		refuse(w, http.StatusUnauthorized, map[string]any{"details": words, "error": words, "error_description": words})
	}},
	"refused in a store's way": {[]string{"store"}, func(_ *parrot, w http.ResponseWriter, words string) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "<Error><Code>X</Code><Message>%s</Message></Error>", strings.ReplaceAll(words, "<", "&lt;"))
	}},
	"asked once more": {[]string{"token", "manifest", "blob"}, func(p *parrot, w http.ResponseWriter, words string) {
		w.Header().Add("WWW-Authenticate", p.way.challenge+` realm="`+p.URL+`/`+url.PathEscape(words)+`",error="`+oneLine(words)+`"`)
		refuse(w, http.StatusUnauthorized, map[string]any{"errors": []any{map[string]any{"code": "X", "message": words}}})
	}},
	"down": {[]string{"token", "manifest", "blob"}, func(_ *parrot, w http.ResponseWriter, words string) {
		raw(w, "HTTP/1.1 503 "+oneLine(words)+"\r\nRetry-After: "+oneLine(words)+"\r\nContent-Length: 0\r\n\r\n")
	}},
	"no HTTP": {[]string{"token", "manifest", "blob", "store"}, func(_ *parrot, w http.ResponseWriter, words string) { raw(w, words+"\r\n\r\n") }},
	"no header": {[]string{"token", "manifest", "blob"}, func(_ *parrot, w http.ResponseWriter, words string) {
		raw(w, "HTTP/1.1 200 OK\r\n"+oneLine(words)+"\r\n\r\n")
	}},
	"no length": {[]string{"token", "manifest", "blob"}, func(_ *parrot, w http.ResponseWriter, words string) {
		raw(w, "HTTP/1.1 200 OK\r\nContent-Length: "+oneLine(words)+"\r\n\r\n")
	}},
	"another range": {[]string{"blob"}, func(_ *parrot, w http.ResponseWriter, words string) {
		w.Header().Set("Content-Range", "bytes 5-7/"+oneLine(words))
		w.WriteHeader(http.StatusPartialContent)
	}},
	"sent to a host": {[]string{"token", "manifest", "blob"}, func(_ *parrot, w http.ResponseWriter, words string) {
		w.Header().Set("Location", "http://"+strings.ReplaceAll(url.PathEscape(words), "%", "-")+".test/")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}},
	"sent to a host of that name": {[]string{"token", "manifest", "blob"}, func(p *parrot, w http.ResponseWriter, _ string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		name := base64.RawURLEncoding.EncodeToString([]byte(p.sent[len(p.sent)-1]))
		w.Header().Set("Location", "http://x"+name+".test/")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}},
	"half a token": {[]string{"token"}, func(_ *parrot, w http.ResponseWriter, words string) {
		fmt.Fprintf(w, `{"token":%q,"x":%q`, canaries["token answer"], words)
	}},
	"no token": {[]string{"token"}, func(_ *parrot, w http.ResponseWriter, words string) {
		fmt.Fprintf(w, `{"answer":%q,"x":%q}`, canaries["token answer"], words)
	}},
	"no manifest": {[]string{"manifest"}, func(_ *parrot, w http.ResponseWriter, words string) {
		_ = json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 2, "mediaType": words, words: words})
	}},
	"unasked": {[]string{"manifest", "blob"}, func(_ *parrot, w http.ResponseWriter, words string) {
		raw(w, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"+words)
	}},
	"nothing": {[]string{"nowhere"}, nil},
}

func refuse(w http.ResponseWriter, status int, document any) {
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(document)
}

// leakWorld is a machine whose registry is a parrot, and the directory of a launcher.
type leakWorld struct {
	*launchtest.Machine
	parrot *parrot
	dir    string
}

func newLeakWorld(t *testing.T, p *parrot) *leakWorld {
	t.Helper()
	m, err := launchtest.NewMachine(launchtest.MachineOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	p.proxy = &httputil.ReverseProxy{Rewrite: func(q *httputil.ProxyRequest) {
		q.SetURL(&url.URL{Scheme: "http", Host: m.Registry.Host()})
	}}
	if p.way.own == "" {
		p.Server = httptest.NewServer(p)
	} else {
		p.Server = httptest.NewUnstartedServer(p)
		p.Config.ErrorLog = log.New(io.Discard, "", 0) // broken handshakes and answers are on purpose
		p.StartTLS()
	}
	t.Cleanup(p.Close)
	require.NoError(t, m.Configure("", `key = "`+canaries["node config value"]+`"`))
	config, err := os.ReadFile(m.ConfigFile)
	require.NoError(t, err)
	w := &leakWorld{Machine: m, parrot: p, dir: t.TempDir()}
	require.NoError(t, os.WriteFile(m.ConfigFile, bytes.ReplaceAll(config, []byte(m.Registry.Host()), []byte(w.host())), 0o600))
	if p.way.own != "" {
		w.auth(t, "\""+w.host()+"\"]\n"+p.way.own)
	}
	for _, name := range []string{"docker", "tmp", "out"} {
		require.NoError(t, os.Mkdir(filepath.Join(w.dir, name), 0o700))
	}
	w.docker(t, `{"auths":{"`+w.host()+`":{`+p.way.config+`}}}`)
	if p.TLS != nil {
		trusted := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
		require.NoError(t, os.WriteFile(filepath.Join(w.dir, "docker", "ca.pem"), trusted, 0o600))
	}
	return w
}

// auth adds an entry of registry_auth to the user config, from its key on.
func (w *leakWorld) auth(t *testing.T, entry string) {
	t.Helper()
	text, err := os.ReadFile(w.ConfigFile)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(w.ConfigFile, append(text, "\n[launcher_config.registry_auth."+entry+"\n"...), 0o600))
}

func (w *leakWorld) host() string {
	_, host, _ := strings.Cut(w.parrot.URL, "://")
	return host
}

// docker writes Docker's config.
func (w *leakWorld) docker(t *testing.T, config string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, "docker", "config.json"), []byte(config), 0o600))
}

// commands are all commands in both formats of their results and of the log.
func (w *leakWorld) commands() [][]string {
	image := w.host() + "/" + launchtest.Repository
	pinned := image + "@" + w.Digests[0].String()
	var all [][]string
	for _, command := range [][]string{
		{"version"}, {"rtmr3"}, {"digest", image + ":main"}, {"digest", pinned}, {"render"}, {"verify"}, {"pull", pinned},
	} {
		if w.parrot.way.own != "" && (command[0] == "digest" || command[0] == "pull") {
			continue // which don't read the user config: the parrot would tell others what it heard of them
		}
		all = append(all, command, append(slices.Clone(command), "-o", "json", "--log-format", "json"))
	}
	return append(all, []string{"run"}, []string{"run", "--log-format", "json"})
}

// orders is what a process that plays the launcher is told.
type orders struct {
	Commands [][]string
	Out      string // the directory for what each prints
}

// launchAll is a process that does one command after another.
func launchAll() int {
	var o orders
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	for i, command := range o.Commands {
		var stdout bytes.Buffer
		ctx, stderr := once(context.Background())
		code := main.Run(ctx, command, os.Environ(), strings.NewReader(""), &stdout, stderr)
		base := filepath.Join(o.Out, fmt.Sprintf("%02d %s ", i, command[0]))
		err := errors.Join(
			os.WriteFile(base+"stdout", stdout.Bytes(), 0o600),
			os.WriteFile(base+"stderr", append(stderr.all.Bytes(), fmt.Sprintf("%v ended with %d\n", command, code)...), 0o600))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 125
		}
	}
	return 0
}

// process returns the launcher as a process that does these commands, and what it writes around
// its own printer.
func (w *leakWorld) process(t *testing.T, commands [][]string, environ ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	told, err := json.Marshal(orders{commands, filepath.Join(w.dir, "out")})
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "launchers")
	var around bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(told), &around, &around
	cmd.Env = append([]string{
		"PATH=" + w.dir + ":" + os.Getenv("PATH"), "TMPDIR=" + filepath.Join(w.dir, "tmp"), "HOME=" + w.dir,
		"DOCKER_CONFIG=" + filepath.Join(w.dir, "docker"), commonDir + "=" + os.Getenv(commonDir),
		"SSL_CERT_FILE=" + filepath.Join(w.dir, "docker", "ca.pem"),
		"PLATFORM=TEE", "DOCKER_CONTENT_TRUST=1", "DEFAULT_IMAGE_DIGEST=" + w.Digests[0].String(), "LAUNCHER_CONFIG=" + w.ConfigFile,
		"LAUNCHER_SHARED_DIR=" + w.SharedDir, "LAUNCHER_DSTACK_SOCKET=" + w.AgentSocket, "DOCKER_HOST=" + w.Engine.Host(),
		"LAUNCHER_COMPOSE=" + os.Args[0] + " compose-double", "LOG_LEVEL=debug",
	}, environ...)
	return cmd, &around
}

// launch does these commands and looks for canaries.
func (w *leakWorld) launch(t *testing.T, what string, commands [][]string, environ ...string) {
	t.Helper()
	cmd, around := w.process(t, commands, environ...)
	require.NoError(t, cmd.Run(), "%s", around)
	assert.Empty(t, around.String(), "%s: nothing is written around the printer", what)
	w.search(t, what, around.String())
}

// search looks for every canary, in every spelling, in every place.
func (w *leakWorld) search(t *testing.T, what, around string) {
	t.Helper()
	places := map[string]string{"what is written around the printer": around}
	for _, root := range []string{w.SharedDir, filepath.Join(w.dir, "tmp"), filepath.Join(w.dir, "out")} {
		require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || path == w.Shared("mpc-config.toml") || d.Type() == fs.ModeSocket {
				return err
			}
			text, err := os.ReadFile(path)
			places[path] = string(text)
			return err
		}))
	}
	for place, text := range places {
		text = strings.ToLower(text)
		for name, secret := range canaries {
			if name == "node config value" && strings.Contains(place, " render stdout") {
				continue // the one place where it is shown
			}
			for how, spell := range spellings {
				assert.False(t, strings.Contains(text, strings.ToLower(strings.TrimRight(spell(secret), "="))),
					"%s: canary %q leaks, spelled %q, in %s:\n%s", what, name, how, place, text)
			}
		}
	}
}

// TestNothingLeaks plants a canary of every kind, has registries, token servers and stores repeat
// what they are sent in every place that an answer has, and looks for it wherever a command writes.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	for way, login := range loginWays {
		for _, failure := range slices.Sorted(maps.Keys(failures)) {
			for _, at := range failures[failure].at {
				if at == "token" && (login.challenge == "Basic" || strings.HasSuffix(login.canary, "y token") || login.canary == "own token") {
					continue // there is no token server
				}
				if way != "token" && !slices.Contains([]string{"refused", "asked once more", "half a token", "nothing"}, failure) {
					continue // what is wrong with an answer doesn't depend on what was sent
				}
				t.Run(strings.Join([]string{way, failure, at}, "/"), func(t *testing.T) {
					t.Parallel()
					p := &parrot{way: login, at: at, fails: failures[failure].fails, spelling: spellings["plain"]}
					w := newLeakWorld(t, p)
					w.launch(t, way+", "+failure+" "+at, w.commands())
					p.mu.Lock()
					defer p.mu.Unlock()
					assert.Equal(t, at != "nowhere", p.hits > 0, "it fails there")
					assert.Contains(t, p.sent, canaries[login.canary])
				})
			}
		}
	}
}

// TestNothingLeaksHoweverItIsSpelled has a registry and a store repeat what they were sent in every
// spelling.
func TestNothingLeaksHoweverItIsSpelled(t *testing.T) {
	t.Parallel()
	for how, spell := range spellings {
		for way, login := range loginWays {
			for failure, at := range map[string]string{"refused": "manifest", "refused in a store's way": "store"} {
				if login.challenge == "Basic" || strings.HasSuffix(way, "y token") {
					continue // a password and a token, too
				}
				t.Run(strings.Join([]string{how, way, failure}, "/"), func(t *testing.T) {
					t.Parallel()
					p := &parrot{way: login, at: at, fails: failures[failure].fails, spelling: spell}
					w := newLeakWorld(t, p)
					pinned := w.host() + "/" + launchtest.Repository + "@" + w.Digests[0].String()
					commands := [][]string{{"pull", pinned}, {"verify"}}
					if login.own != "" {
						commands = commands[1:] // pull doesn't read the user config
					}
					w.launch(t, how+", "+way+", "+failure, commands)
				})
			}
		}
	}
}

// TestNothingLeaksOfWhatIsMalformed: what can't be read may be a secret that was put in the wrong
// place, and so may be what a helper says.
func TestNothingLeaksOfWhatIsMalformed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ config, variable string }{
		"a config":            {config: canaries["malformed config"]},
		"an entry":            {config: `{"auths":{"HOST":{"auth":"` + canaries["malformed config"] + `"}}}`},
		"a type":              {config: `{"auths":"` + canaries["malformed config"] + `"}`},
		"a variable":          {config: "{}", variable: canaries["malformed value"]},
		"a variable's entry":  {config: "{}", variable: `{"auths":{"HOST":{"auth":"` + canaries["malformed value"] + `"}}}`},
		"a variable's member": {config: "{}", variable: `{"auths":{"HOST":{"` + canaries["malformed value"] + `":1}}}`},
		"a helper's words":    {config: `{"credsStore":"speaks"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newLeakWorld(t, &parrot{way: loginWays["token"], spelling: spellings["plain"]})
			w.docker(t, strings.ReplaceAll(c.config, "HOST", w.host()))
			words := canaries["words of a helper"]
			require.NoError(t, os.WriteFile(filepath.Join(w.dir, "docker-credential-speaks"),
				[]byte("#!/bin/sh\necho "+words+"\necho "+words+" >&2\nexit 1\n"), 0o700))
			w.launch(t, name, w.commands(), "DOCKER_AUTH_CONFIG="+strings.ReplaceAll(c.variable, "HOST", w.host()))
		})
	}
}

// TestNothingLeaksOfTheUserConfig has a secret of registry_auth next to every mistake in it.
func TestNothingLeaksOfTheUserConfig(t *testing.T) {
	t.Parallel()
	token := canaries["own token"]
	for name, entry := range map[string]string{
		"a key":               `"ghcr.io"]` + "\n'" + token + "' = 1",
		"a misspelt key":      `"ghcr.io"]` + "\nregistry_tokn = '" + token + "'",
		"both":                `"ghcr.io"]` + "\nregistry_token = '" + token + "'\nidentity_token = '" + token + "'",
		"no password":         `"ghcr.io"]` + "\nusername = '" + token + "'",
		"a user with a colon": `"ghcr.io"]` + "\nusername = 'x:" + token + "'\npassword = '" + token + "'",
		"a control character": `"ghcr.io"]` + "\npassword = \"\\u0001" + token + "\"",
		"no quotes":           `"ghcr.io"]` + "\npassword = " + token,
		"a host":              "'x:" + token + "@ghcr.io']\nusername = 1",
		"a host alone":        "'" + token + "']\nusername = 1",
		"a list":              `"ghcr.io"]` + "\npassword = ['" + token + "']",
		"a host in pieces":    "ghcr.io]\npassword = '" + token + "'",
		"a wrong place":       `"ghcr.io"]` + "\n[launcher_config.auth]\nx = '" + token + "'",
		"another host's":      `"ghcr.io"]` + "\nregistry_token = '" + token + "'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newLeakWorld(t, &parrot{way: loginWays["token"], spelling: spellings["plain"]})
			w.auth(t, entry)
			w.launch(t, name, w.commands())
			w.parrot.mu.Lock()
			defer w.parrot.mu.Unlock()
			assert.NotContains(t, w.parrot.sent, token, "it is for another host")
		})
	}
}

// TestNothingLeaksOfAProxy has a proxy repeat the password that it was sent.
func TestNothingLeaksOfAProxy(t *testing.T) {
	t.Parallel()
	for how, spell := range spellings {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			var asked sync.Map
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				asked.Store(q.Method, q.Header.Get("Proxy-Authorization"))
				words := oneLine(q.Header.Get("Proxy-Authorization") + " " + spell(canaries["proxy password"]))
				body, _ := json.Marshal(map[string]any{"errors": []any{map[string]any{"code": words, "message": words}}})
				raw(w, fmt.Sprintf("HTTP/1.1 407 %s\r\nContent-Length: %d\r\n\r\n%s", words, len(body), body))
			}))
			defer proxy.Close()
			w := newLeakWorld(t, &parrot{way: loginWays["token"], spelling: spell})
			address := (&url.URL{Scheme: "http", Host: strings.TrimPrefix(proxy.URL, "http://"),
				User: url.UserPassword(robot, canaries["proxy password"])}).String()
			var commands [][]string
			for _, ref := range []string{"secure.test/x:1", "plain.test/x:1"} {
				for _, format := range []string{"text", "json"} {
					commands = append(commands, []string{"digest", ref, "--log-format", format, "--insecure-registry", "plain.test"})
				}
			}
			w.launch(t, how, commands, "HTTP_PROXY="+address, "HTTPS_PROXY="+address)
			for _, method := range []string{http.MethodConnect, http.MethodGet} {
				sent, _ := asked.Load(method)
				assert.NotEmpty(t, sent, "%s with a password", method)
			}
		})
	}
}

// TestNothingLeaksInADump ends a launcher while it waits for what it logged in for, by the signal
// that makes Go print all stacks.
func TestNothingLeaksInADump(t *testing.T) {
	t.Parallel()
	for way, login := range loginWays {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			waits := make(chan struct{})
			var once sync.Once
			p := &parrot{way: login, at: "blob", spelling: spellings["plain"], fails: func(_ *parrot, w http.ResponseWriter, _ string) {
				once.Do(func() { close(waits) })
				c, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					_, _ = io.Copy(io.Discard, c)
				}
			}}
			w := newLeakWorld(t, p)
			cmd, around := w.process(t, [][]string{{"run"}}, "GOTRACEBACK=all")
			require.NoError(t, cmd.Start())
			<-waits
			require.NoError(t, cmd.Process.Signal(syscall.SIGQUIT))
			require.Error(t, cmd.Wait())
			assert.Contains(t, around.String(), "pkg/registry.", "the stacks")
			w.search(t, way, around.String())
		})
	}
}
