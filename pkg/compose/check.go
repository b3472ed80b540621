package compose

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/sanitize"
)

// Network is what Compose calls the one network of the project.
const Network = Name + "_default"

// DeviationError is a container that isn't what the workload must be. It ends in exit code 9.
type DeviationError struct {
	Container string
	What      string // the field, as `docker inspect` names it
	Got, Want string
}

func (e *DeviationError) Error() string {
	return fmt.Sprintf("container %s is not the workload: %s: got %s, want %s",
		e.Container, e.What, e.Got, e.Want)
}

// ExitCode is Workload.
func (e *DeviationError) ExitCode() exit.Code { return exit.Workload }

// Hints says how to get rid of it: no container that deviates stays.
func (e *DeviationError) Hints() []string {
	return []string{"start the launcher again: it makes a new container, with the same volumes"}
}

// Check compares a container with the workload: all that the engine reports of it and that could
// matter to what runs. Base is the proved image's own configuration, runtime what the engine runs
// containers in that don't ask for another.
func (w Workload) Check(
	c inspect.Container, id inspect.ImageID, base v1.Config, runtime string,
) error {
	if id.IsZero() {
		return fmt.Errorf("checking container %s: no proved image given", c.Name)
	}
	deviation := func(what string, got, want any) error {
		return &DeviationError{Container: c.Name, What: what, Got: show(got), Want: show(want)}
	}
	switch {
	case c.Name != Name:
		return deviation("Name", c.Name, Name)
	case c.Image != id.String():
		return deviation("Image", c.Image, id.String())
	}
	rules := w.rules(c, base, runtime)
	// What it has beyond the workload says most.
	fields := slices.DeleteFunc(slices.Sorted(maps.Keys(c.Settings)), func(field string) bool {
		_, known := rules[field]
		return known
	})
	for _, field := range append(fields, slices.Sorted(maps.Keys(rules))...) {
		r, known := rules[field]
		if !known {
			r = is(nil)
		}
		if got := c.Settings[field]; !r.holds(got) {
			if r.show != nil {
				got = r.show(got)
			}
			return deviation(field, got, r.want)
		}
	}
	for _, made := range []struct {
		what      string
		got, want []string
	}{
		{"Path and Args", c.Program, slices.Concat(entrypoint(base), command())},
		{"Mounts", describe(c.Mounts, base), describe(w.mounted(), base)},
		{"NetworkSettings.Networks", networksOf(c), []string{Network}},
	} {
		if !slices.Equal(made.got, made.want) {
			return deviation(made.what, made.got, made.want)
		}
	}
	return nil
}

