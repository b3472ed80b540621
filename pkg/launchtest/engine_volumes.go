package launchtest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

type volume struct {
	labels    map[string]string
	created   time.Time
	anonymous bool
}

type network struct {
	id, name, driver string
	labels           map[string]string
	created          time.Time
	predefined       bool
}

// Volumes returns the names of the volumes in order.
func (e *Engine) Volumes() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.volumes))
}

// addVolume makes sure that a volume exists. The lock is held.
func (e *Engine) addVolume(r *engineRequest, name string, labels map[string]string, anonymous bool) {
	if _, ok := e.volumes[name]; ok {
		return
	}
	e.volumes[name] = &volume{labels: labels, created: time.Now(), anonymous: anonymous}
	e.emit("volume", "create", name, map[string]string{"driver": "local"})
	if !anonymous {
		e.record(r, "volume-create %s", name)
	}
}

func (e *Engine) volumeDoc(name string) map[string]any {
	v := e.volumes[name]
	return map[string]any{
		"Name": name, "Driver": "local", "Labels": v.labels, "Mountpoint": e.volumePath(name), "Options": nil, "Scope": "local",
		"CreatedAt": v.created.UTC().Format(time.RFC3339),
	}
}

// volumeUsers returns the IDs of the containers that mount a volume, whatever their state.
func (e *Engine) volumeUsers(name string) []string {
	var users []string
	for _, c := range e.containers {
		if slices.ContainsFunc(c.mounts, func(m ContainerMount) bool { return m.Type == "volume" && m.Name == name }) {
			users = append(users, c.id)
		}
	}
	return users
}

func (e *Engine) serveVolumes(w http.ResponseWriter, r *engineRequest, parts []string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case r.method == http.MethodGet && len(parts) == 0:
		return e.listVolumes(w, r)
	case r.method == http.MethodPost && len(parts) == 1 && parts[0] == "create":
		var body struct {
			Name   string
			Labels map[string]string
		}
		if err := r.decode(&body); err != nil {
			return err
		}
		anonymous := body.Name == ""
		if anonymous {
			body.Name = e.newID()
		}
		e.addVolume(r, body.Name, body.Labels, anonymous)
		writeJSON(w, http.StatusCreated, e.volumeDoc(body.Name))
		return nil
	case r.method == http.MethodPost && len(parts) == 1 && parts[0] == "prune":
		return e.pruneVolumes(w, r)
	case r.method == http.MethodGet && len(parts) == 1:
		if e.volumes[parts[0]] == nil {
			return refusal(http.StatusNotFound, "get %s: no such volume", parts[0])
		}
		writeJSON(w, http.StatusOK, e.volumeDoc(parts[0]))
		return nil
	case r.method == http.MethodDelete && len(parts) == 1:
		return e.removeVolume(w, r, parts[0])
	}
	return errUnknown
}

func (e *Engine) listVolumes(w http.ResponseWriter, r *engineRequest) error {
	filters, err := r.filters("name", "label", "dangling", "driver")
	if err != nil {
		return err
	}
	list := []map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(e.volumes)) {
		if e.volumeMatches(name, filters) {
			list = append(list, e.volumeDoc(name))
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"Volumes": list, "Warnings": nil})
	return nil
}

func (e *Engine) volumeMatches(name string, filters map[string][]string) bool {
	for _, value := range filters["label"] {
		key, want, valued := strings.Cut(value, "=")
		if got, ok := e.volumes[name].labels[key]; !ok || valued && got != want {
			return false
		}
	}
	for _, value := range filters["dangling"] {
		if (value == "true" || value == "1") != (e.volumeUsers(name) == nil) {
			return false
		}
	}
	wanted := filters["name"]
	return len(wanted) == 0 || slices.ContainsFunc(wanted, func(part string) bool { return strings.Contains(name, part) })
}

