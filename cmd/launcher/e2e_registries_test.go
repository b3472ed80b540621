//go:build e2e

package main_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
)

const (
	registryUser     = "somebody"
	registryPassword = "secret"
	// registryUsers is that user and password as htpasswd -B writes them.
	registryUsers = registryUser + ":$2a$04$7h15uDDZD1w67FSpozIiUOQOxg2gmhQCZOwKACfKbuFHgro.nWgQq\n"
	distribution  = "distribution"
)

// registryHosts are names of this machine's loopback, in a mount namespace of whoever is to know
// them.
const registryHosts = "127.0.0.1 localhost registry.test cache.test tokens.test\n"

// TestE2ERegistries pulls from real registries over https with an authority of its own, with each
// way to log in, and has
// `docker pull` do so beside the launcher: CNCF Distribution 3 and, in the long tests, Debian's
// docker-registry.
func TestE2ERegistries(t *testing.T) {
	t.Parallel()
	require.Zero(t, os.Geteuid(), "names of a test's own need root")
	programs := map[string][]string{distribution: {"../../hack/tool", "registry"}}
	if os.Getenv(everywhere) != "" {
		programs["docker-registry"] = []string{"bash", "-c",
			"../../hack/need docker-registry && command -v docker-registry"}
	}
	for name, find := range programs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			find := exec.Command(find[0], find[1:]...)
			find.Stderr = os.Stderr
			program, err := find.Output()
			require.NoError(t, err)
			testRegistries(t, name, strings.TrimSpace(string(program)))
		})
	}
}

func testRegistries(t *testing.T, name, program string) {
	l := newLab(t, program)
	layers, err := launchtest.RandomLayers(7, 200_000, 100)
	require.NoError(t, err)
	img, err := launchtest.Image(launchtest.ImageOptions{OCI: true, Layers: layers})
	require.NoError(t, err)
	index, err := launchtest.Index(launchtest.IndexOptions{
		OCI: true, Images: []v1.Image{img}, Attestations: true,
	})
	require.NoError(t, err)
	digest := l.push(l.serve(""), index)

	open := l.serve(l.tls)
	basic := l.serve(l.tls + fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n",
		l.write("htpasswd", registryUsers)))
	bearer := l.serve(l.tls +
		fmt.Sprintf("auth: {token: {realm: 'https://tokens.test:%d/token', service: %s, issuer: %s, rootcertbundle: %s}}\n",
			l.tokens.Port(), launchtest.TokenService, launchtest.TokenIssuer, l.authority))
	// As clients of another registry, the old one can't log in with Basic, and the new one didn't
	// with a token.
	upstream := bearer
	if name == distribution {
		upstream = basic
	}
	cache := l.serve(l.tls +
		fmt.Sprintf("proxy: {remoteurl: 'https://registry.test:%d', username: %s, password: %s}\n",
			upstream, registryUser, registryPassword))
	engine := newOwnEngine(t, false, "SSL_CERT_FILE="+l.authority, "ENGINE_HOSTS="+l.hosts,
		"HTTPS_PROXY="+l.proxy.URL, "NO_PROXY=registry.test,cache.test,tokens.test")
	for _, port := range []int{open, basic, bearer, cache, l.tokens.Port(),
		l.proxy.Listener.Addr().(*net.TCPAddr).Port} {
		engine.reach(fmt.Sprintf("127.0.0.1:%d", port))
	}
	l.puller = newPuller(t, newOwnEngine(t, false))

	login := func(port int, password string) string {
		auth := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + password))
		return fmt.Sprintf(`{"auths": {"registry.test:%d": {"auth": %q}}}`, port, auth)
	}
	helper := fmt.Sprintf(`{"credHelpers": {"registry.test:%d": "test"}}`, basic)
	for _, c := range []struct {
		name, host, config string
		port               int
		code               exit.Code
	}{
		{"without a login", "registry.test", "{}", open, exit.OK},
		{"with a login that isn't needed", "registry.test", login(open, registryPassword), open,
			exit.OK},
		{"Basic", "registry.test", login(basic, registryPassword), basic, exit.OK},
		{"Basic, nobody", "registry.test", "{}", basic, exit.Refused},
		{"Basic, a wrong password", "registry.test", login(basic, "wrong"), basic, exit.Refused},
		{"Basic, by a helper", "registry.test", helper, basic, exit.OK},
		{"token", "registry.test", login(bearer, registryPassword), bearer, exit.OK},
		{"token, nobody", "registry.test", "{}", bearer, exit.Refused},
		{"token, a wrong password", "registry.test", login(bearer, "wrong"), bearer, exit.Refused},
		{"cache in front of a registry", "cache.test", "{}", cache, exit.OK},
		{"by a proxy", "behind.test", "{}", open, exit.OK}, // a name that only the proxy knows
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.code != exit.OK {
				t.Parallel() // all of these at once, after the others: a refusal is believed after a while
			}
			repository := fmt.Sprintf("%s:%d/nearone/mpc-node", c.host, c.port)
			var environ []string
			if c.host == "behind.test" {
				environ = append(environ, "HTTPS_PROXY="+l.proxy.URL)
			}
			environ = append(environ, "DOCKER_CONFIG="+l.login(c.config))
			tunnels, given := l.tunnels.Load(), l.tokens.Given()

			stdout, stderr, code := l.launcher(t, environ, "digest", repository+":main")
			assert.Equal(t, c.code, code, "digest: %s", stderr)
			if code == exit.OK {
				assert.Contains(t, stdout, digest.String(), "digest")
			}
			stdout, stderr, code = l.launcher(t,
				append(environ, l.settings(t, repository, digest)...),
				"verify", "--skip", "agent,engine,compose", "-o", "json")
			assert.Equal(t, c.code, code, "verify: %s%s", stdout, stderr)
			var report preflight.Report
			require.NoError(t, json.Unmarshal([]byte(stdout), &report))
			_, stderr, code = l.launcher(t, environ, "pull", repository+"@"+digest.String())
			assert.Equal(t, c.code, code, "pull: %s", stderr)
			assert.NotContains(t, stderr, registryPassword)
			if code == exit.OK {
				assert.Equal(t, 1, l.puller.images())
				l.puller.remove()
			}
			assert.Equal(t, c.host == "behind.test", l.tunnels.Load() > tunnels,
				"the proxy was asked")
			assert.Equal(t,
				c.code == exit.OK && (c.port == bearer || c.port == cache && upstream == bearer),
				l.tokens.Given() > given,
				"a token was got")

			pull := exec.Command("docker", "-H", engine.host(), "pull",
				repository+"@"+digest.String())
			pull.Env = append(environ, "PATH="+l.bin+":"+os.Getenv("PATH"), "HOME=/nonexistent")
			out, err := pull.CombinedOutput()
			assert.Equal(t, c.code == exit.OK, err == nil, "docker pull: %s", out)
		})
	}
}

