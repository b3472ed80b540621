package launchtest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"tee-launcher/pkg/digest"
)

// MachineOptions configures a Machine.
type MachineOptions struct {
	Engine EngineOptions // its Recorder is the machine's
	Agent  AgentOptions  // its Recorder is the machine's
	Images int           // how many images the registry has; 0: 2
	Config v1.Config     // of the images
	Layers []int         // how many bytes each image's layers have; nil: 50,000, 20,000 and 100
	Dir    string        // where its own is made; empty: in memory
}

// Machine is a virtual machine made of doubles, as far as a launcher sees it: an engine, a guest
// agent, a registry with images, a shared directory and a user config.
type Machine struct {
	Effects     *Recorder // of engine and agent, in order
	Engine      *Engine
	Agent       *Agent
	Registry    *Registry
	Digests     []digest.Digest // of the images, none of which shares a layer with another
	AgentSocket string
	SharedDir   string
	ConfigFile  string

	dir string
}

// Repository is where the images of a Machine are in its registry.
const Repository = "nearone/mpc-node"

// NewMachine starts the doubles and writes a user config that names the registry.
func NewMachine(o MachineOptions) (_ *Machine, err error) {
	dir, err := os.MkdirTemp(cmp.Or(o.Dir, memory()), "machine") // short: the path of a socket has to fit into 107 bytes
	if err != nil {
		return nil, err
	}
	m := &Machine{
		Effects: &Recorder{}, dir: dir,
		AgentSocket: filepath.Join(dir, "dstack.sock"), SharedDir: filepath.Join(dir, "shared"), ConfigFile: filepath.Join(dir, "user_config"),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if err := os.Mkdir(m.SharedDir, 0o755); err != nil {
		return nil, err
	}
	o.Engine.Shared = m.SharedDir
	o.Engine.Recorder, o.Agent.Recorder = m.Effects, m.Effects
	if m.Engine, err = NewEngine(filepath.Join(dir, "docker.sock"), o.Engine); err != nil {
		return nil, err
	}
	if m.Agent, err = NewAgent(m.AgentSocket, o.Agent); err != nil {
		return nil, err
	}
	if m.Registry, err = NewRegistry(RegistryOptions{}); err != nil {
		return nil, err
	}
	if o.Images == 0 {
		o.Images = 2
	}
	if o.Layers == nil {
		o.Layers = []int{50_000, 20_000, 100}
	}
	for i := range uint64(o.Images) {
		layers, err := RandomLayers(10*i+1, o.Layers...)
		if err != nil {
			return nil, err
		}
		if err := m.push(ImageOptions{Config: o.Config, Layers: layers}); err != nil {
			return nil, err
		}
	}
	return m, m.Configure("", "home_dir = \"/data\"")
}

// memory returns a directory that no disk is behind, or "" where there is none: a launcher syncs
// whatever it writes, and a hundred boots at a time would do little else than wait for that.
func memory() string {
	const tmpfs = "/dev/shm"
	var fs unix.Statfs_t
	if unix.Statfs(tmpfs, &fs) != nil || fs.Type != unix.TMPFS_MAGIC || unix.Access(tmpfs, unix.W_OK) != nil {
		return ""
	}
	return tmpfs
}

func (m *Machine) push(o ImageOptions) error {
	img, err := Image(o)
	if err != nil {
		return err
	}
	ref, err := m.Registry.Push(Repository, img)
	if err != nil {
		return err
	}
	parsed, err := digest.Parse(ref.DigestStr())
	m.Digests = append(m.Digests, parsed)
	return err
}

// Configure writes the user config with these further lines in its two tables. Nothing is pulled in
// further rounds unless they say so.
func (m *Machine) Configure(launcher, node string) error {
	text := fmt.Sprintf("[launcher_config]\nimage = %q\nport_mappings = [{ host = 11780, container = 11780 }]\npull_max_retries = 0\n%s\n\n[mpc_node_config]\n%s\n",
		m.Registry.Host()+"/"+Repository+":main", launcher, node)
	return os.WriteFile(m.ConfigFile, []byte(text), 0o600)
}

// Approve writes the approved list.
func (m *Machine) Approve(digests ...digest.Digest) error {
	data, err := json.Marshal(map[string]any{"approved_hashes": digests})
	if err != nil {
		return err
	}
	return os.WriteFile(m.Shared("image-digest.bin"), data, 0o600)
}

// Shared returns the path of a file in the shared directory.
func (m *Machine) Shared(name string) string { return filepath.Join(m.SharedDir, name) }

// Reboot is what a power loss and what follows do: the engine starts by itself what its restart
// policies say, and log and register are empty.
func (m *Machine) Reboot() error {
	err := m.Engine.Restart(false)
	m.Agent.Reboot()
	return err
}

// Unexpected returns the requests that no double knows.
func (m *Machine) Unexpected() []string {
	return append(append(m.Engine.Unexpected(), m.Agent.Unexpected()...), m.Registry.Unexpected()...)
}

// Close stops the doubles and removes the files.
func (m *Machine) Close() error {
	var errs []error
	if m.Engine != nil {
		errs = append(errs, m.Engine.Close())
	}
	if m.Agent != nil {
		errs = append(errs, m.Agent.Close())
	}
	if m.Registry != nil {
		errs = append(errs, m.Registry.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}
