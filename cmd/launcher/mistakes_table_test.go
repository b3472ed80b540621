package main_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
)

// some is a digest that nobody has.
var some = "sha256:" + strings.Repeat("ab", 32)

// mistakes is the table.
func mistakes() []mistake {
	var all []mistake
	for _, rows := range [][]mistake{
		inSettings(), inTheSharedDirectory(), inTheList(), inTheUserConfig(), ofTheEngine(), ofCompose(),
		ofTheWorkload(), ofTheAgent(), ofTheRegistry(), ofTheImage(), ofCredentials(),
	} {
		all = append(all, rows...)
	}
	return all
}

func inSettings() []mistake {
	set := func(name, variable string, says ...string) mistake {
		return mistake{name: name, set: []string{variable}, code: exit.Usage, says: says}
	}
	const digest = "DEFAULT_IMAGE_DIGEST"
	return []mistake{
		set("no platform", "PLATFORM=", "PLATFORM is not set", "TEE or NONTEE"),
		set("platform in lower case", "PLATFORM=tee", `PLATFORM: "tee"`, "TEE or NONTEE"),
		set("platform with a space", "PLATFORM= TEE", `PLATFORM: " TEE"`, "TEE or NONTEE"),
		set("platform in quotes", `PLATFORM="TEE"`, `PLATFORM: "\"TEE\""`, "TEE or NONTEE", "remove the quotes"),
		set("no default digest", digest+"=", digest+" is not set", "sha256:"),
		set("default digest in capitals", digest+"=sha256:"+strings.Repeat("AB", 32), digest),
		set("default digest too short", digest+"="+some[:70], digest),
		set("default digest with a space behind it", digest+"="+some+" ", digest),
		set("default digest without its prefix", digest+"="+some[7:], digest),
		set("default digest in quotes", digest+`="`+some+`"`, digest),
		set("a tag in place of the default digest", digest+"=nearone/mpc-node:3.9.1", digest, "launcher digest"),
		set("a reference in place of the default digest", digest+"=nearone/mpc-node@"+some, digest),
		{name: "zeros in place of the default digest", set: []string{digest + "=" + zeros}, code: exit.Config,
			says: []string{"64 zeros"}},
		set("no content trust", "DOCKER_CONTENT_TRUST=", "DOCKER_CONTENT_TRUST is not set"),
		set("content trust that is true", "DOCKER_CONTENT_TRUST=true", `DOCKER_CONTENT_TRUST: "true"`),
		set("docker over TCP", "DOCKER_HOST=tcp://127.0.0.1:2375", "DOCKER_HOST"),
		set("docker's socket as a path", "DOCKER_HOST=/var/run/docker.sock", "DOCKER_HOST"),
		set("a scheme in an insecure registry", "LAUNCHER_INSECURE_REGISTRIES=http://a.example", "LAUNCHER_INSECURE_REGISTRIES"),
		set("a log level that isn't one", "LOG_LEVEL=verbose", "LOG_LEVEL"),
		set("a log format that isn't one", "LOG_FORMAT=logfmt", "LOG_FORMAT"),
		set("supervise that is yes", "LAUNCHER_SUPERVISE=yes", "LAUNCHER_SUPERVISE"),
		set("measure that is kernel", "LAUNCHER_MEASURE=kernel", "LAUNCHER_MEASURE", "agent or native"),
		set("a fallback that is on", "LAUNCHER_FALLBACK=on", "LAUNCHER_FALLBACK", "off or unpullable"),
		set("a fallback after a number", "LAUNCHER_FALLBACK_AFTER=30", "LAUNCHER_FALLBACK_AFTER", `"30"`, "30m"),
		set("a fallback after nothing", "LAUNCHER_FALLBACK_AFTER=0s", "LAUNCHER_FALLBACK_AFTER", `"0s"`, "30m"),
		set("the list in place of the report", "LAUNCHER_REPORT=@shared@/image-digest.bin", "report"),
		set("a directory in place of the report", "LAUNCHER_REPORT=@shared@", "report", "a directory"),
		{name: "a misspelt flag", args: []string{"--shared-dri=/x"}, code: exit.Usage, says: []string{"did you mean --shared-dir?"}},
		{name: "an empty flag", args: []string{"--config="}, code: exit.Usage, says: []string{"--config"}},
		{name: "a flag without its value", args: []string{"--config"}, code: exit.Usage, says: []string{"--config"}},
		{name: "a misspelt variable", set: []string{"LAUNCHER_SHARED_DRI=/x"}, warns: true,
			says: []string{"LAUNCHER_SHARED_DRI is not a setting", "LAUNCHER_SHARED_DIR"}},
	}
}

