package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"tee-launcher/pkg/image"
	"tee-launcher/pkg/internal/files"
)

// anonymous is the source of no credentials.
const anonymous = "anonymous"

// credential is what a registry is told about who we are. Only source and note are ever shown.
type credential struct {
	username, password string
	identity           string // a refresh token for the token server
	registryToken      string // a token for the registry itself
	source             string // a file, a helper, a variable, or anonymous
	note               string // why anonymous, where that may surprise
}

// String keeps secrets out of messages.
func (c *credential) String() string { return "credentials: " + c.source }

// GoString keeps them out of others, too.
func (c *credential) GoString() string { return c.String() }

func (c *credential) empty() bool {
	return c.username == "" && c.password == "" && c.identity == "" && c.registryToken == ""
}

// findCredential asks the keychain, no longer than the helper time-out. A source that fails is none, as for Docker: many
// images can be had without.
func (s *Source) findCredential(ctx context.Context) *credential {
	ctx, cancel := context.WithTimeout(ctx, s.Tuning.HelperTimeout)
	defer cancel()
	if s.Keychain != nil {
		return givenCredential(ctx, s.Keychain, s.ref.Context())
	}
	getenv := s.Tuning.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	k := dockerKeychain{getenv: getenv, forbidden: s.ForbiddenHelperDirs}
	return k.find(ctx, s.ref.Context())
}

// givenCredential asks a keychain that may never answer.
func givenCredential(ctx context.Context, keychain authn.Keychain, repo name.Repository) *credential {
	type result struct {
		config *authn.AuthConfig
		err    error
	}
	done := make(chan result, 1)
	go func() {
		authenticator, err := authn.Resolve(ctx, keychain, repo)
		if err != nil {
			done <- result{err: err}
			return
		}
		config, err := authn.Authorization(ctx, authenticator)
		done <- result{config, err}
	}()
	const source = "the given keychain"
	select {
	case <-ctx.Done():
		return &credential{source: anonymous, note: source + " didn't answer in time"}
	case r := <-done:
		if r.err != nil {
			return &credential{source: anonymous, note: source + " failed"}
		}
		c := &credential{username: r.config.Username, password: r.config.Password, identity: r.config.IdentityToken,
			registryToken: r.config.RegistryToken, source: source}
		if c.empty() {
			return &credential{source: anonymous, note: source + " has none"}
		}
		return c
	}
}

// dockerKeychain finds credentials as authn.DefaultKeychain does, which a test holds it to. That one can't be used itself:
// it doesn't say which source it used, waits for ever for a helper that hangs, and runs any helper on PATH.
type dockerKeychain struct {
	getenv    func(string) string
	forbidden []string
}

// dockerConfig is what matters here of Docker's config.json, of Podman's auth.json and of DOCKER_AUTH_CONFIG.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredsStore  string                `json:"credsStore"`
	CredHelpers map[string]string     `json:"credHelpers"`
}

type dockerAuth struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

const maxDockerConfig = 1 << 20

func (k dockerKeychain) find(ctx context.Context, repo name.Repository) *credential {
	path, looked := k.file()
	if path == "" {
		note := "because there is no " + strings.Join(looked, " and no ")
		if k.getenv("DOCKER_AUTH_CONFIG") != "" {
			note += " (DOCKER_AUTH_CONFIG alone isn't read)"
		}
		return &credential{source: anonymous, note: note}
	}
	none := func(format string, a ...any) *credential {
		return &credential{source: anonymous, note: fmt.Sprintf(format, a...)}
	}
	data, err := files.ReadFile(path, maxDockerConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return none("because %s can't be read", path)
	}
	var config, env dockerConfig
	if err := decodeFirst(data, &config); err != nil {
		return none("because %s is not a Docker config", path)
	}
	if err := decodeFirst([]byte(k.getenv("DOCKER_AUTH_CONFIG")), &env); err != nil {
		env = dockerConfig{}
	}
	var silent []string // helpers that had nothing
	for _, key := range []string{repo.String(), repo.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		if entry, ok := env.Auths[key]; ok {
			if c, err := entry.credential("DOCKER_AUTH_CONFIG"); err == nil && !c.empty() {
				return c
			}
		}
		helper, ok := config.CredHelpers[key]
		if !ok {
			helper = config.CredsStore
		}
		if helper == "" {
			c, err := config.lookUp(key, path)
			if err != nil {
				return none("because the entry for %s in %s can't be decoded", key, path)
			}
			if !c.empty() {
				return c
			}
			continue
		}
		program := "docker-credential-" + helper
		c, err := k.ask(ctx, program, key)
		if err != nil {
			return none("because %s, which %s names, %s", image.Clean(program, 60), path, image.Clean(err.Error(), 120))
		}
		// As for Docker, what a helper doesn't know the file may add: a token for the registry.
		if entry, ok := config.Auths[key]; ok {
			c.registryToken = entry.RegistryToken
		}
		if !c.empty() {
			return c
		}
		silent = append(silent, image.Clean(program, 60))
	}
	if len(silent) > 0 {
		return none("because %s, which %s names, has none", strings.Join(slices.Compact(silent), " and "), path)
	}
	return none("because %s has none for %s", path, repo.RegistryStr())
}