// lab is real registries and what they need.
type lab struct {
	t         *testing.T
	dir       string
	bin       string // with a credential helper
	program   string
	authority string
	tls       string // of a registry's configuration
	hosts     string
	tokens    *launchtest.TokenServer
	proxy     *httptest.Server
	tunnels   atomic.Int64
	puller    *puller
	files     atomic.Int64
}

func newLab(t *testing.T, program string) *lab {
	t.Helper()
	// Below a place that all engines share with this machine.
	dir, err := os.MkdirTemp("/var/tmp", "registries")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	l := &lab{t: t, dir: dir, program: program, bin: filepath.Join(dir, "bin")}
	l.tokens, err = launchtest.NewTokenServer(registryUser, registryPassword)
	require.NoError(t, err)
	t.Cleanup(func() { l.tokens.Close() })
	authority, certificate, key, err := l.tokens.WriteFiles(dir)
	require.NoError(t, err)
	l.authority = authority
	l.tls = fmt.Sprintf("http: {addr: ADDRESS, tls: {certificate: %s, key: %s}}\n", certificate,
		key)
	l.hosts = l.write("hosts", registryHosts)
	l.proxy = httptest.NewServer(http.HandlerFunc(l.tunnel))
	t.Cleanup(l.proxy.Close)
	require.NoError(t, os.Mkdir(l.bin, 0o755))
	script := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\necho '{\"Username\": %q, \"Secret\": %q}'\n",
		registryUser, registryPassword)
	require.NoError(t, os.WriteFile(filepath.Join(l.bin, "docker-credential-test"), []byte(script),
		0o755))
	return l
}

// write writes a file and returns its path.
func (l *lab) write(name, content string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, fmt.Sprintf("%d-%s", l.files.Add(1), name))
	require.NoError(l.t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

// login returns a directory with docker's configuration.
func (l *lab) login(config string) string {
	l.t.Helper()
	dir := filepath.Join(l.dir, fmt.Sprint("config-", l.files.Add(1)))
	require.NoError(l.t, os.Mkdir(dir, 0o755))
	require.NoError(l.t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600))
	return dir
}

// settings returns those of a boot outside a CVM, of an image.
func (l *lab) settings(t *testing.T, repository string, digest v1.Hash) []string {
	config := l.write("user_config",
		fmt.Sprintf("[launcher_config]\nimage = \"%s:main\"\npull_max_retries = 0\n\n[mpc_node_config]\nhome_dir = \"/data\"\n", repository))
	return []string{"PLATFORM=NONTEE", "DOCKER_CONTENT_TRUST=1",
		"DEFAULT_IMAGE_DIGEST=" + digest.String(), "LAUNCHER_CONFIG=" + config,
		"LAUNCHER_SHARED_DIR=" + t.TempDir()}
}

