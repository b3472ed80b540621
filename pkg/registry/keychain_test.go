package registry_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// auth is the field of Docker's config.
func auth(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// helper writes a credential helper that knows nobody but knows.
func helper(t *testing.T, path, knows, user, secret string) {
	t.Helper()
	script := fmt.Sprintf(`#!/bin/sh
read -r host
if [ "$1 $host" = "get %s" ]; then
  printf '{"ServerURL":"%%s","Username":"%s","Secret":"%s"}' "$host"
else
  echo "credentials not found in native keychain"
  exit 1
fi
`, knows, user, secret)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
}

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

// TestKeychainIsDockers holds what is found to what authn.DefaultKeychain finds, in every place it
// looks. The environment is the process's, so this test isn't parallel.
func TestKeychainIsDockers(t *testing.T) {
	home := t.TempDir()
	bin := filepath.Join(home, "bin")
	helper(t, filepath.Join(bin, "docker-credential-one"), "registry.test", "helped", "by-one")
	helper(t, filepath.Join(bin, "docker-credential-token"), "registry.test", "<token>", "identity")
	helper(t, filepath.Join(bin, "docker-credential-hub"), "https://index.docker.io/v1/", "hub", "by-helper")
	helper(t, filepath.Join(bin, "docker-credential-whole"), "registry.test/a/b", "whole", "name")
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("HOME", home)
	config := filepath.Join(home, ".docker", "config.json")

	for _, c := range []struct {
		name   string
		config string // of the default place
		env    map[string]string
		files  map[string]string
		repo   string
		source string
	}{
		{name: "nothing", source: "anonymous"},
		{name: "empty file", config: " ", source: "anonymous"},
		{name: "auth", config: `{"auths":{"registry.test":{"auth":"` + auth("u", "p:w") + `"}}}`, source: config},
		{name: "auth of a URL", config: `{"auths":{"https://registry.test/v2/":{"auth":"` + auth("u", "p") + `"}}}`, source: config},
		{name: "auth of a repository", config: `{"auths":{"registry.test":{"auth":"` + auth("x", "y") + `"},"registry.test/a/b":{"auth":"` +
			auth("u", "p") + `"}}}`, source: config},
		{name: "auth of another", config: `{"auths":{"other.test":{"auth":"` + auth("u", "p") + `"}}}`, source: "anonymous"},
		{name: "user and password", config: `{"auths":{"registry.test":{"username":"u","password":"p"}}}`, source: config},
		{name: "identity token", config: `{"auths":{"registry.test":{"identitytoken":"i"}}}`, source: config},
		{name: "registry token", config: `{"auths":{"registry.test":{"registrytoken":"r"}}}`, source: config},
		{name: "trailing bytes", config: `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}} x`, source: config},
		{name: "Docker Hub", config: `{"auths":{"https://index.docker.io/v1/":{"auth":"` + auth("u", "p") + `"}}}`, repo: "nearone/mpc-node", source: config},
		{name: "Docker Hub by name", config: `{"auths":{"docker.io":{"auth":"` + auth("u", "p") + `"}}}`, repo: "nearone/mpc-node", source: "anonymous"},
		{name: "port", config: `{"auths":{"registry.test:5000":{"auth":"` + auth("u", "p") + `"}}}`, repo: "registry.test:5000/a/b", source: config},
		{name: "another port", config: `{"auths":{"registry.test:5000":{"auth":"` + auth("u", "p") + `"}}}`, source: "anonymous"},
		{name: "helper of the host", config: `{"credHelpers":{"registry.test":"one"}}`, source: "docker-credential-one"},
		{name: "helper of the repository", config: `{"credHelpers":{"registry.test/a/b":"whole"}}`, source: "docker-credential-whole"},
		{name: "helper of all", config: `{"credsStore":"one"}`, source: "docker-credential-one"},
		{name: "helper of all knows the repository", config: `{"credsStore":"whole"}`, source: "docker-credential-whole"},
		{name: "helper with a token", config: `{"credsStore":"token"}`, source: "docker-credential-token"},
		{name: "helper for Docker Hub", config: `{"credsStore":"hub"}`, repo: "nearone/mpc-node", source: "docker-credential-hub"},
		{name: "helper that knows nothing, and an entry", config: `{"credsStore":"hub","auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`,
			source: "anonymous"},
		{name: "helper of another, and an entry", config: `{"credHelpers":{"other.test":"one"},"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`,
			source: config},
		{name: "variable", config: `{}`, env: map[string]string{"DOCKER_AUTH_CONFIG": `{"auths":{"registry.test":{"auth":"` + auth("e", "v") + `"}}}`},
			source: "DOCKER_AUTH_CONFIG"},
		{name: "variable before the file", config: `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`,
			env: map[string]string{"DOCKER_AUTH_CONFIG": `{"auths":{"registry.test":{"auth":"` + auth("e", "v") + `"}}}`}, source: "DOCKER_AUTH_CONFIG"},
		{name: "variable before the helper", config: `{"credsStore":"one"}`,
			env: map[string]string{"DOCKER_AUTH_CONFIG": `{"auths":{"registry.test":{"auth":"` + auth("e", "v") + `"}}}`}, source: "DOCKER_AUTH_CONFIG"},
		{name: "variable alone", env: map[string]string{"DOCKER_AUTH_CONFIG": `{"auths":{"registry.test":{"auth":"` + auth("e", "v") + `"}}}`},
			source: "anonymous"},
		{name: "variable of another", config: `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`,
			env: map[string]string{"DOCKER_AUTH_CONFIG": `{"auths":{"other.test":{"auth":"` + auth("e", "v") + `"}}}`}, source: config},
		{name: "DOCKER_CONFIG", env: map[string]string{"DOCKER_CONFIG": filepath.Join(home, "elsewhere")},
			files:  map[string]string{"elsewhere/config.json": `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`},
			source: filepath.Join(home, "elsewhere", "config.json")},
		{name: "DOCKER_CONFIG before the default", config: `{"auths":{"registry.test":{"auth":"` + auth("x", "y") + `"}}}`,
			env:    map[string]string{"DOCKER_CONFIG": filepath.Join(home, "elsewhere")},
			files:  map[string]string{"elsewhere/config.json": `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`},
			source: filepath.Join(home, "elsewhere", "config.json")},
		{name: "DOCKER_CONFIG without a file", config: `{"auths":{"registry.test":{"auth":"` + auth("x", "y") + `"}}}`,
			env: map[string]string{"DOCKER_CONFIG": filepath.Join(home, "nowhere")}, source: "anonymous"},
		{name: "REGISTRY_AUTH_FILE", env: map[string]string{"REGISTRY_AUTH_FILE": filepath.Join(home, "auth.json")},
			files:  map[string]string{"auth.json": `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`},
			source: filepath.Join(home, "auth.json")},
		{name: "XDG_RUNTIME_DIR", env: map[string]string{"XDG_RUNTIME_DIR": filepath.Join(home, "run")},
			files:  map[string]string{"run/containers/auth.json": `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`},
			source: filepath.Join(home, "run", "containers", "auth.json")},
		{name: "XDG_CONFIG_HOME", env: map[string]string{"XDG_CONFIG_HOME": filepath.Join(home, "xdg")},
			files:  map[string]string{"xdg/containers/auth.json": `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`},
			source: filepath.Join(home, "xdg", "containers", "auth.json")},
		{name: "Podman's default", files: map[string]string{".config/containers/auth.json": `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`},
			source: filepath.Join(home, ".config", "containers", "auth.json")},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, key := range []string{"DOCKER_CONFIG", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
				t.Setenv(key, c.env[key])
			}
			if c.config != "" {
				write(t, config, c.config)
				defer os.Remove(config)
			}
			for path, content := range c.files {
				write(t, filepath.Join(home, path), content)
				defer os.Remove(filepath.Join(home, path))
			}
			if c.repo == "" {
				c.repo = "registry.test/a/b"
			}
			repo, err := name.NewRepository(c.repo)
			require.NoError(t, err)
			if c.env["DOCKER_CONFIG"] == "" {
				// Docker's package looks up its default place once in a process; named, it is the
				// same place.
				t.Setenv("DOCKER_CONFIG", filepath.Dir(config))
			}
			authenticator, err := authn.DefaultKeychain.Resolve(repo)
			require.NoError(t, err)
			want, err := authenticator.Authorization()
			require.NoError(t, err)

			t.Setenv("DOCKER_CONFIG", c.env["DOCKER_CONFIG"])
			got := registry.FindCredential(t.Context(), new(registry.Client), repo)
			assert.Equal(t, want.Username, got.Username, "user")
			assert.Equal(t, want.Password, got.Password, "password")
			assert.Equal(t, want.IdentityToken, got.IdentityToken, "identity token")
			assert.Equal(t, want.RegistryToken, got.RegistryToken, "registry token")
			assert.Equal(t, c.source, got.Source)
			assert.Equal(t, c.source == "anonymous", got.Note != "", "anonymous says why")
		})
	}
}

