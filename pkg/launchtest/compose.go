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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"tee-launcher/pkg/internal/unixhttp"
)

// ComposeVersion is the version that the compose double gives itself out for.
const ComposeVersion = "5.0.2"

// ComposeFault makes the compose double go wrong. No environment reaches it, so a fault is an argument before all
// others: "--fail=" and the fault.
type ComposeFault string

// The faults.
const (
	ComposeOld    ComposeFault = "old"    // says that it is Compose 1.29.2
	ComposeCreate ComposeFault = "create" // ends with 1 before it changes anything
	ComposeLate   ComposeFault = "late"   // does everything, and ends with 1
	ComposeSilent ComposeFault = "silent" // does nothing, and ends with 0
	ComposeHang   ComposeFault = "hang"   // reads its input and waits until it is killed
	ComposeNoise  ComposeFault = "noise"  // as ComposeCreate, after a few MiB of output on both streams
	ComposeTamper ComposeFault = "tamper" // creates the container with another command
	ComposeRename ComposeFault = "rename" // is gone before a recreated container gets its name
)

// ComposeMain is a double of a stand-alone Compose v2: "version" and "-p NAME -f - up --no-start", with the effects that
// the real one has on the engine at DOCKER_HOST, which may be a double or a real one. A test binary becomes it by
// calling ComposeMain from TestMain with the arguments after its own name and the word that chose it; the result is the
// exit code. It is best given to syscall.Exit, since os.Exit(0) takes a second in a binary with the race detector.
//
// It refuses to run in an environment that wasn't built from nothing, in a working directory that isn't empty, and when it
// is asked for anything that the launcher has no business asking.
func ComposeMain(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &composeDouble{stdin: stdin, stdout: stdout, stderr: stderr, env: map[string]string{}}
	for len(args) > 0 && strings.HasPrefix(args[0], "--fail=") {
		c.fault = ComposeFault(strings.TrimPrefix(args[0], "--fail="))
		args = args[1:]
	}
	if err := errors.Join(c.checkSurroundings(os.Environ()), c.checkFault()); err != nil {
		fmt.Fprintln(stderr, "compose double:", err)
		return 125
	}
	if err := c.run(context.Background(), args); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

type composeDouble struct {
	fault          ComposeFault
	stdin          io.Reader
	stdout, stderr io.Writer
	env            map[string]string
	dir            string
	client         *http.Client
	socket         string
}

func (c *composeDouble) checkFault() error {
	known := []ComposeFault{"", ComposeOld, ComposeCreate, ComposeLate, ComposeSilent, ComposeHang, ComposeNoise, ComposeTamper, ComposeRename}
	if !slices.Contains(known, c.fault) {
		return fmt.Errorf("unknown fault %q", c.fault)
	}
	return nil
}

// checkSurroundings refuses whatever could let somebody else's settings in.
func (c *composeDouble) checkSurroundings(environ []string) error {
	for _, setting := range environ {
		name, value, _ := strings.Cut(setting, "=")
		if !slices.Contains([]string{"PATH", "HOME", "DOCKER_CONFIG", "DOCKER_HOST"}, name) {
			return fmt.Errorf("the environment has %s", name)
		}
		c.env[name] = value
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	c.dir = dir
	for _, name := range []string{dir, c.env["HOME"], c.env["DOCKER_CONFIG"]} {
		entries, err := os.ReadDir(name)
		if err != nil && (name == dir || !errors.Is(err, os.ErrNotExist)) {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("%s is not empty: %s", name, entries[0].Name())
		}
	}
	socket, ok := strings.CutPrefix(c.env["DOCKER_HOST"], "unix://")
	if !ok {
		return fmt.Errorf("DOCKER_HOST is %q", c.env["DOCKER_HOST"])
	}
	c.socket, c.client = socket, unixhttp.Client(socket, true)
	return nil
}

func (c *composeDouble) run(ctx context.Context, args []string) error {
	var project, file string
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		if len(args) < 2 {
			return fmt.Errorf("flag needs an argument: %s", args[0])
		}
		switch args[0] {
		case "-p", "--project-name":
			project = args[1]
		case "-f", "--file":
			file = args[1]
		case "--ansi", "--progress":
		default:
			return fmt.Errorf("unknown flag: %s", args[0])
		}
		args = args[2:]
	}
	if len(args) == 0 {
		return errors.New("usage: compose [-p NAME] [-f -] up --no-start | version")
	}
	switch args[0] {
	case "version":
		return c.version(args[1:])
	case "up":
		return c.up(ctx, project, file, args[1:])
	}
	return fmt.Errorf("unknown docker command: \"compose %s\"", args[0])
}

func (c *composeDouble) version(args []string) error {
	switch {
	case c.fault == ComposeHang:
		time.Sleep(time.Hour)
	case c.fault == ComposeOld && slices.Contains(args, "--short"):
		fmt.Fprintln(c.stdout, "1.29.2")
	case c.fault == ComposeOld:
		fmt.Fprintln(c.stdout, "docker-compose version 1.29.2, build unknown")
	case len(args) == 0:
		fmt.Fprintln(c.stdout, "Docker Compose version v"+ComposeVersion)
	case slices.Equal(args, []string{"--short"}):
		fmt.Fprintln(c.stdout, ComposeVersion)
	case slices.Equal(args, []string{"--format", "json"}), slices.Equal(args, []string{"-f", "json"}):
		fmt.Fprintf(c.stdout, "{\"version\":\"v%s\"}\n", ComposeVersion)
	default:
		return fmt.Errorf("unknown flag: %s", args[0])
	}
	return nil
}

func (c *composeDouble) up(ctx context.Context, project, file string, args []string) error {
	var noStart, force, never, removeOrphans bool
	for _, arg := range args {
		switch arg {
		case "--no-start":
			noStart = true
		case "--force-recreate":
			force = true
		case "--no-recreate":
			never = true
		case "--remove-orphans":
			removeOrphans = true
		case "--no-build", "--quiet-pull", "--pull=never":
		default:
			return fmt.Errorf("unknown flag: %s", arg)
		}
	}
	switch {
	case !noStart:
		return errors.New("the compose double starts nothing: --no-start is missing")
	case force && never:
		return errors.New("--force-recreate and --no-recreate are incompatible")
	case project == "" || file != "-":
		return errors.New("the compose double wants -p NAME and -f -")
	}
	text, err := io.ReadAll(c.stdin)
	if err != nil {
		return err
	}
	switch c.fault {
	case ComposeSilent:
		return nil
	case ComposeHang:
		time.Sleep(time.Hour)
	case ComposeNoise:
		for range 40_000 {
			fmt.Fprintln(c.stdout, strings.Repeat("noise ", 10))
			fmt.Fprintln(c.stderr, strings.Repeat("noise ", 10))
		}
		return dockerWords("Error response from daemon: injected")
	case ComposeCreate:
		return dockerWords("Error response from daemon: injected")
	}
	p, err := c.parse(project, text)
	if err != nil {
		return err
	}
	if err := c.converge(ctx, p, force, never, removeOrphans); err != nil {
		return err
	}
	if c.fault == ComposeLate {
		return dockerWords("Error response from daemon: injected")
	}
	return nil
}

// composeProject is as much of a compose file as the double knows; anything else in it is refused.
type composeProject struct {
	Name     string                     `yaml:"name"`
	Services map[string]*composeService `yaml:"services"`
	Volumes  map[string]*composeVolume  `yaml:"volumes"`
}

type composeService struct {
	Image         string               `yaml:"image"`
	ContainerName string               `yaml:"container_name"`
	PullPolicy    string               `yaml:"pull_policy" json:"-"`
	Restart       string               `yaml:"restart"`
	SecurityOpt   []string             `yaml:"security_opt"`
	Entrypoint    []string             `yaml:"entrypoint"`
	Command       []string             `yaml:"command"`
	Environment   composeMapping       `yaml:"environment"`
	Labels        composeMapping       `yaml:"labels"`
	NetworkMode   string               `yaml:"network_mode"`
	Ports         []composePort        `yaml:"ports"`
	Volumes       []composeVolumeMount `yaml:"volumes"`

	imageID string
}

type composeVolume struct {
	Name     string `yaml:"name"`
	External bool   `yaml:"external"`
}

type composeVolumeMount struct {
	Type     string `yaml:"type"`
	Source   string `yaml:"source"`
	Target   string `yaml:"target"`
	ReadOnly bool   `yaml:"read_only"`
	Bind     struct {
		CreateHostPath *bool `yaml:"create_host_path"`
	} `yaml:"bind"`
}

// UnmarshalYAML also reads the short form, source:target[:mode].
func (m *composeVolumeMount) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.ScalarNode {
		type long composeVolumeMount
		return node.Decode((*long)(m))
	}
	fields := strings.Split(node.Value, ":")
	if len(fields) < 2 || len(fields) > 3 {
		return fmt.Errorf("invalid volume %q", node.Value)
	}
	m.Type, m.Source, m.Target = "volume", fields[0], fields[1]
	if strings.HasPrefix(m.Source, "/") {
		m.Type = "bind"
	}
	m.ReadOnly = len(fields) == 3 && slices.Contains(strings.Split(fields[2], ","), "ro")
	return nil
}

