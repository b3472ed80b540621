package inspect

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
)

// Reaches returns the source of the mount through which a container reaches a path of the host, or a directory above it; empty if it doesn't.
func (e *Engine) Reaches(ctx context.Context, c Container, path string) (source string, err error) {
	return e.reaches(ctx, c, func(source string) bool { return reaches(source, path) })
}

// ReachesInto is the same for a directory, of which it may be only a part that the container reaches.
func (e *Engine) ReachesInto(ctx context.Context, c Container, dir string) (source string, err error) {
	return e.reaches(ctx, c, func(source string) bool {
		return reaches(source, dir) || reaches(dir, source)
	})
}

func (e *Engine) reaches(ctx context.Context, c Container, there func(source string) bool) (string, error) {
	for _, m := range c.Mounts {
		sources := []string{m.Source}
		if m.Type == "volume" {
			// The local driver mounts any directory of the host under a volume's name.
			v, err := e.Volume(ctx, m.Name)
			if err != nil && !NotFound(err) {
				return "", err
			}
			sources = append(sources, v.Device)
		}
		for _, source := range sources {
			if there(source) {
				return source, nil
			}
		}
	}
	return "", nil
}

// Escapes says by what a container reaches devices or file systems of the host that none of its
// mounts show; empty: by nothing. It isn't about what a fault of the kernel would allow.
func (c Container) Escapes() string {
	if c.Settings["HostConfig.Privileged"] == true {
		return "its privileges"
	}
	for _, added := range texts(c.Settings["HostConfig.CapAdd"]) {
		switch name := strings.TrimPrefix(strings.ToUpper(added), "CAP_"); name {
		case "ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "DAC_READ_SEARCH": // they mount, load, map and open by handle
			return "its capability " + name
		}
	}
	if rules := texts(c.Settings["HostConfig.DeviceCgroupRules"]); len(rules) > 0 {
		return "its rules for devices" // and MKNOD is among docker's own capabilities
	}
	// Another process's files are at /proc/<pid>/root.
	if mode, _ := c.Settings["HostConfig.PidMode"].(string); mode != "" && mode != "private" {
		return "the processes that it sees: " + mode
	}
	return ""
}

// Devices returns the paths of the host's devices that a container is given.
func (c Container) Devices() (paths []string) {
	devices, _ := c.Settings["HostConfig.Devices"].([]any)
	for _, d := range devices {
		device, _ := d.(map[string]any)
		path, _ := device["PathOnHost"].(string)
		paths = append(paths, path)
	}
	return paths
}

func texts(list any) (all []string) {
	entries, _ := list.([]any)
	for _, e := range entries {
		text, _ := e.(string)
		all = append(all, text)
	}
	return all
}

// reaches reports whether source is path or a directory above it, by any of their names.
func reaches(source, path string) bool {
	for _, s := range spellings(source) {
		for _, p := range spellings(path) {
			if s == "/" || s == p || strings.HasPrefix(p, s+"/") {
				return true
			}
		}
	}
	return false
}

// spellings returns the ways to name a path of the host. /var/run is a link to /run everywhere, or the other way round. Other
// links can be followed where we see the host's files, as a plain binary.
func spellings(path string) []string {
	if !filepath.IsAbs(path) {
		return nil
	}
	path = filepath.Clean(path)
	ways := []string{path}
	if followed, err := filepath.EvalSymlinks(path); err == nil {
		ways = append(ways, followed)
	}
	for _, way := range ways {
		if rest, ok := strings.CutPrefix(way+"/", "/var/run/"); ok {
			ways = append(ways, filepath.Clean("/run/"+rest))
		} else if rest, ok := strings.CutPrefix(way+"/", "/run/"); ok {
			ways = append(ways, filepath.Clean("/var/run/"+rest))
		}
	}
	return ways
}

// ownFiles are the three files of its own that the engine mounts into every container, from a folder that is named by the container's ID.
var ownFiles = regexp.MustCompile(`/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf) `)

// MaxMountinfo bounds the kernel's list of mounts, which Self reads from.
const MaxMountinfo = 4 << 20

// SelfID returns the ID of the container of the process whose /proc/<pid>/mountinfo is given; empty
// where it is in none.
func SelfID(mountinfo []byte) string {
	match := ownFiles.FindSubmatch(mountinfo)
	if match == nil {
		return ""
	}
	return string(match[1])
}

// Self returns that container; the zero value where it is in none of this engine's.
func (e *Engine) Self(ctx context.Context, mountinfo []byte) (Container, error) {
	id := SelfID(mountinfo)
	if id == "" {
		return Container{}, nil
	}
	c, err := e.Container(ctx, id)
	if NotFound(err) {
		return Container{}, nil // a container of another engine: to this one we are a plain binary
	}
	return c, err
}
