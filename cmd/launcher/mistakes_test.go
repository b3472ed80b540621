package main_test

import (
	"bytes"
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
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
	"tee-launcher/pkg/status"
)

// mistake is one that operators make, or a fault that they find at 3 a.m.
type mistake struct {
	name string
	make func(*mistaken) // on a machine on which all is well; nil: nothing is changed there
	tee  bool            // in a CVM; what runs there is supervised
	set  []string        // variables, instead of the right ones
	args []string        // flags of both commands
	code exit.Code
	says []string // what is wrong, where, and what to do: in what each command says
	not  []string // what would mislead

	late     bool   // only a boot can find that out: verify sees nothing wrong
	warns    bool   // a boot goes on; the words stand in verify's warnings
	now      bool   // verify is asked about now, while a launcher is at work
	surround string // a process of its own; its kind
	onStart  func(*launchtest.Machine, launchtest.ContainerInfo) (int, bool)
	machine  launchtest.MachineOptions
}

// mistaken is the machine on which it is made.
type mistaken struct {
	*launchtest.Machine
	t       *testing.T
	dir     string
	environ []string
}

// variable replaces variables.
func (m *mistaken) variable(set ...string) { m.environ = append(m.environ, set...) }

func (m *mistaken) write(path, text string) {
	require.NoError(m.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(m.t, os.WriteFile(path, []byte(text), 0o755))
}

func (m *mistaken) do(err error) { require.NoError(m.t, err) }

// user writes the user config whole.
func user(text string) func(*mistaken) {
	return func(m *mistaken) {
		m.write(m.ConfigFile, strings.ReplaceAll(text, "@registry@", m.Registry.Host()))
	}
}

// rest is what a user config has beside its image.
const rest = "\n[mpc_node_config]\nhome_dir = \"/data\"\n"

// launchers adds lines to [launcher_config].
func launchers(lines string) func(*mistaken) {
	return func(m *mistaken) {
		lines := strings.ReplaceAll(lines, "@digest@", m.Digests[0].String())
		m.do(m.Configure(lines, `home_dir = "/data"`))
	}
}

// nodes adds lines to [mpc_node_config].
func nodes(lines string) func(*mistaken) {
	return func(m *mistaken) { m.do(m.Configure("", lines)) }
}

// list writes the approved list.
func list(text string) func(*mistaken) {
	return func(m *mistaken) {
		m.write(m.Shared("image-digest.bin"), strings.ReplaceAll(text, "@digest@", m.Digests[0].String()))
	}
}

// engine has requests to the engine go wrong.
func engine(match string, status int, message string) func(*mistaken) {
	return func(m *mistaken) {
		m.Engine.Fail(launchtest.EngineFault{Match: match, Times: -1, Status: status, Message: message})
	}
}

// answers has the registry answer so.
func answers(on launchtest.RequestKind, status int) func(*mistaken) {
	return func(m *mistaken) {
		m.Registry.Fail(launchtest.RegistryFault{
			Kind: launchtest.FaultStatus, On: on, Status: status, Times: -1, Message: "so it is",
		})
	}
}

// agent has its requests go wrong.
func agent(kind launchtest.AgentFaultKind, match string) func(*mistaken) {
	return func(m *mistaken) {
		m.Agent.Fail(launchtest.AgentFault{Kind: kind, Match: match, Times: -1})
	}
}

// runs wants that digest, in place of the default.
func runs(digest func(*mistaken) string) func(*mistaken) {
	return func(m *mistaken) { m.variable("DEFAULT_IMAGE_DIGEST=" + digest(m)) }
}

// part is the digest of a part of the first image: "config" or "layer".
func part(which string) func(*mistaken) string {
	return func(m *mistaken) string {
		response, err := http.Get("http://" + m.Registry.Host() + "/v2/" + launchtest.Repository +
			"/manifests/" + m.Digests[0].String())
		m.do(err)
		defer response.Body.Close()
		var manifest struct {
			Config struct{ Digest string }
			Layers []struct{ Digest string }
		}
		m.do(json.NewDecoder(response.Body).Decode(&manifest))
		if which == "config" {
			return manifest.Config.Digest
		}
		return manifest.Layers[0].Digest
	}
}

// elsewhere has the user config name another image; @registry@ is the machine's.
func elsewhere(image string) func(*mistaken) {
	return func(m *mistaken) {
		text, err := os.ReadFile(m.ConfigFile)
		m.do(err)
		own := m.Registry.Host() + "/" + launchtest.Repository + ":main"
		image := strings.ReplaceAll(image, "@registry@", m.Registry.Host())
		m.write(m.ConfigFile, strings.Replace(string(text), own, image, 1))
	}
}

// stands has a handler at the place of the registry.
func stands(handler http.HandlerFunc) func(*mistaken) {
	return func(m *mistaken) {
		server := httptest.NewServer(handler)
		m.t.Cleanup(server.Close)
		elsewhere(server.Listener.Addr().String() + "/nearone/mpc-node")(m)
	}
}

// secure has a registry over https stand at a name, which a proxy leads to.
func secure(name string, o launchtest.RegistryOptions, known bool) func(*mistaken) {
	return func(m *mistaken) {
		o.TLS = true
		r, err := launchtest.NewRegistry(o)
		m.do(err)
		m.t.Cleanup(func() { r.Close() })
		leads(name, r.Host(), m)
		if known {
			m.write(filepath.Join(m.dir, "ca.pem"), string(r.CertPEM()))
			m.variable("SSL_CERT_FILE=" + filepath.Join(m.dir, "ca.pem"))
		}
	}
}

// leads makes a proxy that leads from a name to an address, and an image at that name.
func leads(name, address string, m *mistaken) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		there, err := net.Dial("tcp", address)
		if err != nil || q.Method != http.MethodConnect {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		w.WriteHeader(http.StatusOK)
		here, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(there, buffered)
			there.Close()
		}()
		_, _ = io.Copy(here, there)
		here.Close()
	}))
	m.t.Cleanup(proxy.Close)
	m.variable("HTTPS_PROXY=" + proxy.URL)
	elsewhere(name + "/nearone/mpc-node")(m)
}

// private makes the registry one that wants to be logged in to, and writes Docker's config.
func private(auth launchtest.RegistryAuth, config string) func(*mistaken) {
	return func(m *mistaken) {
		r, err := launchtest.NewRegistry(launchtest.RegistryOptions{
			Auth: auth, Username: "robot", Password: "sesame",
		})
		m.do(err)
		m.t.Cleanup(func() { r.Close() })
		elsewhere(r.Host() + "/nearone/mpc-node")(m)
		if config != "" {
			m.write(filepath.Join(m.dir, "docker", "config.json"), strings.ReplaceAll(config, "@host@", r.Host()))
		}
		m.variable("DOCKER_CONFIG=" + filepath.Join(m.dir, "docker"))
	}
}

// program puts a script on the PATH, which has nothing else.
func program(name, script string) func(*mistaken) {
	return func(m *mistaken) {
		m.write(filepath.Join(m.dir, "bin", name), "#!/bin/sh\n"+script+"\n")
		m.variable("PATH="+filepath.Join(m.dir, "bin"), "LAUNCHER_COMPOSE=")
	}
}

// container makes one from the first image, which an engine has.
func (m *mistaken) container(name string, spec map[string]any) {
	image, err := m.Engine.AddImage(must(launchtest.Image(launchtest.ImageOptions{
		Layers: [][]byte{must(launchtest.RandomLayer(77, 100))},
	})), "other:1")
	m.do(err)
	spec["Image"], spec["Cmd"] = image, []string{"sleep"}
	_, err = m.Engine.Call(http.MethodPost, "/containers/create?name="+name, spec)
	m.do(err)
	_, err = m.Engine.Call(http.MethodPost, "/containers/"+name+"/start", nil)
	m.do(err)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// ends is a workload that ends at once.
func ends(code int, words string) func(*launchtest.Machine, launchtest.ContainerInfo) (int, bool) {
	return func(m *launchtest.Machine, _ launchtest.ContainerInfo) (int, bool) {
		_ = m.Engine.Log("mpc-node", "", words+"\n")
		return code, false
	}
}

// told is what a command says to people.
type told struct {
	text string
	code exit.Code
}

// TestMistakes makes one mistake at a time, and reads what `verify` and `run` say.
func TestMistakes(t *testing.T) {
	t.Parallel()
	rows := mistakes()
	assert.GreaterOrEqual(t, len(rows), 71)
	names := map[string]bool{}
	for _, row := range rows {
		assert.False(t, names[row.name], "%s: twice", row.name)
		names[row.name] = true
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			m := row.world(t)
			verified, ran := row.say(m)
			t.Logf("verify: %d\n%s\nrun: %d\n%s", verified.code, verified.text, ran.code, ran.text)
			assert.Equal(t, row.code, ran.code, "run")
			if row.late {
				assert.Equal(t, exit.OK, verified.code, "verify")
			} else {
				assert.Equal(t, row.code, verified.code, "verify")
			}
			for _, words := range row.says {
				if !row.warns {
					assert.Contains(t, ran.text, words, "run")
				}
				if !row.late {
					assert.Contains(t, verified.text, words, "verify")
				}
			}
			for _, words := range row.not {
				assert.NotContains(t, ran.text, words, "run")
				assert.NotContains(t, verified.text, words, "verify")
			}
			for name, text := range map[string]string{"run": withoutLog(ran.text), "verify": verified.text} {
				assert.LessOrEqual(t, len(text), 1500, "%s: nobody reads that at 3 a.m.", name)
			}
			if ran.code != exit.OK {
				assert.Contains(t, ran.text, "hint: ", "what to do")
			}
		})
	}
}

// withoutLog is what isn't a record of the log.
func withoutLog(stderr string) (text string) {
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "time=") && !strings.HasPrefix(line, status.Prefix) {
			text += line
		}
	}
	return text
}

func (row mistake) world(t *testing.T) *mistaken {
	t.Helper()
	var m *launchtest.Machine
	o := row.machine
	if row.onStart != nil {
		o.Engine.OnStart = func(c launchtest.ContainerInfo) (int, bool) { return row.onStart(m, c) }
	}
	m, err := launchtest.NewMachine(o)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	w := &mistaken{Machine: m, t: t, dir: t.TempDir(), environ: onMachine(m)}
	require.NoError(t, os.Mkdir(filepath.Join(w.dir, "tmp"), 0o700))
	text, err := os.ReadFile(m.ConfigFile)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	port := fmt.Sprint(listener.Addr().(*net.TCPAddr).Port)
	w.write(m.ConfigFile, strings.Replace(string(text), "11780", port, 1))
	if !row.tee {
		w.variable("PLATFORM=NONTEE")
	}
	if row.make != nil {
		row.make(w)
	}
	for _, v := range row.set {
		w.variable(strings.ReplaceAll(v, "@shared@", m.SharedDir))
	}
	return w
}

// say is what verify finds, and what run ends with.
func (row mistake) say(m *mistaken) (verified, ran told) {
	verify := append([]string{"verify", "-o", "json"}, row.args...)
	if row.now {
		verify = append(verify, "--for", "now")
	}
	run := append([]string{"run"}, row.args...)
	stdout, stderr, code := row.command(m, verify)
	verified.code = code
	if stdout == "" {
		verified.text = stderr // the command line itself is wrong
	}
	var report preflight.Report
	if json.Unmarshal([]byte(stdout), &report) == nil {
		for _, check := range report.Checks {
			for _, f := range check.Findings {
				if f.Severity == preflight.Error || row.warns && f.Severity == preflight.Warning {
					verified.text += fmt.Sprintf("%s %s: %s: %s\n%s\n", f.Code, f.Severity, check.Check, f.Found, strings.Join(f.Fix, "\n"))
				}
			}
		}
	}
	_, stderr, code = row.command(m, run)
	ran.code = code
	for line := range strings.Lines(stderr) {
		if strings.HasPrefix(line, status.Prefix) {
			continue // for programs
		}
		if !strings.HasPrefix(line, "time=") || strings.Contains(line, "level=WARN") {
			ran.text += line
		}
	}
	return verified, ran
}

func (row mistake) command(m *mistaken, args []string) (stdout, stderr string, code exit.Code) {
	if row.surround == "" {
		return runUntilSupervised(m.t, m.environ, args...)
	}
	out := m.t.TempDir()
	m.do(os.Chmod(out, 0o777))
	told, err := json.Marshal(orders{[][]string{args}, out})
	m.do(err)
	cmd := exec.CommandContext(m.t.Context(), os.Args[0], "launchers")
	own := os.Geteuid()
	attributes := &syscall.SysProcAttr{}
	inside := func(uid int) {
		attributes.Cloneflags |= syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: own, Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getegid(), Size: 1}}
	}
	switch row.surround {
	case ownProcess:
	case unprivileged:
		if own == 0 {
			inside(1000)
		}
	default:
		inside(0)
		attributes.Cloneflags |= syscall.CLONE_NEWNS
		cmd = exec.CommandContext(m.t.Context(), "/bin/sh", "-ec",
			strings.ReplaceAll(row.surround, "@shared@", m.SharedDir)+"\nexec \"$0\" launchers", os.Args[0])
	}
	cmd.SysProcAttr = attributes
	var around bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(told), &around, &around
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "TMPDIR=" + filepath.Join(m.dir, "tmp"), "HOME=" + m.dir,
	}, m.environ...)
	if err := cmd.Run(); row.surround != ownProcess && (around.Len() > 0 || err != nil) {
		refuses := m.t.Skip
		if os.Getenv("CI") != "" { // where nobody reads what was left out
			refuses = m.t.Fatal
		}
		refuses("this machine doesn't let a test mount, or give up rights: ", err, around.String())
	} else {
		require.NoError(m.t, err, "%s", around.String())
	}
	read := func(stream string) string {
		text, err := os.ReadFile(filepath.Join(out, "00 "+args[0]+" "+stream))
		m.do(err)
		return string(text)
	}
	stdout, stderr = read("stdout"), read("stderr")
	i := strings.LastIndex(stderr, " ended with ")
	_, err = fmt.Sscanf(stderr[i:], " ended with %d\n", &code)
	m.do(err)
	if i = strings.LastIndexByte(stderr[:i], '\n'); i >= 0 {
		return stdout, stderr[:i+1], code
	}
	return stdout, "", code
}

// The surroundings of a process.
const (
	ownProcess   = "process"
	unprivileged = "unprivileged" // for whom a file's mode counts
	readOnly     = "mount -t tmpfs -o ro none '@shared@'"
	full         = "mount -t tmpfs -o size=4k none '@shared@'; dd if=/dev/zero of='@shared@'/fill bs=4k count=1 status=none"
)
