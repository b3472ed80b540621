package compose_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
)

// recording is what an engine answered of a container that Compose made of the workload below.
type recording struct {
	t      *testing.T
	engine *inspect.Engine
	id     inspect.ImageID
	answer map[string]any // what the engine answers next
}

// recorded is the workload of the recordings, and the config of its image.
func recorded() (compose.Workload, v1.Config) {
	w := tee()
	w.Agent = "/dev/null"
	return w, v1.Config{
		Env: []string{"PATH=/usr/bin:/bin", "A=1", "B=x y"}, WorkingDir: "/work/", User: "0:0",
		Entrypoint: []string{""}, Cmd: []string{"serve"},
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "curl x"}, Interval: 5 * time.Second},
		Volumes:     map[string]struct{}{"/cache/": {}, "/a//b": {}},
	}
}

// newRecording plays the engine whose answer a file is.
func newRecording(t *testing.T, file string, id inspect.ImageID) *recording {
	t.Helper()
	r := &recording{t: t, id: id}
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	text = []byte(strings.ReplaceAll(string(text), "sha256:IMAGE", id.String()))
	require.NoError(t, json.Unmarshal(text, &r.answer))
	dir, err := os.MkdirTemp("", "inspect") // short: a socket's path has to fit into 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		assert.NoError(t, json.NewEncoder(w).Encode(r.answer))
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	r.engine, err = inspect.New("unix://" + l.Addr().String())
	require.NoError(t, err)
	return r
}

// check reads the container and checks it.
func (r *recording) check() error {
	c, err := r.engine.Container(r.t.Context(), "mpc-node")
	if err != nil {
		return err
	}
	w, base := recorded()
	return w.Check(c, r.id, base, "runc")
}

