// Package compose says what the workload's container is, has Compose create it, and checks what was created.
//
// It guarantees that the Compose file is marshalled from a typed value in which no text can become structure, that the
// image in it is bound to proved bytes and can't be pulled, that Compose sees nothing of the environment or the files
// around the launcher, and that nothing is started here. It doesn't guarantee that Compose did as told: that is what
// Workload.Check is for.
package compose

import (
	"fmt"
	"strings"

	"gopkg.in/yaml.v3"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
)

const (
	// Name is the name of the Compose project, its service and its container.
	Name = "mpc-node"
	// SharedVolume is the volume that launcher and workload share.
	SharedVolume = "shared-volume"
	// DataVolume holds the workload's keys.
	DataVolume = "mpc-data"
	// AgentSocket is where the workload finds the guest agent, and SharedDir the shared volume.
	AgentSocket = "/var/run/dstack.sock"
	SharedDir   = "/mnt/shared"
	// NodeConfig is the name of the workload's config in the shared volume.
	NodeConfig = "mpc-config.toml"
	// ProjectLabel is the label by which Compose knows its project's containers.
	ProjectLabel = "com.docker.compose.project"
	// ServiceLabel says of which service of the project a container is.
	ServiceLabel = "com.docker.compose.service"
	// ImpostorPrefix begins the names of containers that ran as the workload without having been measured, and were ended.
	ImpostorPrefix = "mpc-node-impostor-"
	// Staged is the container that holds the image which the next boot is expected to run. It is no workload: it is never started, and has no project.
	Staged = "mpc-node-staged"
	// BootLabel says in which boot a container was created. A boot's ID is random, so neither a container of an earlier boot nor an image
	// can carry it: without the label a container is not of this boot; with it, it isn't proved to be.
	BootLabel = "tee-launcher.boot-id"
	// ReferenceLabel is the image as the user config names it, for people.
	ReferenceLabel = "tee-launcher.reference"
)

// OfWorkload reports whether a container is the workload, of whichever launcher and boot.
func OfWorkload(c inspect.Container) bool {
	return c.Name == Name || c.Labels[ProjectLabel] == Name || strings.HasPrefix(c.Name, ImpostorPrefix)
}

// SameProject reports whether Compose knows both containers as of one project.
func SameProject(a, b inspect.Container) bool {
	project := b.Labels[ProjectLabel]
	return project != "" && a.Labels[ProjectLabel] == project
}

// Workload is what may differ from one workload to another.
type Workload struct {
	Reference  string        // as the operator wrote it; a label for people
	Digest     digest.Digest // the approved manifest digest; a label for people
	Ports      []Port
	Agent      string // path of the guest agent's socket on the host; empty outside a CVM
	Supervised bool   // the launcher looks after it; otherwise the engine restarts it on failure
	Boot       string // the boot that the container belongs to; empty: it may belong to any
}

// Port is a TCP port of the host and the container's port behind it.
type Port struct {
	Host, Container uint16
}

type (
	file struct {
		Name     string             `yaml:"name"`
		Services map[string]service `yaml:"services"`
		Volumes  map[string]volume  `yaml:"volumes"`
	}
	service struct {
		Image         string            `yaml:"image"`
		PullPolicy    string            `yaml:"pull_policy"`
		ContainerName string            `yaml:"container_name"`
		Command       []string          `yaml:"command"`
		Environment   map[string]string `yaml:"environment,omitempty"`
		Ports         []string          `yaml:"ports,omitempty"`
		Volumes       []mount           `yaml:"volumes"`
		SecurityOpt   []string          `yaml:"security_opt"`
		Restart       string            `yaml:"restart"`
		Labels        map[string]string `yaml:"labels"`
	}
	mount struct {
		Type     string `yaml:"type"`
		Source   string `yaml:"source"`
		Target   string `yaml:"target"`
		ReadOnly bool   `yaml:"read_only,omitempty"`
		Bind     *bind  `yaml:"bind,omitempty"`
	}
	bind struct {
		CreateHostPath bool `yaml:"create_host_path"`
	}
	volume struct {
		Name     string `yaml:"name"`
		External bool   `yaml:"external"`
	}
)

func command() []string {
	return []string{"/app/mpc-node", "start-with-config-file", SharedDir + "/" + NodeConfig}
}

func (w Workload) restart() string {
	if w.Supervised {
		return "no"
	}
	return "on-failure"
}

func (w Workload) environment() map[string]string {
	if w.Agent == "" {
		return nil
	}
	return map[string]string{"DSTACK_ENDPOINT": AgentSocket}
}

func (w Workload) mounts() []mount {
	mounts := []mount{
		{Type: "bind", Source: "/tapp", Target: "/tapp", ReadOnly: true, Bind: &bind{CreateHostPath: true}},
		{Type: "volume", Source: SharedVolume, Target: SharedDir},
		{Type: "volume", Source: DataVolume, Target: "/data"},
	}
	if w.Agent != "" {
		// Never made if missing: the engine would make a directory, and the agent could not listen there any more.
		mounts = append(mounts, mount{Type: "bind", Source: w.Agent, Target: AgentSocket, Bind: &bind{CreateHostPath: false}})
	}
	return mounts
}

// Render returns the Compose file of the workload with the given image, for people to read; Create uses the same.
func (w Workload) Render(image string) ([]byte, error) {
	s := service{
		Image: image, PullPolicy: "never", ContainerName: Name, Command: command(), Volumes: w.mounts(), Environment: w.environment(),
		SecurityOpt: []string{"no-new-privileges:true"}, Restart: w.restart(),
		Labels: map[string]string{ReferenceLabel: literal(w.Reference), "tee-launcher.manifest-digest": w.Digest.String()},
	}
	if w.Boot != "" {
		s.Labels[BootLabel] = w.Boot
	}
	for _, p := range w.Ports {
		s.Ports = append(s.Ports, fmt.Sprintf("%d:%d", p.Host, p.Container))
	}
	for i := range s.Volumes {
		s.Volumes[i].Source = literal(s.Volumes[i].Source)
	}
	return yaml.Marshal(file{
		Name: Name, Services: map[string]service{Name: s},
		Volumes: map[string]volume{SharedVolume: {SharedVolume, true}, DataVolume: {DataVolume, true}},
	})
}

// literal protects a text from Compose, which replaces $NAME in every one. There is no variable that we want replaced.
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }
