package config

import (
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"unicode"

	"github.com/google/go-containerregistry/pkg/name"
)

const (
	authKey  = "registry_auth"
	authHelp = `[launcher_config.registry_auth."ghcr.io"]`
	maxAuth  = 64 // entries
)

// Credential is what one registry is shown: a user with a password, or one of the tokens. It is
// never printed, whatever the verb.
type Credential struct {
	Username, Password string
	IdentityToken      string
	RegistryToken      string
}

// Format keeps secrets out of messages.
func (Credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "a credential") }

// MarshalText keeps them out of documents and records.
func (Credential) MarshalText() ([]byte, error) { return []byte("a credential"), nil }

// credentials hands out [launcher_config.registry_auth], by host and port. It is a function for the
// reason that secrets is one.
type credentials func() map[string]Credential

// Credential returns what there is for a registry, which go-containerregistry names, and for no other
// host or port.
func (c *Config) Credential(registry string) (Credential, bool) {
	if c == nil || c.auth == nil {
		return Credential{}, false
	}
	found, ok := c.auth()[hostAndPort(registry)]
	return found, ok
}

// hostAndPort is the one spelling of a host that is spoken to over https.
func hostAndPort(host string) string {
	host = strings.ToLower(host)
	switch host {
	case "docker.io", "registry-1.docker.io":
		host = name.DefaultRegistry
	}
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = strings.Trim(host, "[]")
		return net.JoinHostPort(host, "443")
	}
	return host
}

// auth reads the credentials. Nothing of what stands there is ever shown but a host that is one, not
// even a key: whoever mistakes the place of a secret has it there.
func (s *source) auth(t table) credentials {
	entries, ok := get[map[string]any](t, authKey)
	if !ok {
		return nil
	}
	if len(entries) > maxAuth {
		s.problem(t.place(authKey), "%s has more than %d entries", authKey, maxAuth)
		return nil
	}
	found := map[string]Credential{}
	for _, host := range slices.Sorted(maps.Keys(entries)) {
		place := t.place(authKey, host)
		registry, err := parseHost(host)
		values, isTable := entries[host].(map[string]any)
		switch {
		case isTable && holdsTable(values):
			s.problem(place, "%s: a host is written in quotes, such as %s", authKey, authHelp)
			continue
		case err != nil || !namesHost(host):
			s.problem(place, "%s: this isn't a registry's host, with a port if it has one, such as %s", authKey, authHelp)
			continue
		case !isTable:
			s.problem(place, "%s: %q must be a table, not %s", authKey, host, kind(entries[host]))
			continue
		}
		entry := table{source: s, name: fmt.Sprintf("%s.%q", authKey, host), path: append(slices.Clone(t.path), authKey, host), values: values}
		key := hostAndPort(registry.RegistryStr())
		if _, twice := found[key]; twice {
			s.problem(place, "%s is the second one for the same host and port", entry.name)
		}
		found[key] = entry.credential()
	}
	return func() map[string]Credential { return found }
}

// holdsTable reports whether a key was split at the dots of a host.
func holdsTable(values map[string]any) bool {
	for _, v := range values {
		if _, is := v.(map[string]any); is {
			return true
		}
	}
	return false
}

func credentialKeys() []string {
	return []string{"username", "password", "identity_token", "registry_token"}
}

func (t table) credential() Credential {
	for _, key := range t.unknown(credentialKeys()...) {
		if nearest, near := Near(key, credentialKeys()...); near {
			t.problem(t.place(key), "%s: unknown key; the nearest known one is %q", t.name, nearest)
		} else {
			t.problem(t.place(key), "%s: unknown key; the keys are %s", t.name, strings.Join(credentialKeys(), ", "))
		}
	}
	texts := map[string]string{}
	complete := true
	for _, key := range credentialKeys() {
		text, ok := get[string](t, key)
		complete = complete && (ok || !t.has(key))
		switch {
		case !ok:
			continue
		case text == "":
			t.problem(t.place(key), "%s: %s is empty", t.name, key)
			complete = false
		case len(text) > 16<<10:
			t.problem(t.place(key), "%s: %s is longer than %d bytes", t.name, key, 16<<10)
		case strings.ContainsFunc(text, unicode.IsControl) || key == "username" && strings.Contains(text, ":"):
			t.problem(t.place(key), "%s: %s holds a character that none can hold", t.name, key)
		}
		texts[key] = text
	}
	c := Credential{Username: texts["username"], Password: texts["password"],
		IdentityToken: texts["identity_token"], RegistryToken: texts["registry_token"]}
	ways := 0
	for _, there := range []bool{t.has("username") || t.has("password"), t.has("identity_token"), t.has("registry_token")} {
		if there {
			ways++
		}
	}
	switch {
	case ways != 1:
		t.problem(t.place(), "%s needs one of username with password, identity_token and registry_token", t.name)
	case complete && t.has("username") != t.has("password"):
		t.problem(t.place(), "%s: username and password need each other", t.name)
	}
	return c
}
