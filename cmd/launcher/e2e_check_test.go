//go:build e2e

package main_test

import (
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/registry"
)

// oddities are image configs that engines read in a way of their own.
func oddities() map[string]v1.Config {
	return map[string]v1.Config{
		"nothing": {},
		"no entrypoint": {
			Entrypoint: []string{""}, Cmd: []string{"serve"}, WorkingDir: "/", User: "",
			Healthcheck: &v1.HealthConfig{Test: []string{"NONE"}},
		},
		"twice": {
			Env: []string{"A=1", "A=2", "B=", "DSTACK_ENDPOINT=/image", "PATH=/app:/bin"}, WorkingDir: "/work//a/../b/",
			User: "0:0", StopSignal: "SIGTERM", OnBuild: []string{"RUN x"}, Shell: []string{"/bin/sh", "-c"},
			Volumes:      map[string]struct{}{"/cache/": {}, "/a//b": {}, "/data": {}, "/tapp/": {}},
			ExposedPorts: map[string]struct{}{"80": {}, "11780/tcp": {}, "53/udp": {}},
			Healthcheck:  &v1.HealthConfig{Test: []string{"CMD", "/app/mpc-node"}, StartPeriod: time.Hour, Retries: 3},
			Hostname:     "builder", Domainname: "example", Tty: true, OpenStdin: true, AttachStdin: true, ArgsEscaped: true,
		},
		"without a value": {Env: []string{"A", "B=x"}, Healthcheck: &v1.HealthConfig{}},
	}
}

// TestE2ETakesOddImages: what an engine makes of a config isn't held against the image.
func TestE2ETakesOddImages(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "TEE")
	node, err := launchtest.NodeImage(t.Context(), "go")
	require.NoError(t, err)
	for odd, config := range oddities() {
		platforms := []string{"TEE"}
		if odd == "twice" { // the one with a variable that the launcher sets in TEE mode alone
			platforms = append(platforms, "NONTEE")
		}
		for _, platform := range platforms {
			m.platform = platform
			config.Labels = map[string]string{"odd": odd}
			img, err := mutate.Config(node, config)
			require.NoError(t, err)
			ref, err := m.registry.Push("nearone/mpc-node", img)
			require.NoError(t, err)
			digest, err := v1.NewHash(ref.DigestStr())
			require.NoError(t, err)
			m.approve(digest)
			m.agent.Reboot()
			o := m.boot()
			require.Zero(t, o.code, "%s, %s: %s", odd, platform, o.stderr)
			c := m.workload()
			assert.Equal(t, "running", c.Status, odd)
			again := m.boot()
			require.Zero(t, again.code, "%s, %s: %s", odd, platform, again.stderr)
			assert.Equal(t, c.ID, m.workload().ID, "%s, %s: an unchanged container is reused", odd, platform)
		}
	}
}

// TestE2EADriftedContainerIsTold makes containers as Compose made one but for one thing, and has the
// launcher take over one of them.
func TestE2EADriftedContainerIsTold(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "NONTEE")
	m.mustBoot()
	made := m.workload()
	info, err := m.engine.Info(t.Context())
	require.NoError(t, err)
	ref, err := name.NewDigest(m.registry.Host() + "/nearone/mpc-node@" + m.digests[0].String())
	require.NoError(t, err)
	v, err := new(registry.Client).Source(ref).Resolve(t.Context())
	require.NoError(t, err)
	id, err := m.engine.Prove(t.Context(), info, v)
	require.NoError(t, err)
	w := compose.Workload{Ports: []compose.Port{{Host: uint16(m.port), Container: 11780}}}
	check := func() error {
		return w.Check(m.workload(), id, v.ConfigFile().Config, info.Runtime)
	}
	require.NoError(t, check(), "what Compose makes passes")

	// A field of Config or HostConfig, its other value, and what is told of it.
	for _, drift := range []struct {
		part, field string
		value       any
		told        string
	}{
		{"HostConfig", "PidMode", "host", "HostConfig.PidMode"},
		{"HostConfig", "IpcMode", "host", "HostConfig.IpcMode"},
		{"HostConfig", "UTSMode", "host", "HostConfig.UTSMode"},
		{"HostConfig", "NetworkMode", "none", "HostConfig.NetworkMode"},
		{"HostConfig", "CapAdd", []string{"ALL"}, "HostConfig.CapAdd"},
		{"HostConfig", "SecurityOpt", []string{"no-new-privileges:true", "seccomp=unconfined"}, "HostConfig.SecurityOpt"},
		{"HostConfig", "Privileged", true, "HostConfig.Privileged"},
		{"HostConfig", "Sysctls", map[string]string{"net.ipv4.ip_forward": "0"}, "HostConfig.Sysctls"},
		{"HostConfig", "Tmpfs", map[string]string{"/app": ""}, "HostConfig.Tmpfs"},
		{"HostConfig", "ExtraHosts", []string{"near.org:127.0.0.1"}, "HostConfig.ExtraHosts"},
		{"HostConfig", "PortBindings", map[string]any{"80/tcp": []any{map[string]string{"HostPort": ""}}}, "HostConfig.PortBindings"},
		{"HostConfig", "Devices", []any{map[string]string{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}}, "HostConfig.Devices"},
		{"Config", "Env", []string{"LD_PRELOAD=/data/x.so"}, "Config.Env"},
		{"Config", "User", "7", "Config.User"},
		{"Config", "Entrypoint", []string{"/app/mpc-node"}, "Config.Entrypoint"},
		{"Config", "WorkingDir", "/data", "Config.WorkingDir"},
	} {
		m.remake(made.Name, drift.part, drift.field, drift.value)
		var deviation *compose.DeviationError
		if err := check(); assert.Error(t, err, drift.told) && assert.True(t, errors.As(err, &deviation), "%v", err) {
			assert.Equal(t, drift.told, deviation.What)
		}
	}

	m.remake(made.Name, "HostConfig", "PidMode", "host")
	drifted := m.workload().ID
	o := m.mustBoot()
	assert.Contains(t, o.stderr, "HostConfig.PidMode")
	assert.NotEqual(t, drifted, m.workload().ID)
	assert.NoError(t, check(), "it was made anew")
}

// remake makes a container once more, with one thing changed.
func (m *machine) remake(name, part, field string, value any) {
	m.t.Helper()
	if m.original == nil { // later ones are changed already
		m.call("GET", "/containers/"+name+"/json", nil, &m.original)
	}
	var is struct {
		Config, HostConfig map[string]any
		NetworkSettings    struct{ Networks map[string]any }
	}
	require.NoError(m.t, json.Unmarshal(m.original, &is))
	m.call("DELETE", "/containers/"+name+"?force=1", nil, nil)
	body := is.Config
	delete(body, "Hostname")
	if part == "Config" {
		body[field] = value
	} else {
		is.HostConfig[field] = value
	}
	if field == "Privileged" || strings.HasPrefix(field, "Security") {
		delete(is.HostConfig, "MaskedPaths")
		delete(is.HostConfig, "ReadonlyPaths")
	}
	body["HostConfig"] = is.HostConfig
	if field != "NetworkMode" {
		endpoints := map[string]any{}
		for network := range is.NetworkSettings.Networks {
			endpoints[network] = map[string]any{}
		}
		body["NetworkingConfig"] = map[string]any{"EndpointsConfig": endpoints}
	}
	m.call("POST", "/containers/create?name="+url.QueryEscape(name), body, nil)
}