func (e *Engine) removeVolume(w http.ResponseWriter, r *engineRequest, name string) error {
	if e.volumes[name] == nil {
		if r.flag("force") {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return refusal(http.StatusNotFound, "get %s: no such volume", name)
	}
	if users := e.volumeUsers(name); users != nil {
		return refusal(http.StatusConflict, "remove %s: volume is in use - [%s]", name, strings.Join(users, ", "))
	}
	e.dropVolume(r, name)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (e *Engine) dropVolume(r *engineRequest, name string) {
	delete(e.volumes, name)
	e.emit("volume", "destroy", name, map[string]string{"driver": "local"})
	e.record(r, "volume-remove %s", name)
}

// pruneVolumes takes what no container references: everything, as engines before 23 do and later ones for their clients,
// or only anonymous volumes unless all is asked for.
func (e *Engine) pruneVolumes(w http.ResponseWriter, r *engineRequest) error {
	filters, err := r.filters("label", "label!", "all")
	if err != nil {
		return err
	}
	all := !r.api.atLeast(42) || slices.Contains(filters["all"], "true") || slices.Contains(filters["all"], "1")
	delete(filters, "all")
	deleted := []string{}
	for _, name := range slices.Sorted(maps.Keys(e.volumes)) {
		if e.volumeUsers(name) == nil && (all || e.volumes[name].anonymous) && e.volumeMatches(name, filters) {
			e.dropVolume(r, name)
			deleted = append(deleted, name)
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"VolumesDeleted": deleted, "SpaceReclaimed": 0})
	return nil
}

// findNetwork knows names, IDs and beginnings of IDs. The lock is held.
func (e *Engine) findNetwork(ref string) *network {
	for _, n := range e.networks {
		if n.name == ref || n.id == ref || len(ref) >= 12 && strings.HasPrefix(n.id, ref) {
			return n
		}
	}
	return nil
}

func (n *network) doc() map[string]any {
	return map[string]any{
		"Name": n.name, "Id": n.id, "Created": stamp(n.created), "Scope": "local", "Driver": n.driver, "EnableIPv6": false, "Internal": false,
		"Attachable": false, "Ingress": false, "ConfigOnly": false, "Containers": map[string]any{}, "Options": map[string]any{},
		"Labels": n.labels,
		"IPAM":   map[string]any{"Driver": "default", "Options": nil, "Config": []any{}},
	}
}

func (e *Engine) serveNetworks(w http.ResponseWriter, r *engineRequest, parts []string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case r.method == http.MethodGet && len(parts) == 0:
		filters, err := r.filters("name", "id", "label", "driver", "type", "scope", "dangling")
		if err != nil {
			return err
		}
		list := []map[string]any{}
		names := filters["name"]
		for _, n := range e.networks {
			if len(names) == 0 || slices.ContainsFunc(names, func(part string) bool { return strings.Contains(n.name, part) }) {
				list = append(list, n.doc())
			}
		}
		writeJSON(w, http.StatusOK, list)
		return nil
	case r.method == http.MethodPost && len(parts) == 1 && parts[0] == "create":
		var body struct {
			Name, Driver string
			Labels       map[string]string
		}
		if err := r.decode(&body); err != nil {
			return err
		}
		if e.findNetwork(body.Name) != nil {
			return refusal(http.StatusConflict, "network with name %s already exists", body.Name)
		}
		if body.Driver == "" {
			body.Driver = "bridge"
		}
		n := &network{id: e.newID(), name: body.Name, driver: body.Driver, labels: body.Labels, created: time.Now()}
		e.networks = append(e.networks, n)
		e.emit("network", "create", n.id, map[string]string{"name": n.name, "type": n.driver})
		e.record(r, "network-create %s", n.name)
		writeJSON(w, http.StatusCreated, map[string]any{"Id": n.id, "Warning": ""})
		return nil
	case r.method == http.MethodGet && len(parts) == 1:
		n := e.findNetwork(parts[0])
		if n == nil {
			return refusal(http.StatusNotFound, "network %s not found", parts[0])
		}
		writeJSON(w, http.StatusOK, n.doc())
		return nil
	case r.method == http.MethodDelete && len(parts) == 1:
		n := e.findNetwork(parts[0])
		switch {
		case n == nil:
			return refusal(http.StatusNotFound, "network %s not found", parts[0])
		case n.predefined:
			return refusal(http.StatusForbidden, "%s is a pre-defined network and cannot be removed", n.name)
		}
		e.networks = slices.DeleteFunc(e.networks, func(other *network) bool { return other == n })
		e.emit("network", "destroy", n.id, map[string]string{"name": n.name, "type": n.driver})
		e.record(r, "network-remove %s", n.name)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return errUnknown
}