// rules says what the fields of Config and HostConfig must be, in the engine's own words. A field
// without a rule must be empty, as one is that was not asked for: false, 0, "", null, [] or {}. That
// goes for fields that newer engines add, too. Should one of them not be empty in every container,
// nothing is started there until somebody has looked at what it does: what isn't known to be
// harmless isn't let through, and those two parts of the answer echo a request, in which engines
// from 20.10 to 29 filled in nothing that isn't here.
func (w Workload) rules(
	c inspect.Container, base v1.Config, runtime string,
) map[string]rule {
	rules := map[string]rule{
		// What the image's config sets goes into the container's as the engine puts it there.
		"Config.Entrypoint":  is(entrypoint(base)),
		"Config.Cmd":         is(command()),
		"Config.Env":         environment(w.environment(), base.Env),
		"Config.User":        is(base.User),
		"Config.WorkingDir":  directory(base.WorkingDir),
		"Config.Healthcheck": health(base.Healthcheck),
		"Config.StopSignal":  is(base.StopSignal),
		"Config.Hostname":    is(c.ShortID()),

		"HostConfig.NetworkMode":   is(Network),
		"HostConfig.PortBindings":  ports(w.Ports),
		"HostConfig.RestartPolicy": restarts(w.restart()),
		"HostConfig.SecurityOpt":   is([]string{"no-new-privileges:true"}),
		"HostConfig.Mounts":        plainMounts(),

		// What the engine fills in where nothing is asked for, in each version its own.
		"HostConfig.Runtime": among("", runtime),
		"HostConfig.IpcMode": among("", "private", "shareable"),
		"HostConfig.MaskedPaths": including(
			"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/scsi", "/sys/firmware"),
		"HostConfig.ReadonlyPaths": including(
			"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),

		"Config.Image":           whatever("a name; the ID that it had is compared"),
		"Config.Labels":          whatever("for people and Compose, and no proof"),
		"Config.Volumes":         whatever("the mounts that came of it are compared"),
		"HostConfig.Binds":       whatever("the mounts that came of it are compared"),
		"Config.ExposedPorts":    whatever("opens nothing while PublishAllPorts is off"),
		"Config.AttachStdout":    whatever("who looked on when it was created"),
		"Config.AttachStderr":    whatever("who looked on when it was created"),
		"HostConfig.ConsoleSize": whatever("of a terminal that it doesn't have"),
		// Of these two the engine fills in what its daemon.json says, and tells nobody what that is: of
		// the log driver's options not even the names, of cgroups something that hangs on the version of
		// the API that Compose speaks. Neither reaches what runs: whoever can make such a container can
		// read its log, too, and there are but two modes for cgroups, both read-only.
		"HostConfig.LogConfig":    whatever("where its words go, not what it does"),
		"HostConfig.CgroupnsMode": whatever("which names of cgroups it sees, and none that it can write to"),
		"HostConfig.ShmSize":      whatever("a limit, filled in by the engine"),
		"HostConfig.Ulimits":      whatever("limits, filled in by the engine"),
	}
	for _, limit := range []string{
		"BlkioWeight", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpuShares",
		"CpusetCpus", "CpusetMems", "KernelMemory", "Memory", "MemoryReservation", "MemorySwap",
		"NanoCpus", "PidsLimit",
	} {
		rules["HostConfig."+limit] = whatever("less of the machine, by `docker update`, and no more")
	}
	return rules
}

// A rule is what a field must be.
type rule struct {
	want  any // as people are told
	holds func(got any) bool
	show  func(got any) any // what of it people are told; nil: all
}

func is(want any) rule {
	return rule{want: want, holds: func(got any) bool {
		return empty(got) && empty(want) || reflect.DeepEqual(decoded(got), decoded(want))
	}}
}

func among(words ...string) rule {
	return rule{want: words, holds: func(got any) bool {
		word, ok := got.(string)
		return (ok || got == nil) && slices.Contains(words, word)
	}}
}

func including(words ...string) rule {
	return rule{want: words, holds: func(got any) bool {
		list, _ := got.([]any)
		missing := func(word string) bool { return !slices.Contains(list, any(word)) }
		return !slices.ContainsFunc(words, missing)
	}}
}

// whatever is a field that can't matter to what runs, and why.
func whatever(string) rule { return rule{holds: func(any) bool { return true }} }

// entrypoint is the image's as engines take it: `ENTRYPOINT [""]` is how a Dockerfile says none.
func entrypoint(base v1.Config) []string {
	if slices.Equal(base.Entrypoint, []string{""}) {
		return nil
	}
	return base.Entrypoint
}

// environment is our own and after it the image's. Engines leave the image's as it is where nothing
// is added to it; else they take only the first entry of each name. The values may be secret.
func environment(own map[string]string, image []string) rule {
	want := image
	if len(own) > 0 {
		want = nil
		for _, name := range slices.Sorted(maps.Keys(own)) {
			want = append(want, name+"="+own[name])
		}
		for _, entry := range image {
			same := func(own string) bool { return variable(own) == variable(entry) }
			if !slices.ContainsFunc(want, same) {
				want = append(want, entry)
			}
		}
	}
	r := is(want)
	var names []string
	for _, entry := range want {
		names = append(names, variable(entry))
	}
	r.want = names
	r.show = func(got any) any {
		list, _ := got.([]any)
		var names []string
		for _, entry := range list {
			text, _ := entry.(string)
			name := variable(text)
			if !slices.Contains(want, text) {
				name += "=…"
			}
			names = append(names, name)
		}
		return names
	}
	return r
}

func variable(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}

// directory is a working directory, which engines clean. Where none is set it is the root.
func directory(want string) rule {
	return rule{want: path.Join("/", want), holds: func(got any) bool {
		text, ok := got.(string)
		return (ok || got == nil) && path.Join("/", text) == path.Join("/", want)
	}}
}

// health is a health check. There are several ways to have none. How often it is run while the
// container starts is something that older engines don't know.
func health(want *v1.HealthConfig) rule {
	plain := func(check any) map[string]any {
		fields, ok := decoded(check).(map[string]any)
		if !ok && !empty(check) {
			return map[string]any{"": check}
		}
		test, _ := fields["Test"].([]any)
		if len(test) == 0 || test[0] == "NONE" {
			return nil
		}
		maps.DeleteFunc(fields, func(field string, value any) bool {
			return field == "StartInterval" || empty(value)
		})
		return fields
	}
	return rule{want: want, holds: func(got any) bool {
		return reflect.DeepEqual(plain(got), plain(want))
	}}
}

// restarts is a restart policy, without a limit. Where nobody asked for one there is none.
func restarts(want string) rule {
	return rule{want: want, holds: func(got any) bool {
		policy, err := as[struct {
			Name              string
			MaximumRetryCount int
		}](got)
		none := policy.Name == "" && want == "no"
		return err == nil && (policy.Name == want || none) && policy.MaximumRetryCount == 0
	}}
}

// ports are the published ones, on all addresses of the host.
func ports(want []Port) rule {
	var published []string
	for _, p := range want {
		published = append(published, fmt.Sprintf("%d:%d/tcp", p.Host, p.Container))
	}
	slices.Sort(published)
	return rule{want: published, holds: func(got any) bool {
		bindings, err := as[map[string][]struct{ HostIP, HostPort string }](got)
		var list []string
		for port, hosts := range bindings {
			for _, host := range hosts {
				if host.HostIP == "" || host.HostIP == "0.0.0.0" {
					list = append(list, host.HostPort+":"+port)
				} else {
					list = append(list, host.HostIP+":"+host.HostPort+":"+port)
				}
			}
		}
		slices.Sort(list)
		return err == nil && slices.Equal(list, published)
	}}
}

// plainMounts are requests for mounts that say no more than what the mounts that came of them show.
func plainMounts() rule {
	return rule{want: "no options", holds: func(got any) bool {
		list, ok := got.([]any)
		for _, m := range list {
			fields, isObject := m.(map[string]any)
			ok = ok && isObject
			for name, value := range fields {
				switch name {
				case "Type", "Source", "Target", "ReadOnly":
				case "BindOptions":
					options, _ := value.(map[string]any)
					for option, v := range options {
						ok = ok && (option == "CreateMountpoint" || empty(v))
					}
				default:
					ok = ok && empty(value)
				}
			}
		}
		return ok || empty(got)
	}}
}

// describe tells mounts but those that the image asks for, which hold nothing of anybody else's.
func describe(mounts []inspect.Mount, base v1.Config) (list []string) {
	declared := map[string]bool{}
	for volume := range base.Volumes {
		declared[path.Clean(volume)] = true
	}
	for _, m := range mounts {
		plain := m.Type == "volume" && m.Driver == "local" && m.RW && m.Propagation == ""
		if declared[m.Destination] && plain && anonymous(m.Name) {
			continue
		}
		mode, source := "ro", m.Source
		if m.RW {
			mode = "rw"
		}
		if m.Type == "volume" {
			source = strings.TrimPrefix(m.Driver, "local") + m.Name
		}
		text := m.Type + " " + source + ":" + m.Destination + ":" + mode
		if m.Propagation != "" && m.Propagation != "rprivate" {
			text += "," + m.Propagation
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return list
}

// mounted is how the engine reports the workload's mounts.
func (w Workload) mounted() (mounts []inspect.Mount) {
	for _, m := range w.mounts() {
		is := inspect.Mount{Type: m.Type, Source: m.Source, Destination: m.Target, RW: !m.ReadOnly}
		if m.Type == "volume" {
			is.Name, is.Driver = m.Source, "local"
		}
		mounts = append(mounts, is)
	}
	return mounts
}

// anonymous reports whether a volume has the kind of name that engines make up.
func anonymous(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// networksOf describes the networks of a container, and whatever was asked for there beside its own
// names.
func networksOf(c inspect.Container) (list []string) {
	for name, e := range c.Networks {
		for _, alias := range e.Aliases {
			if alias != Name && alias != c.ShortID() {
				name += " as " + alias
			}
		}
		if len(e.Links)+len(e.IPAMConfig)+len(e.DriverOpts) > 0 {
			name += " with " + show(e)
		}
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// empty reports whether a value is what a field has that wasn't asked for.
func empty(value any) bool {
	v := reflect.ValueOf(value)
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Invalid:
		return true
	}
	return v.IsZero()
}

// decoded returns a value as JSON decodes it.
func decoded(value any) any {
	plain, err := as[any](value)
	if err != nil {
		return err // equals nothing
	}
	return plain
}

// as reads a value into one that has a field for each of its own.
func as[T any](value any) (into T, err error) {
	text, err := json.Marshal(value)
	if err == nil {
		strict := json.NewDecoder(bytes.NewReader(text))
		strict.DisallowUnknownFields()
		err = strict.Decode(&into)
	}
	return into, err
}

// show returns a value as people are told it.
func show(value any) string {
	if empty(value) {
		return "nothing"
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	return sanitize.Line(string(text), 300)
}
