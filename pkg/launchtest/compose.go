package launchtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"gopkg.in/yaml.v3"

	"tee-launcher/pkg/internal/unixhttp"
)

// ComposeVersion is the version that the compose double gives itself out for.
const ComposeVersion = "5.0.2"

// ComposeFault makes the compose double go wrong. No environment reaches it, so a fault is an
// argument before all others: "--fail=" and the fault.
type ComposeFault string

// The faults.
const (
	ComposeOld    ComposeFault = "old"    // says that it is Compose 1.29.2
	ComposeCreate ComposeFault = "create" // ends with 1 before it changes anything
	ComposeLate   ComposeFault = "late"   // does everything, and ends with 1
	ComposeSilent ComposeFault = "silent" // does nothing, and ends with 0
	ComposeHang   ComposeFault = "hang"   // waits until it is killed
	ComposeNoise  ComposeFault = "noise"  // as ComposeCreate, after a few MiB of output on both streams
	ComposeTamper ComposeFault = "tamper" // creates the container with another command
)

// ComposeMain is a double of a stand-alone Compose v2 that knows what the launcher asks of one:
// "version --short" and "--ansi never -p NAME -f - up --no-start", with the effects that the real
// one has on the engine at DOCKER_HOST. A test binary becomes it by calling ComposeMain from
// TestMain with the arguments after its own name and the word that chose it; the result is the exit
// code. It is best given to syscall.Exit, since os.Exit(0) takes a second in a binary with the race
// detector.
//
// It refuses to run in an environment that wasn't built from nothing, in a working directory that
// isn't empty, and when it is asked for anything else: a file that it doesn't know to the last key,
// a variable in it, a container that would have to be made anew.
func ComposeMain(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(stderr, "compose double:", err)
		return 125
	}
	return ComposeIn(os.Environ(), dir, args, stdin, stdout, stderr)
}

// ComposeIn is ComposeMain in other surroundings than those of the process, for a test that plays
// Compose itself.
func ComposeIn(environ []string, dir string, args []string,
	stdin io.Reader, stdout, stderr io.Writer) int {
	var fault ComposeFault
	if len(args) > 0 && strings.HasPrefix(args[0], "--fail=") {
		fault = ComposeFault(strings.TrimPrefix(args[0], "--fail="))
		args = args[1:]
	}
	socket, err := composeSurroundings(environ, dir)
	if err != nil {
		fmt.Fprintln(stderr, "compose double:", err)
		return 125
	}
	if err := composeRun(fault, socket, args, stdin, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// composeSurroundings refuses whatever could let somebody else's settings in, and returns the
// socket of the engine.
func composeSurroundings(environ []string, dir string) (socket string, err error) {
	env := map[string]string{}
	for _, setting := range environ {
		name, value, _ := strings.Cut(setting, "=")
		if !slices.Contains([]string{"PATH", "HOME", "DOCKER_CONFIG", "DOCKER_HOST"}, name) {
			return "", fmt.Errorf("the environment has %s", name)
		}
		env[name] = value
	}
	for _, name := range []string{dir, env["HOME"], env["DOCKER_CONFIG"]} {
		entries, err := os.ReadDir(name)
		if err != nil && (name == dir || !errors.Is(err, os.ErrNotExist)) {
			return "", err
		}
		if len(entries) > 0 {
			return "", fmt.Errorf("%s is not empty: %s", name, entries[0].Name())
		}
	}
	socket, ok := strings.CutPrefix(env["DOCKER_HOST"], "unix://")
	if !ok {
		return "", fmt.Errorf("DOCKER_HOST is %q", env["DOCKER_HOST"])
	}
	return socket, nil
}

func composeRun(fault ComposeFault, socket string, args []string,
	stdin io.Reader, stdout, stderr io.Writer) error {
	switch {
	case fault == ComposeHang:
		terminated, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		fmt.Fprintln(stderr, "compose double: waiting")
		<-terminated.Done()
		return errors.New("terminated")
	case slices.Equal(args, []string{"version", "--short"}):
		version := ComposeVersion
		if fault == ComposeOld {
			version = "1.29.2"
		}
		fmt.Fprintln(stdout, version)
		return nil
	case len(args) != 8 || !slices.Equal(slices.Concat(args[:3], args[4:]),
		[]string{"--ansi", "never", "-p", "-f", "-", "up", "--no-start"}):
		return fmt.Errorf("the compose double does not know %q", args)
	}
	text, err := io.ReadAll(stdin)
	if err != nil {
		return err
	}
	switch fault {
	case ComposeSilent:
		return nil
	case ComposeNoise:
		for range 40_000 {
			fmt.Fprintln(stdout, strings.Repeat("noise ", 10))
			fmt.Fprintln(stderr, strings.Repeat("noise ", 10))
		}
		return dockerWords("Error response from daemon: injected")
	case ComposeCreate:
		return dockerWords("Error response from daemon: injected")
	}
	p, err := parseCompose(args[3], text)
	if err != nil {
		return err
	}
	if fault == ComposeTamper {
		for _, s := range p.Services {
			s.Command = []string{"/bin/sh"}
		}
	}
	c := &composeDouble{stderr: stderr, client: unixhttp.Client(socket, true), socket: socket}
	if err := c.up(context.Background(), p); err != nil || fault != ComposeLate {
		return err
	}
	return dockerWords("Error response from daemon: injected")
}

// composeProject is as much of a compose file as the double knows; anything else in it is refused.
type composeProject struct {
	Name     string                     `yaml:"name"`
	Services map[string]*composeService `yaml:"services"`
	Volumes  map[string]composeVolume   `yaml:"volumes"`
}

type composeService struct {
	Image         string            `yaml:"image"`
	ContainerName string            `yaml:"container_name"`
	PullPolicy    string            `yaml:"pull_policy"`
	Restart       string            `yaml:"restart"`
	SecurityOpt   []string          `yaml:"security_opt"`
	Command       []string          `yaml:"command"`
	Environment   map[string]string `yaml:"environment"`
	Labels        map[string]string `yaml:"labels"`
	Ports         []string          `yaml:"ports"`
	Volumes       []composeMount    `yaml:"volumes"`

	imageID string
}

type composeVolume struct {
	Name     string `yaml:"name"`
	External bool   `yaml:"external"`
}

type composeMount struct {
	Type     string `yaml:"type"`
	Source   string `yaml:"source"`
	Target   string `yaml:"target"`
	ReadOnly bool   `yaml:"read_only"`
	Bind     struct {
		CreateHostPath bool `yaml:"create_host_path"`
	} `yaml:"bind"`
}

func parseCompose(name string, text []byte) (*composeProject, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, errors.New("empty compose file")
	}
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		return nil, fmt.Errorf("failed to parse -: %w", err)
	}
	if err := composeLiteral(&node); err != nil {
		return nil, err
	}
	plain, err := yaml.Marshal(&node)
	if err != nil {
		return nil, err
	}
	var p composeProject
	decoder := yaml.NewDecoder(bytes.NewReader(plain))
	decoder.KnownFields(true)
	if err := decoder.Decode(&p); err != nil {
		return nil, fmt.Errorf("validating -: %w", err)
	}
	p.Name = name
	for key, s := range p.Services {
		if s.PullPolicy != "never" {
			return nil, fmt.Errorf("service %q may be pulled", key)
		}
		for _, m := range s.Volumes {
			if m.Type == "volume" && !p.Volumes[m.Source].External {
				return nil, fmt.Errorf("service %q refers to undefined volume %s", key, m.Source)
			}
		}
	}
	return &p, nil
}