// composePort is a published port.
type composePort struct {
	Target    int    `yaml:"target"`
	Published string `yaml:"published"`
	Protocol  string `yaml:"protocol"`
	HostIP    string `yaml:"host_ip"`
	Mode      string `yaml:"mode"`
}

// UnmarshalYAML also reads the short form, host:container[/protocol].
func (p *composePort) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.ScalarNode {
		type long composePort
		return node.Decode((*long)(p))
	}
	value, protocol, _ := strings.Cut(node.Value, "/")
	host, target, ok := strings.Cut(value, ":")
	number, err := strconv.Atoi(target)
	if !ok || err != nil {
		return fmt.Errorf("invalid containerPort: %s", node.Value)
	}
	p.Target, p.Published, p.Protocol = number, host, protocol
	return nil
}

// composeMapping is a mapping that may also be written as a list of KEY=VALUE.
type composeMapping map[string]string

// UnmarshalYAML reads both forms.
func (m *composeMapping) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.SequenceNode {
		return node.Decode((*map[string]string)(m))
	}
	var list []string
	if err := node.Decode(&list); err != nil {
		return err
	}
	*m = composeMapping{}
	for _, setting := range list {
		key, value, _ := strings.Cut(setting, "=")
		(*m)[key] = value
	}
	return nil
}

func (c *composeDouble) parse(name string, text []byte) (*composeProject, error) {
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		return nil, fmt.Errorf("failed to parse -: %w", err)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, errors.New("empty compose file")
	}
	if err := c.interpolate(&node, ""); err != nil {
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
	for key, volume := range p.Volumes {
		if volume == nil {
			volume = &composeVolume{}
			p.Volumes[key] = volume
		}
		if volume.Name == "" && volume.External {
			volume.Name = key
		} else if volume.Name == "" {
			volume.Name = name + "_" + key
		}
	}
	for key, service := range p.Services {
		if service == nil || service.Image == "" {
			return nil, fmt.Errorf("service %q has neither an image nor a build context specified: invalid compose project", key)
		}
		for _, m := range service.Volumes {
			if m.Type != "bind" && m.Type != "volume" {
				return nil, fmt.Errorf("the compose double does not know volumes of type %q", m.Type)
			}
			if m.Type == "volume" && p.Volumes[m.Source] == nil {
				return nil, fmt.Errorf("service %q refers to undefined volume %s: invalid compose project", key, m.Source)
			}
		}
	}
	if len(p.Services) == 0 {
		return nil, errors.New("no service selected")
	}
	return &p, nil
}

// interpolate does to every value what Compose does: $NAME and ${NAME} become what the environment says, $$ becomes $.
func (c *composeDouble) interpolate(node *yaml.Node, path string) error {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!str" {
		value, err := c.expand(node.Value, path)
		node.Value = value
		return err
	}
	if node.Tag == "!!null" {
		node.Value = "null" // written out, as nothing it would come back as an empty text
	}
	for i, child := range node.Content {
		at := path
		if node.Kind == yaml.MappingNode {
			if i%2 == 0 {
				continue
			}
			at = strings.TrimPrefix(path+"."+node.Content[i-1].Value, ".")
		}
		if err := c.interpolate(child, at); err != nil {
			return err
		}
	}
	return nil
}