// file returns the file that counts, or where it was looked for.
func (k dockerKeychain) file() (path string, looked []string) {
	exists := func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && !info.IsDir()
	}
	home, dir := k.getenv("HOME"), k.getenv("DOCKER_CONFIG")
	inHome := filepath.Join(home, ".docker", "config.json")
	inDir := filepath.Join(dir, "config.json")
	if home != "" && exists(inHome) || dir != "" && exists(inDir) {
		if dir != "" {
			return inDir, nil
		}
		return inHome, nil
	}
	var candidates []string
	if f := k.getenv("REGISTRY_AUTH_FILE"); f != "" {
		candidates = append(candidates, filepath.Clean(f))
	}
	if d := k.getenv("XDG_RUNTIME_DIR"); d != "" {
		candidates = append(candidates, filepath.Join(d, "containers", "auth.json"))
	}
	if d := k.getenv("XDG_CONFIG_HOME"); d != "" {
		candidates = append(candidates, filepath.Join(d, "containers", "auth.json"))
	} else if home != "" {
		candidates = append(candidates, filepath.Join(home, ".config", "containers", "auth.json"))
	}
	for _, c := range candidates {
		if exists(c) {
			return c, nil
		}
	}
	switch {
	case dir != "":
		return "", []string{inDir}
	case home != "":
		return "", []string{inHome}
	}
	return "", []string{"HOME and DOCKER_CONFIG set"}
}

// decodeFirst reads the first JSON value of data; nothing at all is an empty config.
func decodeFirst(data []byte, into any) error {
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// lookUp finds the entry for key, with older spellings of it.
func (c *dockerConfig) lookUp(key, source string) (*credential, error) {
	if entry, ok := c.Auths[key]; ok {
		return entry.credential(source)
	}
	for _, stored := range slices.Sorted(maps.Keys(c.Auths)) {
		if key == hostOf(stored) {
			return c.Auths[stored].credential(source)
		}
	}
	return &credential{}, nil
}

// hostOf returns the host of an entry that older clients stored as a URL.
func hostOf(stored string) string {
	if u, err := url.Parse(stored); err == nil && strings.Contains(stored, "://") && u.Host != "" {
		return u.Host
	}
	host, _, _ := strings.Cut(stored, "/")
	return host
}

func (a dockerAuth) credential(source string) (*credential, error) {
	c := &credential{username: a.Username, password: a.Password, identity: a.IdentityToken, registryToken: a.RegistryToken, source: source}
	if a.Auth == "" {
		return c, nil
	}
	decoded, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return nil, errors.New("auth is not base64")
	}
	username, password, ok := strings.Cut(string(decoded), ":")
	if !ok || username == "" {
		return nil, errors.New("auth is not user:password")
	}
	c.username, c.password = username, strings.Trim(password, "\x00")
	return c, nil
}

// maxHelperAnswer is far above any token.
const maxHelperAnswer = 64 << 10

// ask runs a credential helper, which is killed with all it started when ctx ends. Its errors are worded to follow its name.
func (k dockerKeychain) ask(ctx context.Context, program, key string) (*credential, error) {
	path, err := k.locate(program)
	if err != nil {
		return nil, err
	}
	var out bounded
	cmd := exec.CommandContext(ctx, path, "get")
	cmd.Args[0] = program
	cmd.Stdin = strings.NewReader(key)
	cmd.Stdout = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	switch {
	case out.over:
		return nil, errors.New("says too much")
	case ctx.Err() != nil:
		return nil, errors.New("didn't answer in time")
	case err != nil && strings.TrimSpace(string(out.kept)) == "credentials not found in native keychain":
		return &credential{}, nil
	case err != nil:
		return nil, errors.New("failed")
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out.kept, &answer); err != nil {
		return nil, errors.New("answers something else than JSON")
	}
	c := &credential{source: program}
	if answer.Username == "<token>" {
		c.identity = answer.Secret
	} else {
		c.username, c.password = answer.Username, answer.Secret
	}
	return c, nil
}

// locate finds the program on PATH, but not where anybody can put one.
func (k dockerKeychain) locate(program string) (string, error) {
	if strings.ContainsRune(program, filepath.Separator) {
		return "", errors.New("is not the name of a program")
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", errors.New("isn't on PATH")
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", errors.New("can't be found")
	}
	for _, dir := range k.forbidden {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			dir = resolved
		}
		if rel, err := filepath.Rel(dir, real); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return "", fmt.Errorf("lies below %s and is not run", dir)
		}
	}
	return real, nil
}

// bounded keeps what fits into maxHelperAnswer and notes what doesn't.
type bounded struct {
	kept []byte
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.kept)+len(p) > maxHelperAnswer {
		b.over = true
		return 0, errors.New("too much")
	}
	b.kept = append(b.kept, p...)
	return len(p), nil
}
