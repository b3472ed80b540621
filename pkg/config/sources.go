package config

import (
	"net"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/google/go-containerregistry/pkg/name"
)

const (
	sourcesKey = "sources"
	maxSources = 16
)

// Source is where an image may come from, beside the registry that its name says. What comes from
// there is proved as all is, so it can be slow or lie, but not be believed.
type Source struct {
	Registry name.Registry // zero for a layout
	Plain    bool          // it speaks plain http
	Prefix   string        // before the repository's path
	NS       bool          // it is told of which registry the repository is
	Layout   string        // the path of an OCI image layout
}

// String returns the source's address, as the user config has it.
func (s Source) String() string {
	switch {
	case s.Layout != "":
		return s.Layout
	case s.Plain:
		return "http://" + s.Registry.RegistryStr() + s.path()
	}
	return "https://" + s.Registry.RegistryStr() + s.path()
}

func (s Source) path() string {
	if s.Prefix == "" {
		return ""
	}
	return "/" + s.Prefix
}

// PlainAllowed reports whether a host, with or without a port, may be spoken to over plain http:
// this machine may, and those that are named as insecure, with their port or for all of them.
func PlainAllowed(host string, insecure []string) bool {
	bare := (&url.URL{Host: host}).Hostname()
	return strings.EqualFold(bare, "localhost") || net.ParseIP(bare).IsLoopback() ||
		slices.ContainsFunc(insecure, func(allowed string) bool {
			return strings.EqualFold(allowed, host) || strings.EqualFold(allowed, bare)
		})
}

// sources reads where the image may come from, in the order in which they are tried.
func (s *source) sources(t table, insecure []string) []Source {
	list, ok := get[[]any](t, sourcesKey)
	if !ok {
		return nil
	}
	if len(list) > maxSources {
		s.problem(t.place(sourcesKey), "%s has more than %d entries", sourcesKey, maxSources)
		return nil
	}
	var all []Source
	for i, element := range list {
		entry := table{source: s, name: sourcesKey, path: append(slices.Clone(t.path), sourcesKey, elementName(i))}
		if entry.values, ok = element.(map[string]any); !ok {
			s.problem(entry.place(), "%s holds tables with registry or layout, not %s", sourcesKey, kind(element))
			continue
		}
		one := entry.oneSource(insecure)
		if one != (Source{}) && slices.Contains(all, one) {
			s.problem(entry.place(), "%s has this one twice", sourcesKey)
		}
		all = append(all, one)
	}
	return all
}

func (t table) oneSource(insecure []string) Source {
	t.refuseUnknown("registry", "prefix", "ns", "layout")
	var one Source
	if t.has("registry") == t.has("layout") {
		t.problem(t.place(), "%s: each needs one of registry and layout", sourcesKey)
	}
	if address, ok := get[string](t, "registry"); ok {
		one.Registry, one.Plain = t.address(address, insecure)
	}
	if prefix, ok := get[string](t, "prefix"); ok {
		trimmed := strings.TrimSuffix(prefix, "/")
		if prefix != "" && (!pathGrammar.MatchString(trimmed) || len(prefix) > maxPath/2) {
			t.problem(t.place("prefix"), "prefix: %.100q is not the beginning of a repository's path, such as \"hub/\"", prefix)
		} else if prefix != "" {
			one.Prefix = trimmed + "/"
		}
	}
	one.NS, _ = get[bool](t, "ns")
	if layout, ok := get[string](t, "layout"); ok {
		one.Layout = t.layout(layout)
	}
	for _, key := range []string{"prefix", "ns"} {
		if t.has(key) && t.has("layout") {
			t.problem(t.place(key), "%s: %s is for a registry", sourcesKey, key)
		}
	}
	return one
}

// address reads https://host[:port]. One that may hold a password isn't shown.
func (t table) address(address string, insecure []string) (registry name.Registry, plain bool) {
	scheme, host, found := strings.Cut(address, "://")
	switch {
	case strings.Contains(address, "@"):
		t.problem(t.place("registry"), "registry: a source's address holds no user: logins are in %s", authHelp)
		return registry, false
	case !found || scheme != "https" && scheme != "http":
		t.problem(t.place("registry"), "registry: %.100q is not https://host[:port]", address)
		return registry, false
	case strings.Contains(host, "/"):
		t.problem(t.place("registry"), "registry: %.100q has a path: write it as prefix, without /v2", address)
		return registry, false
	}
	registry, err := parseHost(host)
	if err != nil {
		t.problem(t.place("registry"), "registry: %.100q is not https://host[:port]", address)
		return registry, false
	}
	plain = scheme == "http"
	if plain && !PlainAllowed(registry.RegistryStr(), insecure) {
		t.problem(t.place("registry"), "registry: %s may be spoken to over https alone; only --insecure-registry, which is measured, allows plain http", host)
	}
	return registry, plain
}

// layout reads the path of an OCI image layout.
func (t table) layout(at string) string {
	switch first, _, _ := strings.Cut(strings.TrimPrefix(path.Clean(at), "/"), "/"); {
	case !path.IsAbs(at) || len(at) > 4000 || strings.ContainsFunc(at, unicode.IsControl):
		t.problem(t.place("layout"), "layout: %.100q is not an absolute path", at)
	case slices.Contains([]string{"", "proc", "sys", "dev"}, first):
		t.problem(t.place("layout"), "layout: %.100q is no place for images", at)
	}
	return path.Clean(at)
}