func (c *composeDouble) expand(text, path string) (string, error) {
	variable := regexp.MustCompile(`\$(?:(\$)|([_a-zA-Z][_a-zA-Z0-9]*)|\{([_a-zA-Z][_a-zA-Z0-9]*)\}|(.?))`)
	var err error
	text = variable.ReplaceAllStringFunc(text, func(match string) string {
		m := variable.FindStringSubmatch(match)
		name := m[2] + m[3]
		switch {
		case m[1] != "":
			return "$"
		case name == "":
			err = fmt.Errorf("invalid interpolation format for %s.\nYou may need to escape any $ with another $.\n%s", path, text)
			return ""
		}
		value, ok := c.env[name]
		if !ok {
			fmt.Fprintf(c.stderr, "level=warning msg=\"The \\\"%s\\\" variable is not set. Defaulting to a blank string.\"\n", name)
		}
		return value
	})
	return text, err
}

// converge brings the engine to what the project says, in the order in which Compose does it.
func (c *composeDouble) converge(ctx context.Context, p *composeProject, force, never, removeOrphans bool) error {
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		if err := c.findImage(ctx, p.Services[name]); err != nil {
			return err
		}
	}
	if err := c.ensureNetwork(ctx, p); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(p.Volumes)) {
		if err := c.ensureVolume(ctx, p, key); err != nil {
			return err
		}
	}
	var existing []composeContainer
	filters, err := json.Marshal(map[string][]string{"label": {"com.docker.compose.config-hash", "com.docker.compose.project=" + p.Name}})
	if err != nil {
		return err
	}
	query := url.Values{"all": {"1"}, "filters": {string(filters)}}
	if err := c.call(ctx, http.MethodGet, "/containers/json?"+query.Encode(), nil, &existing); err != nil {
		return err
	}
	for _, container := range existing {
		if p.Services[container.Labels["com.docker.compose.service"]] != nil {
			continue
		}
		if !removeOrphans {
			fmt.Fprintf(c.stderr, "level=warning msg=\"Found orphan containers (%v) for this project.\"\n", container.Names)
			continue
		}
		if err := c.remove(ctx, container.ID); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		if err := c.ensureService(ctx, p, name, existing, force, never); err != nil {
			return err
		}
	}
	return nil
}

type composeContainer struct {
	ID     string `json:"Id"`
	Names  []string
	Labels map[string]string
	Mounts []struct{ Type, Name string }
}

// findImage asks for the image by the name in the file. Only pull_policy: never keeps Compose away from the registry.
func (c *composeDouble) findImage(ctx context.Context, service *composeService) error {
	var image struct {
		ID string `json:"Id"`
	}
	err := c.call(ctx, http.MethodGet, "/images/"+service.Image+"/json", nil, &image)
	var refused *engineRefusal
	missing := errors.As(err, &refused) && refused.status == http.StatusNotFound
	if err != nil && !missing {
		return fmt.Errorf("unable to get image '%s': %w", service.Image, err)
	}
	if service.PullPolicy == "always" || missing && service.PullPolicy != "never" {
		return c.call(ctx, http.MethodPost, "/images/create?"+url.Values{"fromImage": {service.Image}}.Encode(), nil, nil)
	}
	service.imageID = image.ID
	return nil
}

func (c *composeDouble) ensureNetwork(ctx context.Context, p *composeProject) error {
	needed := false
	for _, service := range p.Services {
		needed = needed || service.NetworkMode == ""
	}
	if !needed {
		return nil
	}
	name := p.Name + "_default"
	err := c.call(ctx, http.MethodGet, "/networks/"+name, nil, nil)
	var refused *engineRefusal
	if !errors.As(err, &refused) || refused.status != http.StatusNotFound {
		return err
	}
	c.say("Network "+name, "Creating")
	labels := map[string]string{
		"com.docker.compose.network": "default", "com.docker.compose.project": p.Name, "com.docker.compose.version": ComposeVersion,
	}
	labels["com.docker.compose.config-hash"] = composeHash(labels)
	body := map[string]any{"Name": name, "CheckDuplicate": true, "Labels": labels}
	if err := c.call(ctx, http.MethodPost, "/networks/create", body, nil); err != nil {
		return err
	}
	c.say("Network "+name, "Created")
	return nil
}