func inTheSharedDirectory() []mistake {
	return []mistake{
		{name: "no shared directory", set: []string{"LAUNCHER_SHARED_DIR=/nonexistent/shared"}, code: exit.Config,
			says: []string{"/nonexistent/shared"}},
		{name: "a file in place of the shared directory", code: exit.Config, make: func(m *mistaken) {
			m.write(filepath.Join(m.dir, "file"), "")
			m.variable("LAUNCHER_SHARED_DIR=" + filepath.Join(m.dir, "file"))
		}},
		{name: "another directory than the volume", code: exit.Config, make: func(m *mistaken) {
			m.variable("LAUNCHER_SHARED_DIR=" + m.dir)
		}, says: []string{"shared-volume"}},
		{name: "another directory than the volume, in a CVM", tee: true, code: exit.Config, make: func(m *mistaken) {
			m.variable("LAUNCHER_SHARED_DIR=" + m.dir)
		}, says: []string{"shared-volume"}},
		{name: "no volume", code: exit.Config, make: engine("GET /volumes/shared-volume", 404, "get shared-volume: no such volume"),
			says: []string{"shared-volume"}},
		{name: "a shared volume that is read-only", code: exit.Config, surround: readOnly, says: []string{"read-only"},
			not: []string{"remove what stands"}},
		{name: "a shared volume that is full", code: exit.Config, surround: full, says: []string{"no space left"},
			not: []string{"remove what stands"}},
		{name: "a shared volume that is somebody else's", code: exit.Config, surround: unprivileged, make: func(m *mistaken) {
			m.do(os.Chmod(m.SharedDir, 0o555))
		}, says: []string{"permission denied"}, not: []string{"remove what stands"}},
		{name: "a shared volume that is read-only, in a CVM", tee: true, code: exit.Config, surround: readOnly, says: []string{"read-only"},
			not: []string{"remove what stands"}},
		{name: "a shared volume that is full, in a CVM", tee: true, code: exit.Config, surround: full, says: []string{"no space left"},
			not: []string{"remove what stands"}},
		{name: "a shared directory that can't be entered", code: exit.Config, surround: unprivileged, make: func(m *mistaken) {
			m.do(os.Chmod(m.SharedDir, 0))
			m.t.Cleanup(func() { _ = os.Chmod(m.SharedDir, 0o755) })
		}, says: []string{"permission denied"}},
		{name: "another launcher", code: exit.Busy, now: true, make: func(m *mistaken) {
			dir, err := os.Open(m.SharedDir)
			m.do(err)
			m.t.Cleanup(func() { dir.Close() })
			m.do(unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB))
		}},
	}
}

func inTheList() []mistake {
	wrong := func(name, text string, says ...string) mistake {
		return mistake{name: name, make: list(text), code: exit.Config, says: append(says, "image-digest.bin")}
	}
	return []mistake{
		{name: "a directory in place of the list", code: exit.Config, says: []string{"image-digest.bin"}, make: func(m *mistaken) {
			m.do(os.Mkdir(m.Shared("image-digest.bin"), 0o755))
		}},
		{name: "a link in place of the list", code: exit.Config, says: []string{"image-digest.bin", "a link"}, make: func(m *mistaken) {
			m.do(os.Symlink("/etc/hostname", m.Shared("image-digest.bin")))
		}},
		wrong("an empty file as the list", ""),
		wrong("garbage in the list", "\x00\x01\x02\xff"),
		wrong("a byte order mark before the list", "\ufeff"+`{"approved_hashes":["@digest@"]}`),
		wrong("half a list", `{"approved_hashes":["@digest@"`),
		wrong("a bare digest as the list", "@digest@\n"),
		wrong("a bare array as the list", `["@digest@"]`),
		wrong("no entry in the list", `{"approved_hashes":[]}`),
		wrong("another key in the list", `{"approved_digests":["@digest@"]}`),
		wrong("a key in another case in the list", `{"Approved_Hashes":["@digest@"]}`),
		wrong("text in place of the array", `{"approved_hashes":"@digest@"}`),
		wrong("a number in the list", `{"approved_hashes":[1]}`, "entry 1: 1 is not a string"),
		wrong("a digest without its prefix in the list", `{"approved_hashes":["`+some[7:]+`"]}`),
		wrong("a digest in capitals in the list", `{"approved_hashes":["sha256:`+strings.Repeat("AB", 32)+`"]}`),
		wrong("the key twice in the list", `{"approved_hashes":["@digest@"],"approved_hashes":["@digest@"]}`),
		wrong("a list that is too large", `{"approved_hashes":["@digest@"]}`+strings.Repeat(" ", 70_000)),
		wrong("a comma too much in the list", `{"approved_hashes":["@digest@",]}`),
	}
}