func recordings(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../testdata/compose/inspect/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

// TestWhatComposeMakesPasses on every engine that was recorded.
func TestWhatComposeMakesPasses(t *testing.T) {
	t.Parallel()
	id := proved(t)
	for _, file := range recordings(t) {
		assert.NoError(t, newRecording(t, file, id).check(), file)
	}
}

// uncompared are the fields of the engines' answers in which a container may differ from the
// workload, and why; "*" is one of several. Every other field is compared.
func uncompared() map[string]string {
	const (
		limit   = "gives it less of the machine, and nothing else of it"
		life    = "what became of it since; the rules of a boot look at it where it counts"
		outcome = "what the engine made of a setting that is compared"
		noise   = "where the engine keeps something"
	)
	fields := map[string]string{
		"Id": "a name that the engine gave it", "Created": life, "RestartCount": life, "ExecIDs": life,
		"Driver": noise, "GraphDriver": noise, "Storage": noise, "ResolvConfPath": noise,
		"HostnamePath": noise, "HostsPath": noise, "LogPath": noise,
		"Platform":   "of the image, which is compared",
		"MountLabel": outcome, "ProcessLabel": outcome, "AppArmorProfile": outcome,
		"ImageManifestDescriptor": "of the image, which is compared",

		"Config.Image": "a name; the ID that it had is compared", "Config.Labels": "no proof",
		"Config.Volumes":      "the mounts that came of it are compared",
		"Config.ExposedPorts": "opens nothing while PublishAllPorts is off",
		"Config.AttachStdout": "who looked on", "Config.AttachStderr": "who looked on",
		"HostConfig.Binds":        "the mounts that came of it are compared",
		"HostConfig.ConsoleSize":  "of no terminal",
		"HostConfig.LogConfig":    "where its words go is the engine's setting",
		"HostConfig.CgroupnsMode": "the engine's setting",
		"HostConfig.ShmSize":      limit, "HostConfig.Ulimits": limit,
		// Beside the one that lacks its neighbours: more of what protects.
		"HostConfig.MaskedPaths": "more may be hidden", "HostConfig.ReadonlyPaths": "more may be protected",

		"Mounts.bind.Mode": "RW says the same", "Mounts.volume.Mode": "RW says the same",
		"Mounts.volume.Source": "where the engine keeps the volume of that name",
	}
	for _, field := range []string{
		"BlkioWeight", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpuShares",
		"CpusetCpus", "CpusetMems", "KernelMemory", "Memory", "MemoryReservation", "MemorySwap", "NanoCpus",
		"PidsLimit",
	} {
		fields["HostConfig."+field] = limit
	}
	for _, field := range []string{
		"Status", "Running", "Paused", "Restarting", "OOMKilled", "Dead", "Pid", "ExitCode", "Error",
		"StartedAt", "FinishedAt", "Health",
	} {
		fields["State."+field] = life
	}
	for _, field := range []string{
		"Bridge", "SandboxID", "SandboxKey", "HairpinMode", "LinkLocalIPv6Address",
		"LinkLocalIPv6PrefixLen", "Ports", "SecondaryIPAddresses", "SecondaryIPv6Addresses", "EndpointID",
		"Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress", "IPPrefixLen", "IPv6Gateway",
		"MacAddress",
	} {
		fields["NetworkSettings."+field] = "the addresses that it got"
	}
	for _, field := range []string{
		"NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "IPv6Gateway", "MacAddress",
		"GlobalIPv6Address", "GlobalIPv6PrefixLen", "DNSNames", "GwPriority",
	} {
		fields["NetworkSettings.Networks.*."+field] = "the addresses and names that it got"
	}
	return fields
}

// TestEveryFieldOfTheAnswerIsDecidedUpon changes each field of the recorded answers: it is told, or
// it stands in the table of those that may differ.
func TestEveryFieldOfTheAnswerIsDecidedUpon(t *testing.T) {
	t.Parallel()
	id := proved(t)
	used := map[string]bool{}
	for _, file := range recordings(t) {
		r := newRecording(t, file, id)
		visit(r.answer, "", func(field string, in map[string]any, key string) {
			before := in[key]
			in[key] = another(before)
			err := r.check()
			in[key] = before
			_, exempt := uncompared()[field]
			used[field] = true
			if exempt {
				assert.NoError(t, err, "%s: %s is in the table of what may differ", file, field)
			} else {
				assert.Error(t, err, "%s: nobody notices another %s", file, field)
			}
		})
		assert.NoError(t, r.check(), "all is as it was")
	}
	for field := range uncompared() {
		assert.True(t, used[field], "%s: no engine tells it", field)
	}
}

// visit calls see for all fields that have a meaning of their own.
func visit(in map[string]any, prefix string, see func(field string, in map[string]any, key string)) {
	for key, value := range in {
		field := prefix + key
		switch field {
		case "Config", "HostConfig", "State", "NetworkSettings":
			visit(value.(map[string]any), field+".", see)
			continue
		case "NetworkSettings.Networks":
			for _, endpoint := range value.(map[string]any) {
				visit(endpoint.(map[string]any), field+".*.", see)
			}
		case "Mounts":
			for _, m := range value.([]any) {
				m := m.(map[string]any)
				visit(m, "Mounts."+m["Type"].(string)+".", see)
			}
		}
		see(field, in, key)
	}
}

// another is a value of the same kind that isn't the same.
func another(value any) any {
	switch v := value.(type) {
	case nil:
		return []any{"x"}
	case bool:
		return !v
	case float64:
		return v + 1
	case string:
		if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
			return at.Add(time.Hour).Format(time.RFC3339Nano)
		}
		return v + "x"
	case []any:
		return append(slices.Clone(v), "x")
	case map[string]any:
		more := maps.Clone(v)
		more["x"] = "x"
		return more
	}
	return "x"
}