// composeLiteral makes each $$ a $, as Compose does; a variable, of which no file has a need, is
// refused.
func composeLiteral(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		parts := strings.Split(node.Value, "$$")
		node.Value = strings.Join(parts, "$")
		if strings.Contains(strings.Join(parts, ""), "$") {
			return fmt.Errorf("invalid interpolation format for %q", node.Value)
		}
	}
	for _, child := range node.Content {
		if err := composeLiteral(child); err != nil {
			return err
		}
	}
	return nil
}

type composeDouble struct {
	stderr io.Writer
	client *http.Client
	socket string
}

// up brings the engine to what the project says, in the order in which Compose does it.
func (c *composeDouble) up(ctx context.Context, p *composeProject) error {
	for _, s := range p.Services {
		var image struct{ ID string }
		if err := c.call(ctx, http.MethodGet, "/images/"+s.Image+"/json", nil, &image); err != nil {
			return fmt.Errorf("unable to get image '%s': %w", s.Image, err)
		}
		s.imageID = image.ID
	}
	if err := c.ensureNetwork(ctx, p.Name); err != nil {
		return err
	}
	for _, v := range p.Volumes {
		if found, err := c.exists(ctx, "/volumes/"+v.Name); err != nil {
			return err
		} else if !found {
			return fmt.Errorf("external volume %q not found", v.Name)
		}
	}
	filters := must(json.Marshal(map[string][]string{
		"label": {"com.docker.compose.config-hash", "com.docker.compose.project=" + p.Name}}))
	query := url.Values{"all": {"1"}, "filters": {string(filters)}}
	var existing []composeContainer
	target := "/containers/json?" + query.Encode()
	if err := c.call(ctx, http.MethodGet, target, nil, &existing); err != nil {
		return err
	}
	for name, s := range p.Services {
		if err := c.ensureService(ctx, p, name, s, existing); err != nil {
			return err
		}
	}
	return nil
}

type composeContainer struct {
	ID     string
	Labels map[string]string
}