func inTheUserConfig() []mistake {
	wrong := func(name string, make func(*mistaken), says ...string) mistake {
		return mistake{name: name, make: make, code: exit.Config, says: append(says, "user_config")}
	}
	image := "[launcher_config]\nimage_reference = \"@registry@/nearone/mpc-node\"\n"
	named := func(reference string) func(*mistaken) {
		return user("[launcher_config]\nimage_reference = \"" + reference + "\"\n" + rest)
	}
	return []mistake{
		{name: "no user config", set: []string{"LAUNCHER_CONFIG=/nonexistent/user_config"}, code: exit.Config,
			says: []string{"/nonexistent/user_config"}},
		wrong("a directory in place of the user config", func(m *mistaken) {
			m.do(os.Remove(m.ConfigFile))
			m.do(os.Mkdir(m.ConfigFile, 0o755)) // what docker makes of a mount of a file that isn't there
		}),
		{name: "a user config that can't be read", surround: unprivileged, code: exit.Config, make: func(m *mistaken) {
			m.do(os.Chmod(m.ConfigFile, 0))
		}, says: []string{"user_config: permission denied"}},
		wrong("an empty user config", user("")),
		wrong("the .env form", user("MPC_IMAGE_NAME=nearone/mpc-node\nPORTS=8080:8080\n"), "image_reference ="),
		wrong("the .env form of somebody else", user("IMAGE=nearone/mpc-node\n")),
		wrong("JSON in place of TOML", user("{\"launcher_config\": {}}\n"), "JSON?"),
		wrong("YAML in place of TOML", user("launcher_config:\n  image_reference: x\n"), "YAML?"),
		wrong("a quote that isn't closed", user("[launcher_config]\nimage_reference = \"nearone/mpc-node\n"+rest), ":2:"),
		wrong("no quotes", user("[launcher_config]\nimage_reference = nearone/mpc-node\n"+rest), ":2:"),
		wrong("no table for the launcher", user(rest), "launcher_config"),
		wrong("no table for the node", user(image), "mpc_node_config"),
		wrong("a misspelt table", user("[launcher_conf]\nimage_reference = \"nearone/mpc-node\"\n"+rest), "launcher_config"),
		wrong("no image", user("[launcher_config]\n"+rest), "image_reference"),
		wrong("a misspelt key", launchers("port_mapings = []"), "port_mappings"),
		wrong("a key in another case", launchers("Port_Mappings = []"), "port_mappings"),
		wrong("a setting in the user config", launchers("platform = \"TEE\""), "platform", "a flag, a variable"),
		wrong("an image under two names", launchers("image_reference = \"nearone/another\""), "image_reference"),
		wrong("a digest in the image's name", named("nearone/mpc-node@"+some), "digest"),
		wrong("a URL as the image's name", named("https://docker.io/nearone/mpc-node"), "https://"),
		wrong("capitals in the image's name", named("nearone/MPC-node"), "MPC"),
		wrong("a space in the image's name", named("nearone/mpc-node "), "mpc-node "),
		wrong("an image's ID as its name", named(strings.Repeat("ab", 32)), "ID"),
		wrong("a number as the image's name", user("[launcher_config]\nimage_reference = 3\n"+rest), ":2:"),
		wrong("a port that is text", user(image+"port_mappings = [\"8080:8080\"]\n"+rest), ":3:", "{ host ="),
		wrong("ports as text", user(image+"port_mappings = \"8080:8080\"\n"+rest), ":3:", "{ host ="),
		wrong("a port too high", user(image+"port_mappings = [{ host = 78080, container = 8080 }]\n"+rest), ":3:", "65535"),
		wrong("port zero", user(image+"port_mappings = [{ host = 0, container = 8080 }]\n"+rest), ":3:", "65535"),
		wrong("half a port mapping", user(image+"port_mappings = [{ host = 8080 }]\n"+rest), ":3:", "container"),
		wrong("a port twice", user(image+"port_mappings = [{ host = 8080, container = 80 }, { host = 8080, container = 81 }]\n"+rest), ":3:", "8080"),
		wrong("negative retries", user(image+"pull_max_retries = -1\n"+rest), ":3:", "pull_max_retries"),
		wrong("a source without a scheme", user(image+"[[launcher_config.sources]]\nregistry = \"cache.example\"\n"+rest), ":4:", "https://host[:port]"),
		wrong("a source over plain http", user(image+"[[launcher_config.sources]]\nregistry = \"http://cache.example\"\n"+rest), ":4:", "--insecure-registry"),
		wrong("a source with a login", user(image+"[[launcher_config.sources]]\nregistry = \"https://u:p@cache.example\"\n"+rest), ":4:", "registry_auth"),
		wrong("a layout by a relative path", user(image+"[[launcher_config.sources]]\nlayout = \"images\"\n"+rest), ":4:", "absolute"),
		wrong("a login without quotes", user(image+"[launcher_config.registry_auth.ghcr.io]\nregistry_token = \"x\"\n"+rest), ":3:", "in quotes"),
		wrong("half a login", user(image+"[launcher_config.registry_auth.\"ghcr.io\"]\npassword = \"x\"\n"+rest), ":3:", "username"),
		wrong("a duration that is text", user(image+"pull_max_delay_secs = \"60s\"\n"+rest), ":3:", "pull_max_delay_secs"),
		wrong("an override that is short", launchers("mpc_hash_override = \"sha256:abc\""), "mpc_hash_override"),
		wrong("an override without its prefix", launchers("mpc_hash_override = \""+some[7:]+"\""), "mpc_hash_override"),
		{name: "an override that isn't approved", code: exit.Config, says: []string{some, "mpc_hash_override"}, make: func(m *mistaken) {
			launchers("mpc_hash_override = \"" + some + "\"")(m)
			m.do(m.Approve(m.Digests...))
		}},
		{name: "an override without a list", warns: true, says: []string{"mpc_hash_override"},
			make: launchers("mpc_hash_override = \"" + some + "\"")},
		wrong("the reserved table", nodes("[mpc_node_config.tee]\nimage_hash = \"x\""), "tee"),
		{name: "the forbidden table", tee: true, code: exit.Config, says: []string{"gcp", "user_config"}, make: nodes("[mpc_node_config.gcp]\nproject = \"x\"")},
		{name: "names of 3.8", warns: true, says: []string{"image_reference"}, make: func(m *mistaken) {
			text, err := os.ReadFile(m.ConfigFile)
			m.do(err)
			old := fmt.Sprintf("registry = %q\nimage_name = %q\n", m.Registry.Host(), launchtest.Repository)
			m.write(m.ConfigFile, strings.Replace(string(text), "image = \""+m.Registry.Host()+"/"+launchtest.Repository+":main\"\n", old, 1))
		}},
	}
}