func (c *composeDouble) ensureVolume(ctx context.Context, p *composeProject, key string) error {
	volume := p.Volumes[key]
	err := c.call(ctx, http.MethodGet, "/volumes/"+volume.Name, nil, nil)
	var refused *engineRefusal
	switch {
	case !errors.As(err, &refused) || refused.status != http.StatusNotFound:
		return err
	case volume.External:
		return fmt.Errorf("external volume %q not found", volume.Name)
	}
	c.say("Volume "+volume.Name, "Creating")
	body := map[string]any{"Name": volume.Name, "Labels": map[string]string{
		"com.docker.compose.volume": key, "com.docker.compose.project": p.Name, "com.docker.compose.version": ComposeVersion,
	}}
	return c.call(ctx, http.MethodPost, "/volumes/create", body, nil)
}

func (c *composeDouble) ensureService(ctx context.Context, p *composeProject, name string, existing []composeContainer,
	force, never bool) error {
	service := p.Services[name]
	containerName := service.ContainerName
	if containerName == "" {
		containerName = p.Name + "-" + name + "-1"
	}
	resource := "Container " + containerName
	for _, old := range existing {
		if old.Labels["com.docker.compose.service"] != name {
			continue
		}
		if never || !force && !c.diverged(p, service, old) {
			return nil
		}
		resource = "Container " + strings.TrimPrefix(old.Names[0], "/")
		c.say(resource, "Recreate")
		temporary := old.ID[:12] + "_" + containerName
		if err := c.create(ctx, p, name, temporary, containerName); err != nil {
			c.say(resource, err.Error())
			return err
		}
		if err := c.remove(ctx, old.ID); err != nil {
			return err
		}
		if c.fault == ComposeRename {
			return errors.New("signal: killed")
		}
		if err := c.call(ctx, http.MethodPost, "/containers/"+temporary+"/rename?name="+containerName, nil, nil); err != nil {
			return err
		}
		c.say(resource, "Recreated")
		return nil
	}
	c.say(resource, "Creating")
	if err := c.create(ctx, p, name, containerName, ""); err != nil {
		c.say(resource, err.Error())
		return err
	}
	c.say(resource, "Created")
	return nil
}

// diverged says whether a container is to be recreated: its configuration, its image, or a volume that it lacks.
func (c *composeDouble) diverged(p *composeProject, service *composeService, old composeContainer) bool {
	if old.Labels["com.docker.compose.config-hash"] != composeHash(service) || old.Labels["com.docker.compose.image"] != service.imageID {
		return true
	}
	for _, m := range service.Volumes {
		if m.Type != "volume" {
			continue
		}
		has := slices.ContainsFunc(old.Mounts, func(mounted struct{ Type, Name string }) bool {
			return mounted.Type == "volume" && mounted.Name == p.Volumes[m.Source].Name
		})
		if !has {
			return true
		}
	}
	return false
}

func (c *composeDouble) remove(ctx context.Context, id string) error {
	if err := c.call(ctx, http.MethodPost, "/containers/"+id+"/stop", nil, nil); err != nil {
		return err
	}
	return c.call(ctx, http.MethodDelete, "/containers/"+id, nil, nil)
}