// TestKeychainThatFails finds what docker finds where a helper is as helpers are, or says why it
// finds nothing. The environment is the process's, so this test isn't parallel.
func TestKeychainThatFails(t *testing.T) {
	home := t.TempDir()
	bin, tapp := filepath.Join(home, "bin"), filepath.Join(home, "tapp")
	answer := `echo '{"Username":"helped","Secret":"p"}'`
	for path, script := range map[string]string{
		bin + "/docker-credential-fails":     "echo no such thing as a password-of-somebody; exit 2",
		bin + "/docker-credential-complains": "echo password-of-somebody >&2; exit 2",
		bin + "/docker-credential-talkative": answer + "; head -c 2000000 /dev/zero",
		bin + "/docker-credential-babbles":   "echo hello",
		bin + "/docker-credential-talks":     answer + "; echo 'warning: there is an update'",
		bin + "/docker-credential-host":      `if [ "$key" = registry.test ]; then ` + answer + "; else echo \"nothing for $key\"; exit 1; fi",
		bin + "/docker-credential-works":     answer,
		tapp + "/b/docker-credential-theirs": answer,
		tapp + "/b/docker-credential-works":  "echo '{\"Username\":\"theirs\",\"Secret\":\"p\"}'",
	} {
		write(t, path, "#!/bin/sh\nread -r key\n"+script+"\n")
		require.NoError(t, os.Chmod(path, 0o755))
	}
	require.NoError(t, os.Symlink(tapp+"/b", home+"/link"))
	require.NoError(t, os.Symlink(tapp+"/b/docker-credential-theirs", bin+"/docker-credential-linked"))
	path := strings.Join([]string{home + "/link", tapp + "/b", bin, os.Getenv("PATH")}, ":")
	t.Setenv("PATH", path)
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
	complaints := redirectStderr(t)
	file := filepath.Join(home, ".docker", "config.json")
	repo, err := name.NewRepository("registry.test/a/b")
	require.NoError(t, err)
	hub, err := name.NewRepository("nearone/mpc-node")
	require.NoError(t, err)
	entry := `"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}`
	for config, want := range map[string]struct{ user, source, note string }{
		`{"credsStore":"fails"}`:     {note: "docker-credential-fails, which " + file + " names, failed"},
		`{"credsStore":"babbles"}`:   {note: "failed"},
		`{"credsStore":"missing"}`:   {note: "isn't on PATH"},
		`{"credsStore":"theirs"}`:    {note: "isn't on PATH"},
		`{"credsStore":"linked"}`:    {note: "isn't on PATH"},
		`{"credsStore":"talkative"}`: {note: "failed"},
		`{"credsStore":"complains"}`: {note: "failed"},
		// A name can't be a path, which could lead to anything.
		`{"credsStore":"/../` + tapp + `/b/docker-credential-works"}`:          {note: "is no name of a program"},
		`{"credHelpers":{"registry.test":"../x"}}`:                             {note: "docker-credential-../x, which " + file + " names, is no name of a program"},
		`{"credHelpers":{"registry.test/a/b":"x/works"},"credsStore":"works"}`: {user: "helped", source: "docker-credential-works"},
		`{"credsStore":"x\\works"}`:                                            {note: "is no name of a program"},
		`{"credsStore":"x\u0000works"}`:                                        {note: "is no name of a program"},
		`{"credsStore":"../x",` + entry + `}`:                                  {user: "u", source: file},
		`{"auths":`:                                                            {note: "is not a Docker config"},
		`[]`:                                                                   {note: "is not a Docker config"},
		`{"auths":{"registry.test":{"auth":"%"}}}`:                             {note: "is not a Docker config"},
		`{"auths":{"other.test":{"auth":"` + auth("u", "not-ours") + `"}}}`:    {note: "has none for registry.test"},
		`{"auths":{"registry.test/a":{"auth":"` + auth("u", "p") + `"}}}`:      {user: "u", source: file},
		`{"credsStore":"works"}`:                                               {user: "helped", source: "docker-credential-works"},
		`{"credsStore":"talks"}`:                                               {user: "helped", source: "docker-credential-talks"},
		`{"credsStore":"host"}`:                                                {user: "helped", source: "docker-credential-host"},
		`{"credsStore":"missing","credHelpers":{"registry.test":"works"}}`:     {user: "helped", source: "docker-credential-works"},
		`{"credsStore":"missing",` + entry + `}`:                               {user: "u", source: file},
		`{"credsStore":"fails",` + entry + `}`:                                 {user: "u", source: file},
		`{"credHelpers":{"registry.test":""},` + entry + `}`:                   {user: "u", source: file},
	} {
		write(t, file, config)
		c := &registry.Client{ForbiddenHelperDirs: []string{tapp + "/"}}
		got := registry.FindCredential(t.Context(), c, repo)
		assert.Equal(t, want.user, got.Username, config)
		assert.Contains(t, got.Note, want.note, config)
		assert.NotContains(t, got.Note, "password-of-somebody")
		if want.user == "" {
			want.source = "anonymous"
		}
		assert.Equal(t, want.source, got.Source, config)
		assert.Equal(t, path, os.Getenv("PATH"), "for everybody else PATH stays what it is")
	}
	assert.Empty(t, complaints(), "what a helper complains of may be a secret")
	write(t, file, `{"auths":{"docker.io":{"auth":"`+auth("u", "p")+`"}}}`)
	got := registry.FindCredential(t.Context(), new(registry.Client), hub)
	assert.Contains(t, got.Note, "its entry docker.io is Podman's spelling")

	require.NoError(t, os.Remove(file))
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("HOME", "")
	got = registry.FindCredential(t.Context(), new(registry.Client), repo)
	assert.Contains(t, got.Note, "no HOME and no DOCKER_CONFIG set")
}