// TestCheckTellsWhatDeviates, by the name that `docker inspect` gives it.
func TestCheckTellsWhatDeviates(t *testing.T) {
	t.Parallel()
	id := proved(t)
	set := func(part, field string, value any) func(map[string]any) {
		return func(answer map[string]any) { answer[part].(map[string]any)[field] = value }
	}
	host := func(field string, value any) func(map[string]any) { return set("HostConfig", field, value) }
	config := func(field string, value any) func(map[string]any) { return set("Config", field, value) }
	mount := func(destination, field string, value any) func(map[string]any) {
		return func(answer map[string]any) {
			for _, m := range answer["Mounts"].([]any) {
				if m := m.(map[string]any); m["Destination"] == destination {
					m[field] = value
				}
			}
		}
	}
	extra := func(m map[string]any) func(map[string]any) {
		return func(answer map[string]any) { answer["Mounts"] = append(answer["Mounts"].([]any), m) }
	}
	endpoint := func(field string, value any) func(map[string]any) {
		return func(answer map[string]any) {
			networks := answer["NetworkSettings"].(map[string]any)["Networks"].(map[string]any)
			networks["mpc-node_default"].(map[string]any)[field] = value
		}
	}
	environment := []any{
		"DSTACK_ENDPOINT=/var/run/dstack.sock", "PATH=/usr/bin:/bin", "A=1", "B=x y",
	}
	asked := func(options, option, value string) func(map[string]any) {
		return host("Mounts", []any{map[string]any{options: map[string]any{option: value}}})
	}
	const hex = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
	program := []any{"/app/mpc-node", "start-with-config-file", "/mnt/shared/mpc-config.toml"}
	for name, tc := range map[string]struct {
		tamper func(answer map[string]any)
		what   string
	}{
		"another name":  {func(a map[string]any) { a["Name"] = "/mpc-node-2" }, "Name"},
		"another image": {func(a map[string]any) { a["Image"] = "sha256:" + hex }, "Image"},
		"a tag for an image": {
			func(a map[string]any) { a["Image"] = "nearone/mpc-node" },
			"Image",
		},
		"another program": {
			func(a map[string]any) { a["Path"] = "/bin/sh" },
			"Path and Args",
		},
		"another command":   {config("Cmd", []any{"/bin/sh"}), "Config.Cmd"},
		"no command":        {config("Cmd", nil), "Config.Cmd"},
		"one argument more": {config("Cmd", append(program, "--debug")), "Config.Cmd"},
		"an entrypoint": {
			config("Entrypoint", []any{"/bin/sh", "-c"}),
			"Config.Entrypoint",
		},
		"LD_PRELOAD": {
			config("Env", append(environment[:4:4], "LD_PRELOAD=/data/x.so")),
			"Config.Env",
		},
		"a variable less": {
			config("Env", environment[:3]),
			"Config.Env",
		},
		"another socket's name": {
			config("Env", []any{"DSTACK_ENDPOINT=/data/x", "PATH=/usr/bin:/bin", "A=1", "B=x y"}),
			"Config.Env",
		},
		"another user":      {config("User", "root"), "Config.User"},
		"another directory": {config("WorkingDir", "/data"), "Config.WorkingDir"},
		"another health check": {
			config("Healthcheck", map[string]any{"Test": []any{"CMD", "/data/x"}}),
			"Config.Healthcheck",
		},
		"no health check":     {config("Healthcheck", nil), "Config.Healthcheck"},
		"a signal":            {config("StopSignal", "SIGKILL"), "Config.StopSignal"},
		"a terminal":          {config("Tty", true), "Config.Tty"},
		"another host name":   {config("Hostname", "node"), "Config.Hostname"},
		"another domain":      {config("Domainname", "x"), "Config.Domainname"},
		"a field of tomorrow": {config("Hooks", []any{"/data/x"}), "Config.Hooks"},

		"privileged":           {host("Privileged", true), "HostConfig.Privileged"},
		"the host's processes": {host("PidMode", "host"), "HostConfig.PidMode"},
		"the host's network":   {host("NetworkMode", "host"), "HostConfig.NetworkMode"},
		"the host's memory":    {host("IpcMode", "host"), "HostConfig.IpcMode"},
		"the host's name":      {host("UTSMode", "host"), "HostConfig.UTSMode"},
		"the host's users":     {host("UsernsMode", "host"), "HostConfig.UsernsMode"},
		"all capabilities":     {host("CapAdd", []any{"ALL"}), "HostConfig.CapAdd"},
		"a capability less":    {host("CapDrop", []any{"CHOWN"}), "HostConfig.CapDrop"},
		"no seccomp": {
			host("SecurityOpt", []any{"no-new-privileges:true", "seccomp=unconfined"}),
			"HostConfig.SecurityOpt",
		},
		"new privileges": {host("SecurityOpt", nil), "HostConfig.SecurityOpt"},
		"a device": {
			host("Devices", []any{map[string]any{"PathOnHost": "/dev/kmsg"}}),
			"HostConfig.Devices",
		},
		"a device by request": {
			host("DeviceRequests", []any{map[string]any{"Driver": "cdi"}}),
			"HostConfig.DeviceRequests",
		},
		"a class of devices": {
			host("DeviceCgroupRules", []any{"c 1:3 mr"}),
			"HostConfig.DeviceCgroupRules",
		},
		"a kernel setting": {
			host("Sysctls", map[string]any{"net.ipv4.ip_forward": "0"}),
			"HostConfig.Sysctls",
		},
		"a tmpfs":           {host("Tmpfs", map[string]any{"/app": ""}), "HostConfig.Tmpfs"},
		"unmasked":          {host("MaskedPaths", []any{}), "HostConfig.MaskedPaths"},
		"writable":          {host("ReadonlyPaths", nil), "HostConfig.ReadonlyPaths"},
		"a read-only root":  {host("ReadonlyRootfs", true), "HostConfig.ReadonlyRootfs"},
		"another runtime":   {host("Runtime", "kata"), "HostConfig.Runtime"},
		"another's volumes": {host("VolumesFrom", []any{"other"}), "HostConfig.VolumesFrom"},
		"a link": {
			host("Links", []any{"/other:/mpc-node/other"}),
			"HostConfig.Links",
		},
		"a host": {
			host("ExtraHosts", []any{"near.org:127.0.0.1"}),
			"HostConfig.ExtraHosts",
		},
		"a resolver":         {host("Dns", []any{"127.0.0.1"}), "HostConfig.Dns"},
		"a group":            {host("GroupAdd", []any{"0"}), "HostConfig.GroupAdd"},
		"removed at its end": {host("AutoRemove", true), "HostConfig.AutoRemove"},
		"an init":            {host("Init", true), "HostConfig.Init"},
		"a control group":    {host("CgroupParent", "/x"), "HostConfig.CgroupParent"},
		"an annotation": {
			host("Annotations", map[string]any{"run.oci.hooks": ""}),
			"HostConfig.Annotations",
		},
		"all ports": {host("PublishAllPorts", true), "HostConfig.PublishAllPorts"},
		"no port": {
			host("PortBindings", map[string]any{}),
			"HostConfig.PortBindings",
		},
		"another port": {
			host("PortBindings", map[string]any{"80/tcp": []any{map[string]any{"HostIp": "", "HostPort": ""}}}),
			"HostConfig.PortBindings",
		},
		"restarted by the engine": {
			host("RestartPolicy", map[string]any{"Name": "on-failure", "MaximumRetryCount": 0}),
			"HostConfig.RestartPolicy",
		},
		"a part of a volume": {asked("VolumeOptions", "Subpath", "x"), "HostConfig.Mounts"},
		"a mount that lets through": {
			asked("BindOptions", "Propagation", "rshared"), "HostConfig.Mounts",
		},

		"a mount more": {
			extra(map[string]any{"Type": "bind", "Source": "/", "Destination": "/host", "RW": true}),
			"Mounts",
		},
		"a tmpfs mount": {
			extra(map[string]any{"Type": "tmpfs", "Destination": "/app", "RW": true}),
			"Mounts",
		},
		"a volume over a mount": {
			extra(map[string]any{
				"Type": "volume", "Name": hex, "Destination": "/app", "Driver": "local", "RW": true,
			}),
			"Mounts",
		},
		"a writable mount": {mount("/tapp", "RW", true), "Mounts"},
		"another source":   {mount("/tapp", "Source", "/tmp"), "Mounts"},
		"a shared mount":   {mount("/tapp", "Propagation", "rshared"), "Mounts"},
		"another volume":   {mount("/data", "Name", "other"), "Mounts"},
		"another driver":   {mount("/data", "Driver", "nfs"), "Mounts"},
		"a named volume":   {mount("/cache", "Name", "other"), "Mounts"},
		"another socket": {
			mount("/var/run/dstack.sock", "Source", "/tmp/dstack.sock"),
			"Mounts",
		},

		"another network": {func(a map[string]any) {
			a["NetworkSettings"].(map[string]any)["Networks"].(map[string]any)["other"] = map[string]any{}
		}, "NetworkSettings.Networks"},
		"no network": {
			set("NetworkSettings", "Networks", map[string]any{}),
			"NetworkSettings.Networks",
		},
		"another's name": {
			endpoint("Aliases", []any{"mpc-node", "near.org"}),
			"NetworkSettings.Networks",
		},
		"a linked name": {endpoint("Links", []any{"other:x"}), "NetworkSettings.Networks"},
		"an address": {
			endpoint("IPAMConfig", map[string]any{"IPv4Address": "10.0.0.9"}),
			"NetworkSettings.Networks",
		},
		"driver options": {
			endpoint("DriverOpts", map[string]any{"com.docker.network.endpoint.sysctls": "x"}),
			"NetworkSettings.Networks",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRecording(t, recordings(t)[0], id)
			tc.tamper(r.answer)
			var deviation *compose.DeviationError
			err := r.check()
			require.ErrorAs(t, err, &deviation)
			assert.Equal(t, tc.what, deviation.What)
			assert.NotContains(t, err.Error(), "x.so", "values of variables may be secret")
			assert.NotEmpty(t, deviation.Hints())
		})
	}
	r := newRecording(t, recordings(t)[0], id)
	c, err := r.engine.Container(t.Context(), "mpc-node")
	require.NoError(t, err)
	w, base := recorded()
	err = w.Check(c, inspect.ImageID{}, base, "runc")
	require.Error(t, err, "no proved image: nothing can be right")
	assert.False(t, errors.As(err, new(*compose.DeviationError)))
}