// named is a command that knows the names of the registries.
func (l *lab) named(args ...string) *exec.Cmd {
	return exec.Command("unshare",
		append([]string{"--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`,
			l.hosts}, args...)...)
}

// serve starts a registry of all that was pushed, or a cache with what it fetched, and returns its
// port.
func (l *lab) serve(config string) int {
	l.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(l.t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(l.t, listener.Close())
	address := fmt.Sprintf("127.0.0.1:%d", port)
	if config == "" {
		config = "http: {addr: ADDRESS}\n"
	}
	root := filepath.Join(l.dir, "storage")
	if strings.Contains(config, "proxy:") {
		root = filepath.Join(l.dir, "cache")
	}
	config = strings.Replace(config, "ADDRESS", "'"+address+"'",
		1) +
		fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\n", root)
	cmd := l.named(l.program, "serve", l.write("config.yml", config))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SSL_CERT_FILE=" + l.authority,
		"OTEL_TRACES_EXPORTER=none"}
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(l.t, cmd.Start())
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if l.t.Failed() {
			l.t.Logf("the registry's log:\n%s", &log)
		}
	})
	eventually(l.t, "the registry listens", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return port
}

// push stores an index as registries want it, what it holds first, under the tag main.
func (l *lab) push(port int, index v1.ImageIndex) v1.Hash {
	l.t.Helper()
	base := fmt.Sprintf("http://127.0.0.1:%d/v2/nearone/mpc-node", port)
	do := func(method, target, mediaType string, body []byte) string {
		q, err := http.NewRequest(method, target, bytes.NewReader(body))
		require.NoError(l.t, err)
		q.Header.Set("Content-Type", mediaType)
		answer, err := http.DefaultClient.Do(q)
		require.NoError(l.t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		require.NoError(l.t, err)
		require.Less(l.t, answer.StatusCode, 300, "%s %s: %s", method, target, text)
		return answer.Header.Get("Location")
	}
	blob := func(digest v1.Hash, content []byte) {
		place := do("POST", base+"/blobs/uploads/", "", nil)
		do("PUT", place+"&digest="+digest.String(), "application/octet-stream", content)
	}
	manifests, err := index.IndexManifest()
	require.NoError(l.t, err)
	for _, entry := range manifests.Manifests {
		img, err := index.Image(entry.Digest)
		require.NoError(l.t, err)
		layers, err := img.Layers()
		require.NoError(l.t, err)
		for _, layer := range layers {
			digest, err := layer.Digest()
			require.NoError(l.t, err)
			r, err := layer.Compressed()
			require.NoError(l.t, err)
			content, err := io.ReadAll(r)
			require.NoError(l.t, err)
			blob(digest, content)
		}
		config, err := img.RawConfigFile()
		require.NoError(l.t, err)
		name, err := img.ConfigName()
		require.NoError(l.t, err)
		blob(name, config)
		manifest, err := img.RawManifest()
		require.NoError(l.t, err)
		do("PUT", base+"/manifests/"+entry.Digest.String(), string(entry.MediaType), manifest)
	}
	content, err := index.RawManifest()
	require.NoError(l.t, err)
	do("PUT", base+"/manifests/main", string(manifests.MediaType), content)
	digest, err := index.Digest()
	require.NoError(l.t, err)
	return digest
}

// tunnel is a forward proxy, on which every name is this machine's.
func (l *lab) tunnel(w http.ResponseWriter, q *http.Request) {
	_, port, err := net.SplitHostPort(q.Host)
	if q.Method != http.MethodConnect || err != nil {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	to, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer to.Close()
	l.tunnels.Add(1)
	w.WriteHeader(http.StatusOK)
	from, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer from.Close()
	go func() {
		_, _ = io.Copy(to, buffered)
		_ = to.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(from, to)
}

// launcher runs the launcher to its end.
func (l *lab) launcher(t *testing.T, environ []string, args ...string) (stdout, stderr string,
	code exit.Code) {
	t.Helper()
	cmd := l.named(append([]string{l.puller.binary}, args...)...)
	cmd.Env = append([]string{"PATH=" + l.bin + ":" + os.Getenv("PATH"), "HOME=/nonexistent",
		"SSL_CERT_FILE=" + l.authority,
		"DOCKER_HOST=" + l.puller.engine.host(), "LAUNCHER_SHARED_DIR=" + t.TempDir()}, environ...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	_ = cmd.Run() // the exit code says it
	return out.String(), err.String(), exit.Code(cmd.ProcessState.ExitCode())
}