// redirectStderr returns what is written to the process's stderr from now on.
func redirectStderr(t *testing.T) func() string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	require.NoError(t, err)
	before := os.Stderr
	os.Stderr = file
	t.Cleanup(func() { os.Stderr = before; file.Close() })
	return func() string {
		text, err := os.ReadFile(file.Name())
		require.NoError(t, err)
		return string(text)
	}
}

// TestAVariableThatIsNone: Docker complains on stderr about a DOCKER_AUTH_CONFIG that it doesn't
// take. The environment is the process's, so this test isn't parallel.
func TestAVariableThatIsNone(t *testing.T) {
	home := t.TempDir()
	complaints := redirectStderr(t)
	t.Setenv("DOCKER_CONFIG", home)
	file := filepath.Join(home, "config.json")
	repo, err := name.NewRepository("registry.test/a/b")
	require.NoError(t, err)
	for _, value := range []string{
		"hunter2", `{"auths":{"registry.test":{"auth":"%hunter2"}}}`, `{"auths":{"registry.test":{"password":"hunter2"}}}`,
		`{"auths":{"registry.test":{}}}`, `{"auths":{"registry.test":{"auth":"` + auth("e", "v") + `"}}} {"hunter2":1}`,
		`{"hunter2":{}}`, `["hunter2"]`, `{"auths":{"registry.test":{"auth":"` + auth("", "hunter2") + `"}}}`,
	} {
		t.Setenv("DOCKER_AUTH_CONFIG", value)
		for user, config := range map[string]string{
			"": "{}", "u": `{"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}}`,
		} {
			write(t, file, config)
			got := registry.FindCredential(t.Context(), new(registry.Client), repo)
			assert.Equal(t, user, got.Username, value)
			assert.Contains(t, got.Note, "DOCKER_AUTH_CONFIG is ignored", value)
			assert.NotContains(t, got.Note, "hunter2")
			if user != "" {
				assert.Equal(t, file, got.Source)
			}
		}
	}
	assert.Empty(t, complaints())
}