func (c *composeDouble) ensureNetwork(ctx context.Context, project string) error {
	name := project + "_default"
	if found, err := c.exists(ctx, "/networks/"+name); found || err != nil {
		return err
	}
	labels := map[string]string{
		"com.docker.compose.network": "default", "com.docker.compose.project": project,
		"com.docker.compose.version": ComposeVersion,
	}
	return c.call(ctx, http.MethodPost, "/networks/create",
		map[string]any{"Name": name, "Labels": labels}, nil)
}

// ensureService makes a service's container unless it is there, made by Compose from the same file
// and image. One that would have to be made anew is refused: the launcher leaves none to Compose.
func (c *composeDouble) ensureService(ctx context.Context, p *composeProject, name string,
	s *composeService, existing []composeContainer) error {
	hash := composeHash(s)
	for _, old := range existing {
		if old.Labels["com.docker.compose.service"] != name {
			continue
		}
		if old.Labels["com.docker.compose.config-hash"] != hash ||
			old.Labels["com.docker.compose.image"] != s.imageID {
			return fmt.Errorf("the compose double makes no container anew: %s", old.ID)
		}
		return nil
	}
	labels := map[string]string{
		"com.docker.compose.config-hash": hash, "com.docker.compose.container-number": "1",
		"com.docker.compose.image": s.imageID, "com.docker.compose.oneoff": "False",
		"com.docker.compose.project": p.Name, "com.docker.compose.service": name,
		"com.docker.compose.version": ComposeVersion,
	}
	maps.Copy(labels, s.Labels)
	host := map[string]any{
		"NetworkMode": p.Name + "_default", "SecurityOpt": s.SecurityOpt,
		"RestartPolicy": map[string]string{"Name": s.Restart},
	}
	var binds []string
	var mounts []map[string]any
	for _, m := range s.Volumes {
		if m.Type == "bind" && !m.Bind.CreateHostPath {
			mounts = append(mounts, map[string]any{
				"Type": "bind", "Source": m.Source, "Target": m.Target, "ReadOnly": m.ReadOnly})
			continue
		}
		source, mode := m.Source, "rw"
		if m.Type == "volume" {
			source = p.Volumes[m.Source].Name
		}
		if m.ReadOnly {
			mode = "ro"
		}
		binds = append(binds, source+":"+m.Target+":"+mode)
	}
	host["Binds"], host["Mounts"] = binds, mounts
	exposed, bindings := map[string]any{}, map[string]any{}
	for _, port := range s.Ports {
		published, target, _ := strings.Cut(port, ":")
		exposed[target+"/tcp"] = struct{}{}
		bindings[target+"/tcp"] = []map[string]string{{"HostIp": "", "HostPort": published}}
	}
	host["PortBindings"] = bindings
	var env []string
	for _, key := range slices.Sorted(maps.Keys(s.Environment)) {
		env = append(env, key+"="+s.Environment[key])
	}
	body := map[string]any{
		"Image": s.Image, "Cmd": s.Command, "Env": env, "Labels": labels, "ExposedPorts": exposed,
		"AttachStdout": true, "AttachStderr": true, "HostConfig": host,
		"NetworkingConfig": map[string]any{"EndpointsConfig": map[string]any{
			p.Name + "_default": map[string]any{"Aliases": []string{s.ContainerName, name}}}},
	}
	fmt.Fprintf(c.stderr, " Container %s Creating \n", s.ContainerName)
	return c.call(ctx, http.MethodPost, "/containers/create?name="+s.ContainerName, body, nil)
}

// composeHash is the digest by which a change of a configuration is noticed.
func composeHash(s *composeService) string {
	return strings.TrimPrefix(digestOf(must(json.Marshal(s))), "sha256:")
}

// dockerWords is an error as Docker's client words it.
type dockerWords string

func (w dockerWords) Error() string { return string(w) }

// daemonRefusal is a refusal of the engine as Docker's client words it.
type daemonRefusal struct {
	status  int
	message string
}

func (r *daemonRefusal) Error() string { return "Error response from daemon: " + r.message }

// exists asks for something that may be missing.
func (c *composeDouble) exists(ctx context.Context, target string) (bool, error) {
	err := c.call(ctx, http.MethodGet, target, nil, nil)
	var refused *daemonRefusal
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

// call does one request; an answer of 400 and above is an error in the words of Docker's client.
func (c *composeDouble) call(ctx context.Context, method, target string, body, answer any) error {
	content := bytes.NewReader(must(json.Marshal(body)))
	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+target, content)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.client.Do(request)
	if err != nil {
		return dockerWords("Cannot connect to the Docker daemon at unix://" + c.socket +
			". Is the docker daemon running?")
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 400 {
		var refused struct{ Message string }
		if json.Unmarshal(text, &refused) != nil {
			refused.Message = strings.TrimSpace(string(text))
		}
		return &daemonRefusal{response.StatusCode, refused.Message}
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}
