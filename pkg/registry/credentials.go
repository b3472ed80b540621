package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/sanitize"
)

const (
	// anonymous is the source of no credentials.
	anonymous   = "anonymous"
	givenSource = "the given keychain"
)

// credential is what a keychain has. Only source and note are ever shown.
type credential struct {
	config authn.AuthConfig
	source string // a file, a helper, a variable, or anonymous
	note   string // why anonymous, where that may surprise
}

// String keeps secrets out of messages.
func (c *credential) String() string { return "credentials: " + c.source }

// GoString keeps them out of others, too.
func (c *credential) GoString() string { return c.String() }

func none(format string, a ...any) *credential {
	return &credential{source: anonymous, note: fmt.Sprintf(format, a...)}
}

// givenCredential asks a keychain of the caller's.
func givenCredential(ctx context.Context, keychain authn.Keychain, repository name.Repository) *credential {
	found, err := resolve(ctx, keychain, repository)
	switch {
	case err != nil:
		return none("because %s failed", givenSource)
	case *found == authn.AuthConfig{}:
		return none("because %s has none", givenSource)
	}
	return &credential{config: *found, source: givenSource}
}

func resolve(ctx context.Context, keychain authn.Keychain,
	repository name.Repository) (*authn.AuthConfig, error) {
	authenticator, err := authn.Resolve(ctx, keychain, repository)
	if err != nil {
		return nil, err
	}
	return authn.Authorization(ctx, authenticator)
}

// dockerCredential asks go-containerregistry's keychain, and where that fails over a helper,
// Docker's own package for the host's key alone, as docker itself does. Neither says where it found
// something, so the file that counts is looked at as well.
func dockerCredential(ctx context.Context, repository name.Repository, forbidden []string) *credential {
	path, missing := configPath()
	if path == "" {
		return none("because there is no %s", missing)
	}
	docker, err := readConfig(path)
	switch {
	case errors.Is(err, files.ErrTooLarge):
		return none("because %s is larger than %d bytes", path, maxConfig)
	case err != nil:
		return none("because %s is not a Docker config", path)
	}
	var c *credential
	withoutPath(forbidden, func() {
		found, failed := resolve(ctx, authn.DefaultKeychain, repository)
		if failed != nil {
			// Docker, too, goes on with what the file has beside a helper that fails.
			var entry types.AuthConfig
			entry, failed = docker.GetAuthConfig(hostKey(repository))
			found = &authn.AuthConfig{Username: entry.Username, Password: entry.Password, Auth: entry.Auth,
				IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken}
		}
		if *found == (authn.AuthConfig{}) {
			c = none("because %s", whyNone(docker, path, repository, failed))
			return
		}
		c = &credential{config: *found, source: sourceOf(docker, path, repository, failed != nil)}
	})
	return c
}

// configPath returns the file that authn.DefaultKeychain reads, or what it would have read.
func configPath() (path, missing string) {
	exists := func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && !info.IsDir()
	}
	home, _ := os.UserHomeDir()
	dir := os.Getenv("DOCKER_CONFIG")
	inHome, inDir := filepath.Join(home, ".docker", "config.json"), filepath.Join(dir, "config.json")
	if home != "" && exists(inHome) || dir != "" && exists(inDir) {
		if dir != "" {
			return inDir, ""
		}
		return inHome, ""
	}
	podman := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if configDir := os.Getenv("XDG_CONFIG_HOME"); os.Getenv("XDG_RUNTIME_DIR") == "" || !exists(podman) {
		if configDir == "" {
			configDir = filepath.Join(home, ".config")
		}
		podman = filepath.Join(configDir, "containers", "auth.json")
	}
	for _, candidate := range []string{filepath.Clean(os.Getenv("REGISTRY_AUTH_FILE")), podman} {
		if exists(candidate) {
			return candidate, ""
		}
	}
	switch {
	case dir != "":
		missing = inDir
	case home != "":
		missing = inHome
	default:
		missing = "HOME and no DOCKER_CONFIG set"
	}
	if os.Getenv(configfile.DockerEnvConfigKey) != "" {
		missing += " (DOCKER_AUTH_CONFIG alone isn't read)"
	}
	return "", missing
}

