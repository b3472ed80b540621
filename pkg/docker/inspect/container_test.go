package inspect_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker/inspect"
)

func TestHostPath(t *testing.T) {
	t.Parallel()
	const socket = "/var/run/dstack.sock"
	mount := func(source, destination string) inspect.Mount {
		return inspect.Mount{Source: source, Destination: destination}
	}
	for name, c := range map[string]struct {
		mounts []inspect.Mount
		want   string
	}{
		"no container":        {nil, socket},
		"the same place":      {[]inspect.Mount{mount(socket, socket)}, socket},
		"another place":       {[]inspect.Mount{mount("/srv/agent.sock", socket)}, "/srv/agent.sock"},
		"its directory":       {[]inspect.Mount{mount("/srv/run", "/var/run")}, "/srv/run/dstack.sock"},
		"the deepest":         {[]inspect.Mount{mount("/a", socket), mount("/b", "/var/run/"), mount("/c", "/")}, "/a"},
		"the root":            {[]inspect.Mount{mount("/host", "/")}, "/host/var/run/dstack.sock"},
		"a name that begins":  {[]inspect.Mount{mount("/a", "/var/run/dstack"), mount("/b", "/var/ru")}, socket},
		"/run, its directory": {[]inspect.Mount{mount("/srv/run", "/run"), mount("/b", "/")}, "/srv/run/dstack.sock"},
		"/run, the same":      {[]inspect.Mount{mount("/srv/agent.sock", "/run/dstack.sock"), mount("/b", "/var")}, "/srv/agent.sock"},
		"a path to clean":     {[]inspect.Mount{mount("/srv/agent.sock", "/var//run/./dstack.sock")}, "/srv/agent.sock"},
		"nothing behind it":   {[]inspect.Mount{mount("", "/var/run")}, socket},
	} {
		assert.Equal(t, c.want, inspect.Container{Mounts: c.mounts}.HostPath(socket), name)
	}
}

// TestHostPathFollowsLinks of our own container, whose files they are.
func TestHostPathFollowsLinks(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "agent"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "agent/sock"), nil, 0o600))
	require.NoError(t, os.Symlink("agent", filepath.Join(dir, "link")))
	c := inspect.Container{Mounts: []inspect.Mount{{Source: "/srv", Destination: filepath.Join(dir, "agent")}}}
	assert.Equal(t, "/srv/sock", c.HostPath(filepath.Join(dir, "link/sock")))
	c.Mounts[0].Destination = filepath.Join(dir, "link")
	assert.Equal(t, "/srv/sock", c.HostPath(filepath.Join(dir, "agent/sock")))
	assert.Equal(t, "/no/such", inspect.Container{}.HostPath("/no/such"))
}

func TestReaches(t *testing.T) {
	t.Parallel()
	const socket = "/var/run/dstack.sock"
	for _, source := range []string{
		"/var/run/dstack.sock", "/run/dstack.sock", "/run", "/var/run", "/var/run/", "/var/../run/.", "//run", "/var", "/",
	} {
		assert.True(t, inspect.Reaches(source, socket), "%s", source)
		assert.True(t, inspect.Reaches(source, "/run/dstack.sock"), "%s", source)
	}
	for _, source := range []string{
		"", "/var/run/docker.sock", "/run/dstack", "/run/dstack.sock.d", "/var/lib", "/var/runs", "/srv", "run", "some-volume",
	} {
		assert.False(t, inspect.Reaches(source, socket), "%s", source)
		assert.False(t, inspect.Reaches(source, "/run/dstack.sock"), "%s", source)
	}
}
