package search_test

import (
	"os"
	"slices"
	"strings"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/rtmr"
)

// event is something that happens to a world, or to the request that is being made.
type event struct {
	name   string
	do     func(*world) // nil: nothing happens to the world
	engine launchtest.EngineFault
	agent  launchtest.AgentFaultKind
	// within reports whether it is worth anything at such a moment of a run; nil: it happens between runs alone.
	within     func(moment) bool
	onlyWithin bool // between runs it is what something else is
}

// in has it happen in the middle of a run.
func (e event) in(w *world) { e.do(w) }

func anywhere(m moment) bool { return m.kind != logs || strings.Contains(m.name, "trying again") }
func before(kinds ...kind) func(moment) bool {
	return func(m moment) bool { return slices.Contains(kinds, m.kind) }
}

// events is all that happens to a world but runs of the launcher.
func events() []event {
	lost := func(name string, f launchtest.EngineFault, kinds ...kind) event {
		f.Match = "*"
		return event{name: name, engine: f, within: before(kinds...)}
	}
	return []event{
		// To the machine.
		{name: "power cut", do: func(w *world) { w.reboot() }},
		{name: "power cut, and an old workload that runs again measures the newest image", do: func(w *world) {
			w.reboot()
			for _, c := range w.Engine.Containers() {
				if live(c) {
					w.Agent.Emit(rtmr.EventName, w.Digests[1][:])
					return
				}
			}
		}},
		{name: "dockerd is stopped and started", do: func(w *world) { must(w.Engine.Restart(true)) }, within: anywhere},
		{name: "dockerd dies and comes back", do: func(w *world) { must(w.Engine.Restart(false)) }, within: anywhere},
		{name: "prune", do: (*world).prune, within: anywhere},
		{name: "an effect of the agent's that was late", do: func(w *world) { w.Agent.Release() }, within: before(asksAgent, emits)},
		{name: "the registry goes away", do: func(w *world) { w.registry(true) }, within: func(m moment) bool { return m.name == "log: step started pull" }},
		{name: "the registry comes back", do: func(w *world) { w.registry(false) }},
		{name: "a second launcher", do: (*world).second, within: anywhere, onlyWithin: true},
		// To files.
		{name: "a newer digest is approved", do: func(w *world) { must(w.Approve(w.Digests[1], w.Digests[0])) }, within: anywhere},
		{name: "only the newer digest is approved", do: func(w *world) { must(w.Approve(w.Digests[1])) }, within: anywhere},
		{name: "only the older digest is approved", do: func(w *world) { must(w.Approve(w.Digests[0])) }, within: anywhere},
		{name: "half a user config", do: func(w *world) {
			must(w.Configure(goodConfig))
			text, err := os.ReadFile(w.ConfigFile)
			must(err)
			must(os.WriteFile(w.ConfigFile, text[:len(text)/2], 0o600))
		}, within: func(m moment) bool {
			return strings.Contains(m.name, "trying again") || strings.HasSuffix(m.name, "started config")
		}},
		{name: "the user config is whole", do: func(w *world) { must(w.Configure(goodConfig)) }},
		{name: "the workload removes what the launcher wrote", do: (*world).remove, within: anywhere},
		{name: "half of each file that is being written", do: (*world).halfWritten},
		{name: "the newer image is staged", do: (*world).stage, within: func(m moment) bool { return strings.HasPrefix(m.name, "log: step started") }},
		// To a request.
		lost("a request is lost", launchtest.EngineFault{Close: true}, changesEngine, asksEngine),
		lost("an answer is lost", launchtest.EngineFault{Close: true, After: true}, changesEngine),
		lost("a request is refused", launchtest.EngineFault{Status: 500, Message: "no"}, changesEngine, asksEngine),
		{name: "a request is lost", agent: launchtest.AgentDrops, within: before(asksAgent, emits)},
		{name: "an answer is lost", agent: launchtest.AgentLoses, within: before(emits)},
		{name: "a request is refused", agent: launchtest.AgentRefuses, within: before(asksAgent, emits)},
		{name: "an answer is lost, and the emit done late", agent: launchtest.EmitLost, within: before(emits)},
		{name: "the register follows the log late", agent: launchtest.EmitSettles, within: before(emits)},
		{name: "the register never follows the log", agent: launchtest.EmitPoisons, within: before(emits)},
		{name: "a yes for nothing", agent: launchtest.EmitSwallows, within: before(emits)},
	}
}

// reboot is a power cut and a new boot. The engine has started what its restart policies say.
func (w *world) reboot() {
	must(w.Machine.Reboot())
	w.boot++
	w.named()
}

// remove is what a workload that runs can do to its volume. Without one nobody does: who removes the record of an intent,
// in the moments in which its emit is still under way, makes the next run emit once more.
func (w *world) remove() {
	if slices.ContainsFunc(w.Engine.Containers(), func(c launchtest.ContainerInfo) bool { return ofWorkload(c) && live(c) }) {
		must(os.RemoveAll(w.Shared("launcher")))
	}
}

// prune is what dstack does at each boot, and what people do when a disk is full.
func (w *world) prune() {
	_, err := w.Engine.Call("POST", "/volumes/prune", nil)
	must(err)
	_, err = w.Engine.Call("POST", `/images/prune?filters={"dangling":["false"]}`, nil)
	must(err)
}

// halfWritten is a power cut, or a kill, while any of the launcher's files was being written: each is, in its
// turn, a file that stands beside it.
func (w *world) halfWritten() {
	for path, text := range w.files() {
		if strings.HasSuffix(path, "/") || strings.Contains(path, "image-digest") {
			continue
		}
		dir, file := "", path
		if i := strings.LastIndex(path, "/"); i >= 0 {
			dir, file = path[:i+1], path[i+1:]
		}
		must(os.WriteFile(w.Shared(dir+"."+strings.TrimSuffix(strings.TrimPrefix(file, "."), ".tmp")+".tmp"), []byte(text[:len(text)/2]), 0o600))
	}
}

// stage is what staging leaves: the image, its cached manifest, and the container that holds it.
func (w *world) stage() {
	layers, err := launchtest.RandomLayers(11, 300) // the newer one's, as the machine has made it
	must(err)
	img, err := launchtest.Image(launchtest.ImageOptions{Layers: layers})
	must(err)
	id, err := w.Engine.AddImage(img, "")
	must(err)
	if id != w.images[w.Digests[1]] {
		panic("it isn't the image of the registry")
	}
	must(os.MkdirAll(w.Shared("launcher"), 0o755))
	must(os.WriteFile(w.Shared("launcher/image-"+w.Digests[1].Hex()+".json"), []byte(w.kept), 0o644))
	_, _ = w.Engine.Call("POST", "/containers/create?name="+compose.Staged, map[string]any{
		"Image": id, "Cmd": []string{"none"}, "HostConfig": map[string]any{"RestartPolicy": map[string]any{"Name": "no"}, "NetworkMode": "none"},
		"Labels": map[string]string{"tee-launcher.staged": w.Digests[1].String(), "tee-launcher.staged-image": id},
	})
}

// oldWorkload makes a workload of an older launcher, which the engine restarts by itself.
func (w *world) oldWorkload() {
	_, err := w.Engine.Call("POST", "/containers/create?name="+compose.Name, map[string]any{
		"Image": w.images[w.Digests[0]], "Cmd": []string{"/app/mpc-node"}, "Labels": map[string]string{},
		"HostConfig": map[string]any{
			"RestartPolicy": map[string]any{"Name": "always"},
			"Binds":         []string{"/var/run/dstack.sock:/var/run/dstack.sock", compose.DataVolume + ":/data"},
		},
	})
	must(err)
	_, err = w.Engine.Call("POST", "/containers/"+compose.Name+"/start", nil)
	must(err)
}