// TestAHelperThatHangs is ended, with all that it started. The environment is the process's, so
// this test isn't parallel.
func TestAHelperThatHangs(t *testing.T) {
	home := t.TempDir()
	write(t, home+"/docker-credential-hangs", "#!/bin/sh\nsleep 1000 &\necho $! >"+home+"/started\nwait\n")
	require.NoError(t, os.Chmod(home+"/docker-credential-hangs", 0o755))
	t.Setenv("PATH", home+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_CONFIG", home)
	repo, err := name.NewRepository("registry.test/a/b")
	require.NoError(t, err)
	for user, entry := range map[string]string{"": "", "u": `,"auths":{"registry.test":{"auth":"` + auth("u", "p") + `"}}`} {
		write(t, home+"/config.json", `{"credHelpers":{"registry.test":"hangs"}`+entry+`}`)
		c := &registry.Client{Tuning: registry.Tuning{HelperTimeout: time.Second}}
		got := registry.FindCredential(t.Context(), c, repo)
		assert.Equal(t, user, got.Username, "what the file has beside it counts, as it does for docker")
		if user == "" {
			assert.Contains(t, got.Note, "docker-credential-hangs, which "+home+"/config.json names, didn't answer in time")
		}
		id, err := os.ReadFile(home + "/started")
		require.NoError(t, err)
		// What was killed ends once the kernel runs it again, which a busy machine may put off.
		assert.Eventually(t, func() bool {
			stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(id)) + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		}, time.Minute, 10*time.Millisecond, "it still runs: %s", id)
	}
}

// TestHelperAtWork goes all the way from a helper to the token server.
func TestHelperAtWork(t *testing.T) {
	home := t.TempDir()
	img := small(t)
	r := newRegistry(t, launchtest.RegistryOptions{TLS: true, Auth: launchtest.RegistryBearer, IdentityToken: identity})
	ref := push(t, r, img)
	helper(t, filepath.Join(home, "bin", "docker-credential-local"), r.Host(), "<token>", identity)
	write(t, filepath.Join(home, ".docker", "config.json"), `{"credHelpers":{"`+r.Host()+`":"local"}}`)
	t.Setenv("PATH", filepath.Join(home, "bin")+":"+os.Getenv("PATH"))
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
	p := defaults(new(clock))
	p.Keychain, p.Tuning.RootCAs = nil, r.CertPool()
	v, err := resolve(context.Background(), p, ref)
	require.NoError(t, err)
	assert.Equal(t, "docker-credential-local", v.Stats().Credential)
	assert.Equal(t, map[string]int{"token identity token": 1, "manifest Bearer": 1, "blob Bearer": 1}, credentials(r))
}