// serve has a handler answer at a socket.
func serve(m *mistaken, path string, handler http.HandlerFunc) {
	listener, err := net.Listen("unix", path)
	m.do(err)
	server := &http.Server{Handler: handler}
	go server.Serve(listener)
	m.t.Cleanup(func() { server.Close() })
}

func ofTheEngine() []mistake {
	socket := func(replace func(path string, m *mistaken)) func(*mistaken) {
		return func(m *mistaken) {
			path := filepath.Join(m.dir, "d.sock")
			replace(path, m)
			m.variable("DOCKER_HOST=unix://" + path)
		}
	}
	down := []string{"d.sock"}
	return []mistake{
		{name: "docker's socket isn't there", code: exit.Engine, says: down, make: socket(func(string, *mistaken) {})},
		{name: "docker's socket isn't there, in a CVM", tee: true, code: exit.Engine, says: down, make: socket(func(string, *mistaken) {})},
		{name: "a directory in place of docker's socket", code: exit.Engine, says: down, make: socket(func(path string, m *mistaken) {
			m.do(os.Mkdir(path, 0o755)) // what docker makes of a mount that isn't there
		})},
		{name: "a file in place of docker's socket", code: exit.Engine, says: down, make: socket(func(path string, m *mistaken) {
			m.write(path, "")
		})},
		{name: "dockerd has ended", code: exit.Engine, says: down, make: socket(func(path string, m *mistaken) {
			listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			m.do(err)
			listener.SetUnlinkOnClose(false)
			m.do(listener.Close())
		})},
		{name: "docker's socket isn't for this user", surround: unprivileged, code: exit.Engine, says: []string{"permission denied"}, make: func(m *mistaken) {
			m.do(os.Chmod(strings.TrimPrefix(m.Engine.Host(), "unix://"), 0))
		}},
		{name: "dockerd breaks", code: exit.Engine, make: engine("GET /*", 500, "it broke"), says: []string{"journalctl -u docker"}},
		{name: "something else at docker's socket", code: exit.Engine, says: down, make: socket(func(path string, m *mistaken) {
			serve(m, path, http.NotFound)
		})},
		{name: "Podman at docker's socket", tee: true, code: exit.Engine, says: []string{"Podman 4.9.3", "--docker-host"}, make: socket(func(path string, m *mistaken) {
			serve(m, path, func(w http.ResponseWriter, q *http.Request) {
				w.Header().Set("Api-Version", "1.41")
				w.Header().Set("Libpod-Api-Version", "4.9.3")
				if q.URL.Path == "/info" {
					fmt.Fprint(w, `{"ServerVersion":"4.9.3","OSType":"linux","Architecture":"x86_64"}`)
				}
			})
		})},
		{name: "an old engine", warns: true, says: []string{"20.10"}, machine: launchtest.MachineOptions{Engine: launchtest.EngineOptions{APIVersion: "1.40"}}},
		{name: "the engine's disk is full", code: exit.Engine, late: true, make: func(m *mistaken) {
			m.Engine.Fail(launchtest.EngineFault{Match: "POST /images/load", Times: -1, Load: launchtest.LoadDiskFull, LoadBytes: 1000})
		}, says: []string{"no space left on device"}},
		{name: "the engine breaks down while it loads", code: exit.Engine, late: true, make: engine("POST /images/load", 500, "it broke")},
		{name: "the network can't be made", code: exit.Workload, late: true, make: engine("POST /networks/create", 500, "all predefined address pools have been fully subnetted"),
			says: []string{"fully subnetted", "docker network prune"}},
	}
}