// maxConfig is the size of the largest Docker config that is read.
const maxConfig = 1 << 20

// readConfig reads the file before authn.DefaultKeychain does, which takes a file of any size.
func readConfig(path string) (*configfile.ConfigFile, error) {
	data, err := files.ReadFile(path, maxConfig)
	if errors.Is(err, os.ErrNotExist) {
		return configfile.New(path), nil
	}
	if err != nil {
		return nil, err
	}
	return config.LoadFromReader(bytes.NewReader(data))
}

// hostKey is how a Docker config names the repository's registry.
func hostKey(repository name.Repository) string {
	if host := repository.RegistryStr(); host != name.DefaultRegistry {
		return host
	}
	return authn.DefaultAuthKey
}

// helperOf names the helper that is asked for key, if there is one.
func helperOf(docker *configfile.ConfigFile, key string) string {
	helper, ok := docker.CredentialHelpers[key]
	if !ok {
		helper = docker.CredentialsStore
	}
	if helper == "" {
		return ""
	}
	return "docker-credential-" + sanitize.Line(helper, 60)
}

// sourceOf says where credentials were found.
func sourceOf(docker *configfile.ConfigFile, path string, repository name.Repository, helperFailed bool) string {
	keys := []string{repository.String(), hostKey(repository)}
	variable, err := config.LoadFromReader(strings.NewReader(os.Getenv(configfile.DockerEnvConfigKey)))
	if err == nil {
		for _, key := range keys {
			if _, ok := variable.AuthConfigs[key]; ok {
				return configfile.DockerEnvConfigKey
			}
		}
	}
	for _, key := range keys {
		if helper := helperOf(docker, key); helper != "" && !helperFailed {
			if key == keys[0] && docker.CredentialHelpers[key] == "" {
				helper = helperOf(docker, keys[1]) // the same one, or that of the host
			}
			return helper
		}
	}
	return path
}

// whyNone says why there are no credentials.
func whyNone(docker *configfile.ConfigFile, path string, repository name.Repository, failed error) string {
	helper := helperOf(docker, hostKey(repository))
	if helper == "" {
		helper = helperOf(docker, repository.String())
	}
	switch {
	case failed != nil && helper != "":
		// Its words aren't told: they may be a secret.
		if _, err := exec.LookPath(helper); err != nil {
			return fmt.Sprintf("%s, which %s names, isn't on PATH", helper, path)
		}
		return fmt.Sprintf("%s, which %s names, failed", helper, path)
	case failed != nil:
		return fmt.Sprintf("the entry for %s in %s can't be read", repository.RegistryStr(), path)
	case helper != "":
		return fmt.Sprintf("%s, which %s names, has none", helper, path)
	}
	for key := range docker.AuthConfigs {
		if hostKey(repository) == authn.DefaultAuthKey && (key == "docker.io" || strings.HasPrefix(key, "docker.io/")) {
			return fmt.Sprintf("%s has none for %s; its entry %s is Podman's spelling, which isn't used here",
				path, hostKey(repository), sanitize.Line(key, 100))
		}
	}
	return fmt.Sprintf("%s has none for %s", path, repository.RegistryStr())
}

// environment is held while PATH is another one: it belongs to the whole process.
var environment sync.Mutex

// withoutPath runs f while PATH lacks the entries in or below dirs, in which anybody may have put a
// program. The packages that run helpers take no other say.
func withoutPath(dirs []string, f func()) {
	environment.Lock()
	defer environment.Unlock()
	whole := os.Getenv("PATH")
	kept := slices.DeleteFunc(filepath.SplitList(whole), func(entry string) bool { return below(entry, dirs) })
	path := strings.Join(kept, string(filepath.ListSeparator))
	if path == whole {
		f()
		return
	}
	defer os.Setenv("PATH", whole)
	os.Setenv("PATH", path)
	f()
}

// below reports whether path is one of dirs, or in one, whatever links lead there.
func below(path string, dirs []string) bool {
	real := func(path string) string {
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			return resolved
		}
		return filepath.Clean(path)
	}
	for _, dir := range dirs {
		rel, err := filepath.Rel(real(dir), real(path))
		if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return true
		}
	}
	return false
}
