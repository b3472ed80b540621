package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	dockerconfig "github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/credentials"
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
	ownSource   = "registry_auth in the user config"
)

// credential is what a keychain has. Only source and note are ever shown.
type credential struct {
	config authn.AuthConfig
	source string // a file, a helper, a variable, or anonymous
	note   string // why anonymous, where that may surprise
	own    bool   // of the user config
}

// String keeps secrets out of messages.
func (c *credential) String() string { return "credentials: " + c.source }

// GoString keeps them out of others, too.
func (c *credential) GoString() string { return c.String() }

func none(format string, a ...any) *credential {
	return &credential{source: anonymous, note: fmt.Sprintf(format, a...)}
}

// ownCredential is what the user config has for the registry, nil where that is nothing. It is the
// operator's for this host and port: nothing else is asked for it then.
func (s *remote) ownCredential() *credential {
	if s.Credentials == nil {
		return nil
	}
	c, ok := s.Credentials(s.host())
	switch {
	case !ok:
		return nil
	case s.guard.base().Scheme != "https":
		return none("because %s is for https alone", ownSource)
	}
	return &credential{source: ownSource, own: true, config: authn.AuthConfig{
		Username: c.Username, Password: c.Password,
		IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	}}
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

// dockerCredential finds what docker and go-containerregistry's default keychain find for the
// repository: what is for its name, and then what is for its host. A helper that fails is none, but
// what the file has beside it for the host counts.
func dockerCredential(ctx context.Context, repository name.Repository, forbidden []string) *credential {
	path, missing := configPath()
	if path == "" {
		return none("because there is no %s", missing)
	}
	d := dockerConfig{path: path, forbidden: forbidden}
	var err error
	d.file, err = readConfig(path)
	switch {
	case errors.Is(err, files.ErrTooLarge):
		return none("because %s is larger than %d bytes", path, maxConfig)
	case err != nil:
		return none("because %s is not a Docker config", path)
	}
	ignored := ""
	if d.variable, err = readVariable(); err != nil {
		ignored = configfile.DockerEnvConfigKey + " is ignored, because it isn't what Docker takes there"
	}
	key := hostKey(repository)
	found, source, failed := d.get(ctx, repository.String())
	if failed != nil || found == (authn.AuthConfig{}) {
		found, source, failed = d.get(ctx, key)
	}
	c := &credential{config: found, source: source, note: ignored}
	if found == (authn.AuthConfig{}) {
		c = none("because %s", d.whyNone(repository, failed))
		if ignored != "" {
			c.note += "; " + ignored
		}
	}
	return c
}

// dockerConfig is what a Docker config says, as Docker's own packages read it. They would start the
// helpers that it names, too, but can neither end them nor keep what they say off our stderr.
type dockerConfig struct {
	file      *configfile.ConfigFile
	path      string                      // of the file
	variable  map[string]types.AuthConfig // DOCKER_AUTH_CONFIG, which goes first
	forbidden []string
}

// get returns what there is for a key, and where. Where a helper failed, that is what the file has.
func (d *dockerConfig) get(ctx context.Context, key string) (found authn.AuthConfig, source string, failed *helperError) {
	if entry, ok := d.variable[key]; ok {
		return fromDocker(entry), configfile.DockerEnvConfigKey, nil
	}
	entry, _ := credentials.NewFileStore(d.file).Get(key) // never an error
	suffix := d.helper(key)
	if suffix == "" {
		return fromDocker(entry), d.path, nil
	}
	said, failed := askHelper(ctx, suffix, key, d.forbidden)
	if failed != nil {
		return fromDocker(entry), d.path, failed
	}
	entry.Username, entry.Password, entry.IdentityToken = said.Username, said.Secret, ""
	if said.Username == "<token>" {
		entry.Username, entry.Password, entry.IdentityToken = "", "", said.Secret
	}
	return fromDocker(entry), helperPrefix + suffix, nil
}

// helper names the one that is asked for a key, without its prefix; empty if none is.
func (d *dockerConfig) helper(key string) string {
	if suffix, ok := d.file.CredentialHelpers[key]; ok {
		return suffix
	}
	return d.file.CredentialsStore
}

func fromDocker(entry types.AuthConfig) authn.AuthConfig {
	return authn.AuthConfig{
		Username: entry.Username, Password: entry.Password, Auth: entry.Auth,
		IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken,
	}
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
	return dockerconfig.LoadFromReader(bytes.NewReader(data))
}

// hostKey is how a Docker config names the repository's registry.
func hostKey(repository name.Repository) string {
	if host := repository.RegistryStr(); host != name.DefaultRegistry {
		return host
	}
	return authn.DefaultAuthKey
}

// readVariable reads DOCKER_AUTH_CONFIG and takes what Docker takes, which would complain on our
// stderr about the rest.
func readVariable() (map[string]types.AuthConfig, error) {
	value := os.Getenv(configfile.DockerEnvConfigKey)
	if value == "" {
		return nil, nil
	}
	var strict struct {
		Auths map[string]struct {
			Auth string `json:"auth"`
		} `json:"auths"`
	}
	decoder := json.NewDecoder(strings.NewReader(value))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&strict); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if decoder.More() {
		return nil, errors.New("more than one document")
	}
	for _, entry := range strict.Auths {
		if entry.Auth == "" {
			return nil, errors.New("an entry without auth")
		}
	}
	read, err := dockerconfig.LoadFromReader(strings.NewReader(value))
	if err != nil {
		return nil, err
	}
	return read.AuthConfigs, nil
}

// whyNone says why there are no credentials. A helper that failed is why.
func (d *dockerConfig) whyNone(repository name.Repository, failed *helperError) string {
	if failed != nil {
		return fmt.Sprintf("%s, which %s names, %s", failed.helper, d.path, failed.why)
	}
	key := hostKey(repository)
	if suffix := cmp.Or(d.helper(key), d.helper(repository.String())); suffix != "" {
		return fmt.Sprintf("%s, which %s names, has none", helperPrefix+suffix, d.path)
	}
	for podmans := range d.file.AuthConfigs {
		if key == authn.DefaultAuthKey && (podmans == "docker.io" || strings.HasPrefix(podmans, "docker.io/")) {
			return fmt.Sprintf("%s has none for %s; its entry %s is Podman's spelling, which isn't used here",
				d.path, key, sanitize.Line(podmans, 100))
		}
	}
	return fmt.Sprintf("%s has none for %s", d.path, repository.RegistryStr())
}