func ofCompose() []mistake {
	help := "printf 'Usage:  docker [OPTIONS] COMMAND\\n\\n' >&2; i=0; while [ $i -lt 90 ]; do echo \"  command$i   does something that nobody asked about\" >&2; i=$((i+1)); done; " +
		"echo \"unknown shorthand flag: 's' in --short\" >&2; exit 125"
	return []mistake{
		{name: "neither docker nor docker-compose", code: exit.Workload, surround: ownProcess, says: []string{"docker-compose"}, make: func(m *mistaken) {
			m.variable("PATH="+m.dir, "LAUNCHER_COMPOSE=")
		}},
		{name: "docker without Compose", code: exit.Workload, surround: ownProcess, says: []string{"docker compose"}, not: []string{"command1 "}, make: program("docker", help)},
		{name: "docker that says that compose isn't its command", code: exit.Workload, surround: ownProcess, says: []string{"docker compose"},
			make: program("docker", "echo \"docker: 'compose' is not a docker command.\" >&2; echo \"See 'docker --help'\" >&2; exit 1")},
		{name: "Compose of version 1", code: exit.Workload, surround: ownProcess, says: []string{"1.29.2", "version 2"}, make: program("docker-compose", "echo 1.29.2")},
		{name: "a Compose that isn't there", code: exit.Workload, set: []string{"LAUNCHER_COMPOSE=/usr/local/bin/docker-compos"}, says: []string{"docker-compos"}},
		{name: "a Compose that can't be run", code: exit.Workload, says: []string{"permission denied"}, surround: unprivileged, make: func(m *mistaken) {
			m.do(os.WriteFile(filepath.Join(m.dir, "compose"), nil, 0o600))
			m.variable("LAUNCHER_COMPOSE=" + filepath.Join(m.dir, "compose"))
		}},
		{name: "a Compose for another machine", code: exit.Workload, says: []string{"exec format error"}, surround: ownProcess, make: func(m *mistaken) {
			m.write(filepath.Join(m.dir, "compose"), "\x7fELF\x02")
			m.variable("LAUNCHER_COMPOSE=" + filepath.Join(m.dir, "compose"))
		}},
		{name: "a Compose that says too much", late: true, code: exit.Workload, set: []string{"LAUNCHER_COMPOSE=" + os.Args[0] + " compose-double --fail=noise"}},
	}
}

