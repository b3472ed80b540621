package launchtest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// sharedVolume is the name of the volume that launcher and workload share.
const sharedVolume = "shared-volume"

type volume struct {
	labels map[string]string
}

// Volumes returns the names of the volumes in order.
func (e *Engine) Volumes() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.volumes))
}

// shared reports whether a volume is the one that is there from the beginning.
func (e *Engine) shared(name string) bool { return e.o.Shared != "" && name == sharedVolume }

// addVolume makes sure that a volume exists. The lock is held.
func (e *Engine) addVolume(r *engineRequest, name string, labels map[string]string) {
	if e.volumes[name] == nil {
		e.volumes[name] = &volume{labels}
		e.record(r, "volume-create %s", name)
	}
}

func (e *Engine) volumeDoc(name string) map[string]any {
	return map[string]any{
		"Name": name, "Driver": "local", "Labels": e.volumes[name].labels,
		"Mountpoint": e.volumePath(name), "Options": nil, "Scope": "local",
	}
}

// volumeUsers returns the IDs of the containers that mount a volume, whatever their state.
func (e *Engine) volumeUsers(name string) []string {
	var users []string
	if e.shared(name) {
		users = append(users, "launcher")
	}
	for _, c := range e.containers {
		if slices.ContainsFunc(c.mounts,
			func(m ContainerMount) bool { return m.Type == "volume" && m.Name == name }) {
			users = append(users, c.id)
		}
	}
	return users
}

func (e *Engine) createVolume(r *engineRequest) (any, error) {
	var body struct {
		Name   string
		Labels map[string]string
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	e.addVolume(r, body.Name, body.Labels)
	return created(e.volumeDoc(body.Name)), nil
}

func (e *Engine) inspectVolume(r *engineRequest) (any, error) {
	if e.volumes[r.name] == nil {
		return nil, refusal(http.StatusNotFound, "get %s: no such volume", r.name)
	}
	return e.volumeDoc(r.name), nil
}

func (e *Engine) removeVolume(r *engineRequest) (any, error) {
	if _, err := e.inspectVolume(r); err != nil {
		return nil, err
	}
	if users := e.volumeUsers(r.name); users != nil {
		return nil, refusal(http.StatusConflict, "remove %s: volume is in use - [%s]", r.name,
			strings.Join(users, ", "))
	}
	delete(e.volumes, r.name)
	e.record(r, "volume-remove %s", r.name)
	return nil, nil
}

// pruneVolumes takes what no container references, as engines before 23 do. Later ones take only
// volumes without a name, which there are none of here.
func (e *Engine) pruneVolumes(r *engineRequest) (any, error) {
	filters, err := r.filters("label")
	if err != nil {
		return nil, err
	}
	deleted := []string{}
	for _, name := range slices.Sorted(maps.Keys(e.volumes)) {
		if !r.api.atLeast(42) && e.volumeUsers(name) == nil &&
			labelled(e.volumes[name].labels, filters["label"]) {
			delete(e.volumes, name)
			e.record(r, "volume-remove %s", name)
			deleted = append(deleted, name)
		}
	}
	return map[string]any{"VolumesDeleted": deleted, "SpaceReclaimed": 0}, nil
}

func (e *Engine) createNetwork(r *engineRequest) (any, error) {
	var body struct {
		Name   string
		Labels map[string]string
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	id := e.newID()
	e.networks[body.Name] = map[string]any{"Name": body.Name, "Id": id, "Driver": "bridge",
		"Labels": body.Labels}
	e.record(r, "network-create %s", body.Name)
	return created{"Id": id, "Warning": ""}, nil
}

func (e *Engine) inspectNetwork(r *engineRequest) (any, error) {
	if e.networks[r.name] == nil {
		return nil, refusal(http.StatusNotFound, "network %s not found", r.name)
	}
	return e.networks[r.name], nil
}