// TestCheckExpectsWhatEnginesMakeOfAnImage: the letters of its config are often others.
func TestCheckExpectsWhatEnginesMakeOfAnImage(t *testing.T) {
	t.Parallel()
	id := proved(t)
	own := "DSTACK_ENDPOINT=/var/run/dstack.sock"
	none := map[string]any{"Test": []any{"NONE"}}
	check := &v1.HealthConfig{Test: []string{"CMD", "x"}, Retries: 3}
	for i, tc := range []struct {
		image func(*v1.Config)
		field string
		told  any
		agent bool
	}{
		{func(c *v1.Config) { c.Env = nil }, "Env", []any{own}, true},
		{func(c *v1.Config) { c.Env = []string{"A=1", "A=2", "B"} }, "Env", []any{own, "A=1", "B"}, true},
		{func(c *v1.Config) { c.Env = []string{"A=1", "A=2", "B"} }, "Env", []any{"A=1", "A=2", "B"}, false},
		{func(c *v1.Config) { c.Env = []string{"DSTACK_ENDPOINT=/x", "A="} }, "Env", []any{own, "A="}, true},
		{func(c *v1.Config) { c.Env = []string{} }, "Env", nil, false},
		{func(c *v1.Config) { c.WorkingDir = "" }, "WorkingDir", "", true},
		{func(c *v1.Config) { c.WorkingDir = "" }, "WorkingDir", "/", true},
		{func(c *v1.Config) { c.WorkingDir = "/a//b/../c/" }, "WorkingDir", "/a/c", true},
		{func(c *v1.Config) { c.User = "" }, "User", "", true},
		{func(c *v1.Config) { c.User = "node" }, "User", "node", true},
		{func(c *v1.Config) { c.Healthcheck = nil }, "Healthcheck", none, true},
		{func(c *v1.Config) { c.Healthcheck = &v1.HealthConfig{} }, "Healthcheck", none, true},
		{func(c *v1.Config) { c.Healthcheck = &v1.HealthConfig{Test: []string{"NONE"}} }, "Healthcheck",
			nil, true},
		{func(c *v1.Config) { c.Healthcheck = check }, "Healthcheck",
			map[string]any{"Test": []any{"CMD", "x"}, "Retries": 3, "Timeout": 0, "StartInterval": 5}, true},
		{func(c *v1.Config) { c.StopSignal = "SIGINT" }, "StopSignal", "SIGINT", true},
	} {
		r := newRecording(t, recordings(t)[0], id)
		w, base := recorded()
		if tc.image(&base); !tc.agent {
			w.Agent = ""
		}
		c, err := r.engine.Container(t.Context(), "mpc-node")
		require.NoError(t, err)
		c.Settings["Config."+tc.field] = tc.told
		if !tc.agent {
			socket := func(m inspect.Mount) bool { return m.Source == "/dev/null" }
			c.Mounts = slices.DeleteFunc(c.Mounts, socket)
		}
		assert.NoError(t, w.Check(c, id, base, "runc"), "%d: %s", i, tc.field)
		c.Settings["Config."+tc.field] = []any{fmt.Sprint(i)}
		assert.Error(t, w.Check(c, id, base, "runc"), "%d: %s", i, tc.field)
	}
}