func ofTheWorkload() []mistake {
	starts := func(message string) func(*mistaken) {
		return engine("POST /containers/*/start", 500, message)
	}
	return []mistake{
		{name: "a port that a container has", code: exit.Workload, says: []string{"other"}, make: func(m *mistaken) {
			launchers("")(m)
			m.container("other", map[string]any{"HostConfig": map[string]any{
				"PortBindings": map[string]any{"80/tcp": []map[string]string{{"HostPort": "11780"}}},
			}})
		}},
		{name: "a port that a program has", code: exit.Workload, late: true,
			make: starts("driver failed programming external connectivity on endpoint mpc-node: Error starting userland proxy: listen tcp4 0.0.0.0:11780: bind: address already in use"),
			says: []string{"address already in use", "11780"}},
		{name: "a privileged port on a rootless engine", code: exit.Workload, late: true,
			make: starts("driver failed programming external connectivity on endpoint mpc-node: error while calling PortManager.AddPort(): cannot expose privileged port 80, you can add 'net.ipv4.ip_unprivileged_port_start=80' to /etc/sysctl.conf"),
			says: []string{"privileged port 80"}},
		{name: "no program in the image", code: exit.Workload, late: true,
			make: starts(`failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "/app/mpc-node": stat /app/mpc-node: no such file or directory: unknown`),
			says: []string{"/app/mpc-node"}},
		{name: "a workload that ends with 1", code: exit.Workload, late: true, onStart: ends(1, "cannot parse config"),
			says: []string{"cannot parse config", "exit code 1"}},
		{name: "a workload that ends with 127", code: exit.Workload, late: true, onStart: ends(127, "exec: not found"), says: []string{"127"}},
		{name: "a workload that is killed", code: exit.Workload, late: true, onStart: ends(137, "loading"), says: []string{"137", "more memory"},
			make: func(m *mistaken) {
				m.Engine.Fail(launchtest.EngineFault{Match: "GET /containers/*/json", Times: -1, Edit: func(b []byte) []byte {
					return []byte(strings.Replace(string(b), `"OOMKilled":false`, `"OOMKilled":true`, 1))
				}})
			}},
		{name: "a workload that is paused", code: exit.Workload, says: []string{"paused"}, make: func(m *mistaken) {
			_, stderr, code := runUntilSupervised(m.t, m.environ, "run")
			if code != exit.OK {
				m.t.Fatal(stderr)
			}
			_, err := m.Engine.Call(http.MethodPost, "/containers/mpc-node/pause", nil)
			m.do(err)
		}},
	}
}

func ofTheAgent() []mistake {
	agents := func(name string, make func(*mistaken), says ...string) mistake {
		return mistake{name: name, tee: true, make: make, code: exit.Measurement, says: says}
	}
	socket := func(replace func(path string, m *mistaken)) func(*mistaken) {
		return func(m *mistaken) {
			path := filepath.Join(m.dir, "a.sock")
			replace(path, m)
			m.variable("LAUNCHER_DSTACK_SOCKET=" + path)
		}
	}
	late := func(row mistake) mistake {
		row.late = true
		return row
	}
	release := func(row mistake, release string) mistake {
		row.machine.Agent.Release = release
		return row
	}
	return []mistake{
		agents("the agent's socket isn't there", socket(func(string, *mistaken) {}), "a.sock"),
		agents("a directory in place of the agent's socket", socket(func(path string, m *mistaken) { m.do(os.Mkdir(path, 0o755)) }), "a.sock"),
		agents("the agent has ended", socket(func(path string, m *mistaken) {
			listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			m.do(err)
			listener.SetUnlinkOnClose(false)
			m.do(listener.Close())
		}), "a.sock", "connection refused"),
		{name: "the agent's socket isn't for this user", tee: true, surround: unprivileged, code: exit.Measurement, says: []string{"permission denied"}, make: func(m *mistaken) {
			m.do(os.Chmod(m.AgentSocket, 0))
		}, not: []string{"mounted"}},
		agents("another server at the agent's socket", socket(func(path string, m *mistaken) {
			serve(m, path, http.NotFound)
		}), "a.sock"),
		agents("the agent refuses", agent(launchtest.AgentRefuses, "Info"), "the agent refuses"),
		agents("the agent breaks", agent(launchtest.AgentBreaks, "Info"), "500"),
		agents("the agent says nothing", agent(launchtest.AgentDrops, "Info"), "dstack.sock"),
		agents("the agent babbles", agent(launchtest.AgentGarbles, "Info"), "dstack.sock"),
		agents("no quote can be made", agent(launchtest.QuoteFails, ""), "quote"),
		release(agents("dstack 0.6", nil, "0.5.11", "0.6"), "0.6.0"),
		late(agents("the simulator", agent(launchtest.EmitSwallows, ""), "")),
		late(agents("a register that can't be extended", agent(launchtest.EmitPoisons, ""), "")),
		agents("another image is measured", func(m *mistaken) {
			m.Agent.Emit("mpc-image-digest", m.Digests[1][:])
		}, "measured"),
		agents("two images are measured", func(m *mistaken) {
			m.Agent.Emit("mpc-image-digest", m.Digests[0][:])
			m.Agent.Emit("mpc-image-digest", m.Digests[1][:])
		}, "reboot"),
		agents("somebody else holds the agent's socket", func(m *mistaken) {
			m.container("nosy", map[string]any{"HostConfig": map[string]any{"Binds": []string{m.AgentSocket + ":/s"}}})
		}, "nosy"),
		{name: "an impostor measured", tee: true, code: exit.Measurement, says: []string{"impostor"}, make: func(m *mistaken) {
			m.container("mpc-node", map[string]any{"HostConfig": map[string]any{
				"RestartPolicy": map[string]any{"Name": "on-failure"}, "Binds": []string{m.AgentSocket + ":/var/run/dstack.sock"},
			}})
			m.Agent.Emit("mpc-image-digest", m.Digests[0][:])
		}},
	}
}