func (c *composeDouble) create(ctx context.Context, p *composeProject, name, containerName, replaces string) error {
	service := p.Services[name]
	labels := maps.Clone(map[string]string(service.Labels))
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, map[string]string{
		"com.docker.compose.config-hash": composeHash(service), "com.docker.compose.container-number": "1", "com.docker.compose.depends_on": "",
		"com.docker.compose.oneoff": "False", "com.docker.compose.project": p.Name, "com.docker.compose.project.config_files": "-",
		"com.docker.compose.project.working_dir": c.dir, "com.docker.compose.service": name, "com.docker.compose.version": ComposeVersion,
	})
	if service.imageID != "" {
		labels["com.docker.compose.image"] = service.imageID
	}
	if replaces != "" {
		labels["com.docker.compose.replace"] = replaces
	}
	binds, mounts := []string{}, []map[string]any{}
	for _, m := range service.Volumes {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		switch {
		case m.Type == "volume":
			binds = append(binds, p.Volumes[m.Source].Name+":"+m.Target+":"+mode)
		case m.Bind.CreateHostPath == nil || *m.Bind.CreateHostPath:
			binds = append(binds, m.Source+":"+m.Target+":"+mode)
		default:
			mounts = append(mounts, map[string]any{
				"Type": "bind", "Source": m.Source, "Target": m.Target, "ReadOnly": m.ReadOnly, "BindOptions": map[string]any{},
			})
		}
	}
	exposed, bindings := map[string]any{}, map[string][]map[string]string{}
	for _, port := range service.Ports {
		protocol := port.Protocol
		if protocol == "" {
			protocol = "tcp"
		}
		key := fmt.Sprintf("%d/%s", port.Target, protocol)
		exposed[key] = struct{}{}
		bindings[key] = append(bindings[key], map[string]string{"HostIp": port.HostIP, "HostPort": port.Published})
	}
	env := []string{}
	for _, key := range slices.Sorted(maps.Keys(service.Environment)) {
		env = append(env, key+"="+service.Environment[key])
	}
	command := service.Command
	if c.fault == ComposeTamper {
		command = []string{"/bin/sh"}
	}
	restart := service.Restart
	if restart == "" {
		restart = "no"
	}
	policy, count, _ := strings.Cut(restart, ":")
	retries, _ := strconv.Atoi(count)
	network := service.NetworkMode
	body := map[string]any{
		"Image": service.Image, "Entrypoint": service.Entrypoint, "Cmd": command, "Env": env, "Labels": labels, "ExposedPorts": exposed,
		"AttachStdout": true, "AttachStderr": true,
	}
	if network == "" {
		network = p.Name + "_default"
		endpoint := map[string]any{"Aliases": []string{service.ContainerName, name}}
		body["NetworkingConfig"] = map[string]any{"EndpointsConfig": map[string]any{network: endpoint}}
	}
	body["HostConfig"] = map[string]any{
		"Binds": binds, "Mounts": mounts, "NetworkMode": network, "PortBindings": bindings, "SecurityOpt": service.SecurityOpt,
		"RestartPolicy": map[string]any{"Name": policy, "MaximumRetryCount": retries},
	}
	var created struct {
		ID string `json:"Id"`
	}
	if err := c.call(ctx, http.MethodPost, "/containers/create?name="+containerName, body, &created); err != nil {
		return err
	}
	return c.call(ctx, http.MethodGet, "/containers/"+created.ID+"/json", nil, nil)
}

// composeHash is the digest by which a change of a configuration is noticed.
func composeHash(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(digestOf(text), "sha256:")
}

func (c *composeDouble) say(resource, status string) {
	fmt.Fprintf(c.stderr, " %s %s \n", resource, status)
}

// dockerWords is an error as Docker's client words it.
type dockerWords string

func (w dockerWords) Error() string { return string(w) }

// daemonAnswer is a refusal of the engine as Docker's client words it.
type daemonAnswer struct{ refused *engineRefusal }

func (a *daemonAnswer) Error() string { return "Error response from daemon: " + a.refused.message }
func (a *daemonAnswer) Unwrap() error { return a.refused }

// call does one request; an answer of 400 and above is an error in the words of Docker's client.
func (c *composeDouble) call(ctx context.Context, method, target string, body, answer any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+target, content)
	if err != nil {
		return err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.client.Do(request)
	if err != nil {
		return dockerWords("Cannot connect to the Docker daemon at unix://" + c.socket + ". Is the docker daemon running?")
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
		return &daemonAnswer{&engineRefusal{status: response.StatusCode, message: refused.Message}}
	}
	if answer == nil || response.StatusCode == http.StatusNotModified {
		return nil
	}
	return json.Unmarshal(text, answer)
}
