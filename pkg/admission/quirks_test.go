package admission_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

// quirk is one thing about a world.
type quirk struct {
	name string
	do   func(m *machine)
}

func quirks() []quirk {
	var all []quirk
	add := func(name string, do func(m *machine)) { all = append(all, quirk{name, do}) }
	file := func(name, path, text string) {
		add(name, func(m *machine) { m.write(m.path(path), text) })
	}
	dir := func(path string) {
		add("a directory at "+path, func(m *machine) {
			_ = os.RemoveAll(m.path(path))
			_ = os.MkdirAll(m.path(path+"/x"), 0o755) // unless ours isn't one
		})
	}
	gone := func(path string) {
		add("no "+path, func(m *machine) { check(os.RemoveAll(m.path(path))) })
	}
	unknown := digest.Of([]byte("unknown"))

	// The list, the config, and which image they choose.
	add("approved 0", func(m *machine) { m.approve(m.digests[0]) })
	add("approved 1, 0", func(m *machine) { m.approve(m.digests[1], m.digests[0]) })
	add("approved unknown, 0", func(m *machine) { m.approve(unknown, m.digests[0]) })
	add("approved 0, 1; override 1", func(m *machine) {
		m.approve(m.digests[0], m.digests[1])
		m.configure(fmt.Sprintf("mpc_hash_override = %q", m.digests[1]))
	})
	add("override unapproved", func(m *machine) {
		m.approve(m.digests[0])
		m.configure(fmt.Sprintf("mpc_hash_override = %q", m.digests[1]))
	})
	add("default 1", func(m *machine) { m.settings.DefaultDigest = m.digests[1] })
	add("default unknown", func(m *machine) { m.settings.DefaultDigest = unknown })
	add("nobody listens at the registry", func(m *machine) {
		const nobody = "image = \"127.0.0.1:1/x/y\"\npull_max_retries = 0\n"
		m.write(m.settings.ConfigFile, "[launcher_config]\n"+nobody+"[mpc_node_config]\n")
	})
	add("reserved in the node config", func(m *machine) {
		m.write(m.settings.ConfigFile, "[launcher_config]\nimage = \"x/y\"\n[mpc_node_config]\nTee = 1\n")
	})
	file("a broken list", "shared/image-digest.bin", "{}")
	file("a broken config", "user_config", "x")

	// What stands at the place of files.
	for _, path := range []string{
		"user_config", "shared/image-digest.bin", "shared/mpc-config.toml", "shared/.mpc-config.toml.tmp",
		"shared/launcher/measurement.json", "shared/launcher/.measurement.json.tmp",
		"shared/launcher/report.json",
	} {
		dir(path)
	}
	for _, path := range []string{
		"shared/launcher", "shared/mpc-config.toml", "shared/.mpc-config.toml.tmp",
		"shared/launcher/measurement.json", "shared/launcher/.measurement.json.tmp",
	} {
		dir(path + ".aside")
		add("full at "+path+" and set aside", func(m *machine) {
			if path != "shared/launcher" {
				_ = os.RemoveAll(m.path(path))
				_ = os.MkdirAll(m.path(path+"/x"), 0o755)
			}
			_ = os.MkdirAll(m.path(path+".aside/x"), 0o755)
		})
	}
	file("a file in the place of our directory", "shared/launcher", "x")
	add("a damaged record", func(m *machine) { m.record(`{"boot_id":`) })
	gone("user_config")
	gone("shared")
	gone("shared/launcher")
	add("a link in the place of our directory", func(m *machine) {
		_ = os.RemoveAll(m.shared("launcher"))
		_ = os.Symlink("/tmp", m.shared("launcher"))
	})
	gone("proc/sys/kernel/random/boot_id")
	add("a launcher holds the lock", func(m *machine) { m.lockBy("1") })
	add("the workload holds the lock", func(m *machine) {
		for _, c := range m.engine.Containers() {
			if c.Name == "mpc-node" && c.Status != "created" && c.Status != "exited" {
				m.lockBy("77")
				m.locker.Store(c.ID)
				mount := "1 1 8:1 /containers/" + c.ID + "/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"
				m.write(filepath.Join(m.proc, "77/mountinfo"), mount)
			}
		}
	})

	// The record and the log.
	const intent = `{"boot_id":%q,"digest":%q,"intent":"2026-01-01T00:00:00Z","done":%v}`
	for i := range 2 {
		add(fmt.Sprintf("recorded: intent %d", i), func(m *machine) {
			m.record(intent, m.boot(), m.digests[i], false)
		})
		add(fmt.Sprintf("recorded: done %d", i), func(m *machine) {
			m.record(intent, m.boot(), m.digests[i], true)
		})
		add(fmt.Sprintf("event %d", i), func(m *machine) { m.emit(i) })
	}
	add("recorded: begun", func(m *machine) { m.record(`{"boot_id":%q}`, m.boot()) })
	add("recorded: another boot's intent", func(m *machine) {
		m.record(intent, "boot-0", m.digests[0], false)
	})
	add("event of a short payload", func(m *machine) { m.agent.Emit(rtmr.EventName, []byte("x")) })
	add("event of an ambiguous name", func(m *machine) { m.agent.Emit(rtmr.EventName+":x", nil) })
	add("event of another name", func(m *machine) { m.agent.Emit("somebody-else", nil) })
	add("a log that doesn't replay", func(m *machine) {
		m.agent.Fail(launchtest.AgentFault{Kind: launchtest.EmitPoisons, Match: "EmitEvent poison"})
		m.askAgent(`{"event":"poison","payload":"00"}`)
	})

	// The agent.
	add("no agent", func(m *machine) { check(m.agent.Stop()) })
	add("an agent that can't emit", func(*machine) {})
	for _, kind := range []launchtest.AgentFaultKind{
		launchtest.QuoteFails, launchtest.AgentRefuses, launchtest.AgentBreaks, launchtest.AgentDrops,
		launchtest.AgentGarbles,
	} {
		add("the agent's Info "+string(kind), func(m *machine) {
			m.agent.Fail(launchtest.AgentFault{Kind: kind, Match: "Info", Times: -1})
		})
	}
	for _, kind := range []launchtest.AgentFaultKind{
		launchtest.AgentRefuses, launchtest.AgentDrops, launchtest.AgentLoses, launchtest.EmitSwallows,
		launchtest.EmitPoisons,
	} {
		add("emit goes wrong: "+string(kind), func(m *machine) {
			m.agent.Fail(launchtest.AgentFault{Kind: kind, Match: "EmitEvent mpc-image-digest", Times: -1})
		})
	}

	// The engine, its images and its disk.
	add("another shared directory", func(m *machine) {
		m.settings.SharedDir += "-too"
		check(os.MkdirAll(m.settings.SharedDir, 0o755))
	})
	for _, place := range []string{"shared/image-digest.bin", "shared/launcher", "shared/launcher/measurement.json", "user_config", "shared"} {
		add("the report at "+place, func(m *machine) { m.settings.Report = m.path(place) })
	}
	add("no engine", func(m *machine) { m.settings.DockerHost += ".none" })
	add("the engine's disk is full", func(*machine) {})
	for _, request := range []string{
		"GET /_ping", "GET /info", "GET /volumes/shared-volume", "GET /volumes/some", "GET /containers/json", "GET /images/json", "GET /images/*/json",
	} {
		add("the engine fails at "+request, func(m *machine) { m.engineFails(request) })
	}
	for what, request := range map[string]string{
		"stop": "POST /containers/*/stop", "update": "POST /containers/*/update",
		"remove": "DELETE /containers/*", "start": "POST /containers/*/start",
		"create": "POST /containers/create", "inspect": "GET /containers/*/json",
		"load": "POST /images/load",
	} {
		add("engine refuses to "+what, func(m *machine) { m.engineFails(request) })
	}
	for _, fault := range []launchtest.LoadFault{
		launchtest.LoadErrorLine, launchtest.LoadVanishes, launchtest.LoadSilent,
	} {
		add("engine refuses to load: "+string(fault), func(m *machine) {
			m.engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Load: fault, Times: -1})
		})
	}
	for i := range 2 {
		add(fmt.Sprintf("image %d is loaded", i), func(m *machine) {
			_, err := m.engine.AddImage(m.images[i], "")
			check(err)
		})
		add(fmt.Sprintf("image %d is kept", i), func(m *machine) {
			m.own("image-"+m.digests[i].Hex()+".json", string(m.kept[i]))
		})
		add(fmt.Sprintf("image %d is held", i), func(m *machine) {
			id, err := m.engine.AddImage(m.images[i], "")
			check(err)
			m.engineDoes(http.MethodPost, fmt.Sprintf("/containers/create?name=holds-%d", i),
				map[string]any{"Image": id, "Cmd": []string{"x"}})
		})
	}
	for _, name := range []string{"mpc-node-staged", "mpc-node-staged-pending"} {
		add(name+" is there", func(m *machine) {
			id, err := m.engine.AddImage(m.images[1], "")
			check(err)
			m.engineDoes(http.MethodPost, "/containers/create?name="+name, map[string]any{
				"Image": id, "Cmd": []string{"x"},
				"Labels": map[string]string{"tee-launcher.staged": m.digests[1].String(), "tee-launcher.staged-image": id},
			})
		})
	}
	add("the kept image is garbage", func(m *machine) {
		m.own("image-"+m.digests[0].Hex()+".json", "{}")
	})

	// The registry.
	for name, status := range map[string]int{
		"refuses": 403, "wants a login for": 401, "hasn't": 404, "breaks at": 500, "limits": 429,
	} {
		add("the registry "+name+" manifests", func(m *machine) {
			m.registryFails(launchtest.FaultStatus, launchtest.RequestManifest, v1.Hash{}, status)
		})
	}
	add("the registry's manifests are damaged", func(m *machine) {
		m.registryFails(launchtest.FaultFlip, launchtest.RequestManifest, v1.Hash{}, 0)
	})
	for layer := range 2 {
		blob := func(m *machine) v1.Hash {
			layers, err := m.images[0].Layers()
			check(err)
			h, err := layers[layer].Digest()
			check(err)
			return h
		}
		for _, status := range []int{404, 403, 500} {
			add(fmt.Sprintf("the registry answers for layer %d with %d", layer, status), func(m *machine) {
				m.registryFails(launchtest.FaultStatus, launchtest.RequestBlob, blob(m), status)
			})
		}
		add(fmt.Sprintf("layer is damaged: %d", layer), func(m *machine) {
			m.registryFails(launchtest.FaultFlip, launchtest.RequestBlob, blob(m), 0)
		})
	}
	add("the registry lost the config", func(m *machine) {
		h, err := m.images[0].ConfigName()
		check(err)
		m.registryFails(launchtest.FaultStatus, launchtest.RequestBlob, h, 404)
	})

	// Compose and the workload.
	add("no Compose", func(m *machine) { m.settings.Compose = "/nonexistent/compose" })
	add("Compose 1", func(m *machine) { m.settings.Compose += " --fail=old" })
	for _, fault := range []launchtest.ComposeFault{
		launchtest.ComposeCreate, launchtest.ComposeLate, launchtest.ComposeSilent, launchtest.ComposeTamper,
	} {
		add("compose goes wrong: "+string(fault), func(m *machine) {
			m.settings.Compose += " --fail=" + string(fault)
		})
	}
	add("workload ends", func(m *machine) { m.dies.Store(true) })
	for what, request := range map[string]string{
		"paused": "pause", "started": "start", "stopped": "stop", "killed": "kill",
	} {
		add("the workload was "+what, func(m *machine) {
			m.engineDoes(http.MethodPost, "/containers/mpc-node/"+request, nil)
		})
	}
	add("an impostor was ended", func(m *machine) {
		_, err := m.engine.AddImage(m.old, "old:1")
		check(err)
		m.make(container{Name: "gone", State: "stopped", Policy: "no"})
		for _, c := range m.engine.Containers() {
			if c.Name == "gone" {
				m.engineDoes(http.MethodPost, "/containers/gone/rename?name=mpc-node-impostor-"+m.boot()+"-"+c.ID[:12], nil)
			}
		}
	})
	add("a container that never ran has an impostor's name", func(m *machine) {
		_, err := m.engine.AddImage(m.old, "old:1")
		check(err)
		m.make(container{Name: "made", State: "created", Policy: "no"})
		for _, c := range m.engine.Containers() {
			if c.Name == "made" {
				m.engineDoes(http.MethodPost, "/containers/made/rename?name=mpc-node-impostor-"+m.boot()+"-"+c.ID[:12], nil)
			}
		}
	})
	add("the workload shares the host's processes", func(m *machine) {
		_ = m.engine.Alter("mpc-node", "PidMode", "host") // unless there is none
	})
	add("the workload was removed", func(m *machine) {
		m.engineDoes(http.MethodDelete, "/containers/mpc-node?force=1", nil)
	})
	for _, policy := range []string{"always", "on-failure"} {
		add("the workload restarts "+policy, func(m *machine) { m.restarts("mpc-node", policy) })
	}
	slices.SortStableFunc(all, func(a, b quirk) int { return strings.Compare(a.name, b.name) })
	return all
}