func ofTheRegistry() []mistake {
	html := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(status)
			fmt.Fprintln(w, "<html><body>It works!</body></html>")
		}
	}
	return []mistake{
		{name: "a registry that has no address", code: exit.Unavailable, says: []string{"DNS"},
			make: elsewhere("registry-" + strings.Repeat("x", 64) + ".example/nearone/mpc-node")}, // no resolver is asked for that
		{name: "a registry that is down", code: exit.Unavailable, says: []string{"nothing listens"}, make: func(m *mistaken) { m.do(m.Registry.Stop()) }},
		{name: "another server at the registry's port", code: exit.Refused, make: stands(html(404))},
		{name: "a login page in place of the registry", code: exit.Mismatch, says: []string{"a web page", "a mirror or a proxy"}, make: stands(html(200))},
		{name: "a registry without https", code: exit.Unavailable, surround: ownProcess, says: []string{"--insecure-registry plain.test"}, make: func(m *mistaken) {
			leads("plain.test", m.Registry.Host(), m)
		}},
		{name: "an unknown CA", code: exit.Unavailable, surround: ownProcess, says: []string{"SSL_CERT_FILE"}, make: secure("registry.test", launchtest.RegistryOptions{}, false)},
		{name: "a certificate for another name", code: exit.Unavailable, surround: ownProcess, says: []string{"registry.example"}, make: secure("registry.example", launchtest.RegistryOptions{}, true)},
		{name: "a certificate of the past", code: exit.Unavailable, surround: ownProcess, says: []string{"clock"}, make: secure("registry.test", launchtest.RegistryOptions{Expired: true}, true)},
		{name: "a proxy that isn't there", code: exit.Unavailable, surround: ownProcess, says: []string{"HTTPS_PROXY"}, make: func(m *mistaken) {
			leads("registry.test", m.Registry.Host(), m)
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			m.do(err)
			m.do(listener.Close())
			m.variable("HTTPS_PROXY=http://" + listener.Addr().String())
		}},
		{name: "a proxy that wants a login", code: exit.Unavailable, surround: ownProcess, says: []string{"407", "HTTPS_PROXY"}, make: func(m *mistaken) {
			stands(html(407))(m)
			text, err := os.ReadFile(m.ConfigFile)
			m.do(err)
			_, host, _ := strings.Cut(string(text), "image = \"")
			host, _, _ = strings.Cut(host, "/")
			m.variable("HTTPS_PROXY=http://" + host)
			m.write(m.ConfigFile, strings.Replace(string(text), host, "registry.test", 1))
		}},
		{name: "a proxy that can't reach the registry", code: exit.Unavailable, surround: ownProcess, says: []string{"502", "HTTPS_PROXY"}, make: func(m *mistaken) {
			leads("registry.test", "127.0.0.1:1", m)
		}},
		{name: "a registry that refuses", code: exit.Refused, says: []string{"403"}, make: answers(launchtest.RequestManifest, 403)},
		{name: "a registry that limits", code: exit.Unavailable, says: []string{"429"}, make: answers(launchtest.RequestManifest, 429)},
		{name: "a registry that is overloaded", code: exit.Unavailable, says: []string{"503"}, make: answers(launchtest.RequestManifest, 503)},
		{name: "a registry that breaks", code: exit.Unavailable, says: []string{"500"}, make: answers(launchtest.RequestManifest, 500)},
		{name: "a misspelt repository", code: exit.Refused, says: []string{"nearone/mpc-nod"}, make: elsewhere("@registry@/nearone/mpc-nod:main")},
		{name: "a registry that lost a layer", code: exit.Refused, says: []string{"404"}, make: func(m *mistaken) {
			layer := must(v1.NewHash(part("layer")(m)))
			m.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestBlob, Digest: layer, Status: 404, Times: -1})
		}},
		{name: "a layer that is damaged", code: exit.Mismatch, late: true, make: func(m *mistaken) {
			layer := must(v1.NewHash(part("layer")(m)))
			m.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layer, After: 40, Times: -1})
		}},
	}
}

func ofTheImage() []mistake {
	pushed := func(o launchtest.ImageOptions) func(*mistaken) {
		return runs(func(m *mistaken) string {
			if o.Layers == nil {
				o.Layers = [][]byte{must(launchtest.RandomLayer(5, 100))}
			}
			return must(m.Registry.Push(launchtest.Repository, must(launchtest.Image(o)))).DigestStr()
		})
	}
	odd := func(name string) func(*mistaken) {
		return runs(func(m *mistaken) string {
			for _, o := range launchtest.OddImages() {
				if o.Name == name {
					return must(o.Push(m.Registry, launchtest.Repository)).DigestStr()
				}
			}
			m.t.Fatal("there is no such image: ", name)
			return ""
		})
	}
	return []mistake{
		{name: "a digest that nobody pushed", code: exit.Refused, make: runs(func(*mistaken) string { return some }), says: []string{some}},
		{name: "a config's digest", code: exit.Refused, make: runs(part("config")), says: []string{"config"}},
		{name: "a layer's digest", code: exit.Refused, make: runs(part("layer")), says: []string{"layer"}},
		{name: "an image of another repository", code: exit.Refused, make: elsewhere("@registry@/nearone/another")},
		{name: "an image for another machine", code: exit.Refused, says: []string{"s390x"}, make: pushed(launchtest.ImageOptions{Platform: v1.Platform{OS: "linux", Architecture: "s390x"}})},
		{name: "an image of Windows", code: exit.Refused, says: []string{"windows"}, make: pushed(launchtest.ImageOptions{Platform: v1.Platform{OS: "windows", Architecture: "amd64"}})},
		{name: "a Helm chart", code: exit.Refused, make: odd("helm chart")},
		{name: "a manifest that is damaged", code: exit.Mismatch, make: func(m *mistaken) {
			m.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestManifest, After: 40, Times: -1})
		}},
	}
}

func ofCredentials() []mistake {
	const auth = `{"auths":{"@host@":{"username":"robot","password":"wrong"}}}`
	login := func(name string, way launchtest.RegistryAuth, config string, says ...string) mistake {
		return mistake{name: name, surround: ownProcess, code: exit.Refused, make: private(way, config), says: append(says, "401")}
	}
	return []mistake{
		login("no credentials", launchtest.RegistryBasic, `{}`, "config.json"),
		login("no Docker config", launchtest.RegistryBasic, "", "config.json"),
		login("a wrong password", launchtest.RegistryBasic, auth, "config.json: correct them"),
		login("a wrong password at the token server", launchtest.RegistryBearer, auth, "config.json"),
		login("an expired identity token", launchtest.RegistryBearer, `{"auths":{"@host@":{"identitytoken":"old"}}}`, "config.json"),
		login("credentials of another host", launchtest.RegistryBasic, `{"auths":{"registry.example":{"username":"robot","password":"sesame"}}}`),
		login("a credential helper that isn't there", launchtest.RegistryBasic, `{"credHelpers":{"@host@":"gone"}}`, "docker-credential-gone"),
		login("a Docker config that isn't JSON", launchtest.RegistryBasic, `auths: {}`, "config.json"),
	}
}
