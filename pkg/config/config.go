// Package config reads the user config, in every generation of it that was ever deployed.
//
// It guarantees that a Config has been checked as a whole and that its mistakes are reported all at once, each with its
// place; that [mpc_node_config] comes out of NodeConfig exactly as it went in, with the launcher's [tee] added; and that
// nothing out of [mpc_node_config] and [launcher_config.registry_auth] gets into an error, a warning, a log record or a
// formatted value, for they hold secrets, but for a host that is one. It doesn't guarantee that the image exists, that a port is free or that the node likes its config.
// Nothing in the user config is measured, so nothing in it can weaken a check.
package config

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"tee-launcher/pkg/digest"
)

// MaxSize is the size of the largest user config that is read.
const MaxSize = 1 << 20

const (
	launcherTable = "launcher_config"
	nodeTable     = "mpc_node_config"
	portsKey      = "port_mappings"
)

// Platform says whether there is a TEE around us. Its zero value is no platform.
type Platform string

// The platforms.
const (
	TEE    Platform = "TEE"
	NONTEE Platform = "NONTEE"
)

// ParsePlatform accepts the two names exactly as they are written.
func ParsePlatform(s string) (Platform, error) {
	if p := Platform(s); p == TEE || p == NONTEE {
		return p, nil
	}
	return "", fmt.Errorf("%.100q is neither %s nor %s", s, TEE, NONTEE)
}

// Config is a user config without a mistake. Only Parse makes one.
type Config struct {
	Image    Image
	Override *digest.Digest // nil: the newest approved digest
	Ports    []Port
	Retry    Retry
	Sources  []Source // tried in this order, before the registry of Image

	file string
	node secrets
	auth credentials
}

// Port is a port of the host and where it leads to.
type Port struct {
	Host, Container uint16
}

// Retry says how long a pull goes on.
type Retry struct {
	Rounds   int           // rounds of the whole pull after the first
	Interval time.Duration // before the first further round
	MaxDelay time.Duration // before any
}

// DefaultRetry is what holds where the user config says nothing.
func DefaultRetry() Retry { return Retry{Rounds: 5, Interval: 2 * time.Second, MaxDelay: time.Minute} }

// String says what may be known about the config.
func (c Config) String() string { return "user config for " + c.Image.String() }

// Format prints String whatever the verb, so that none can print the node's secrets.
func (c Config) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue logs everything but the node's secrets.
func (c Config) LogValue() slog.Value {
	override := "none"
	if c.Override != nil {
		override = c.Override.String()
	}
	return slog.GroupValue(
		slog.String("image", c.Image.String()),
		slog.String("override", override),
		slog.Any("ports", c.Ports),
		slog.Any("retry", c.Retry),
		slog.Any("sources", c.Sources),
	)
}

// Parse reads the text of the user config; file is what messages call it, and insecure names the hosts that
// may be spoken to over plain http, beside this machine. The error is Problems, and the warnings are
// valid beside it.
func Parse(file string, data []byte, p Platform, insecure ...string) (*Config, []Warning, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	s := newSource(file, data)
	c := s.parse(data, p, insecure)
	slices.SortStableFunc(s.warnings, func(a, b Warning) int { return Problem(a).compare(Problem(b)) })
	if len(s.problems) > 0 {
		slices.SortStableFunc(s.problems, Problem.compare)
		return nil, s.warnings, s.problems
	}
	return c, s.warnings, nil
}

func (s *source) parse(data []byte, p Platform, insecure []string) *Config {
	if len(data) > MaxSize {
		s.problem(0, "larger than %d bytes", MaxSize)
		return nil
	}
	if answer, at := answerDotenv(data); answer != "" {
		s.problem(at, "this is the .env form of the Python launcher, which is not read any more. "+
			"Write TOML instead:")
		s.problems[len(s.problems)-1].Answer = answer
		return nil
	}
	document := s.decode(data)
	if document == nil {
		return nil
	}
	root := table{source: s, values: document}
	launcher, hasLauncher := get[map[string]any](root, launcherTable)
	node, hasNode := get[map[string]any](root, nodeTable)
	s.unknownTables(root)

	c := &Config{file: s.file, node: func() map[string]any { return node }}
	if hasLauncher {
		s.launcher(table{source: s, name: "[" + launcherTable + "]", path: []string{launcherTable}, values: launcher}, c, insecure)
	}
	if hasNode {
		s.node(node, p)
	}
	return c
}

// unknownTables reports what stands beside the two tables: it is ignored, as it always was, unless it may well be the
// wrong spelling of one that is missing.
func (s *source) unknownTables(root table) {
	missing := false
	for _, name := range []string{launcherTable, nodeTable} {
		if !root.has(name) {
			missing = true
			s.problem(0, "table [%s] is missing", name)
		}
	}
	for _, key := range root.unknown(launcherTable, nodeTable) {
		message := fmt.Sprintf("unknown table or key %.60q; the nearest known one is [%s]", key, Nearest(key, launcherTable, nodeTable))
		if slices.Contains(launcherKeys(), key) {
			message = fmt.Sprintf("%s belongs in [%s]", key, launcherTable)
		}
		if missing {
			s.problem(s.place(key), "%s", message)
		} else {
			s.warn(s.place(key), "ignored: %s", message)
		}
	}
}

func (s *source) node(node map[string]any, p Platform) {
	for _, r := range reserved(node, p) {
		s.problem(s.place(nodeTable, r.key), "%s", r.message)
	}
	if _, err := encode(node); err != nil {
		s.problem(s.place(nodeTable), "[%s] %v", nodeTable, err)
	}
}

// presentKeys is how many of launcherKeys are not of an older generation.
const presentKeys = 8

// The keys of [launcher_config], those of older generations last.
func launcherKeys() []string {
	return []string{
		"image_reference", "mpc_hash_override", portsKey,
		"pull_max_retries", "pull_retry_interval_secs", "pull_max_delay_secs", sourcesKey, authKey,
		"image", "registry", "image_name", "image_tags",
		"rpc_request_timeout_secs", "rpc_request_interval_secs", "rpc_max_attempts",
	}
}

func (s *source) launcher(t table, c *Config, insecure []string) {
	t.refuseUnknown(launcherKeys()...)
	c.Image = s.image(t)
	c.Override = s.override(t)
	c.Ports = s.ports(t)
	// The bounds are days of trying and below anything that could overflow.
	byDefault := DefaultRetry()
	c.Retry.Rounds = int(t.integer("pull_max_retries", int64(byDefault.Rounds), 0, 10_000))
	c.Retry.Interval = time.Duration(t.integer("pull_retry_interval_secs", int64(byDefault.Interval/time.Second), 0, 86_400)) * time.Second
	c.Retry.MaxDelay = time.Duration(t.integer("pull_max_delay_secs", int64(byDefault.MaxDelay/time.Second), 0, 86_400)) * time.Second
	c.Sources = s.sources(t, insecure)
	c.auth = s.auth(t)
	s.oldPullSettings(t)
}

// oldPullSettings takes the 3.8 generation's settings for its queries of a registry, which the original ignores by now.
func (s *source) oldPullSettings(t table) {
	for _, old := range [][2]string{
		{"rpc_max_attempts", "pull_max_retries"},
		{"rpc_request_interval_secs", "pull_retry_interval_secs"},
		{"rpc_request_timeout_secs", "pull_max_retries and pull_max_delay_secs"},
	} {
		if !t.has(old[0]) {
			continue
		}
		s.warn(t.place(old[0]), "%s is deprecated and has no effect; use %s", old[0], old[1])
		switch v := t.values[old[0]].(type) {
		case int64:
			if v >= 0 {
				continue
			}
		case float64:
			if v >= 0 && !math.IsInf(v, 0) {
				continue
			}
		}
		s.problem(t.place(old[0]), "%s must be a number that isn't negative", old[0])
	}
}

func (s *source) override(t table) *digest.Digest {
	text, ok := get[string](t, "mpc_hash_override")
	if !ok {
		return nil
	}
	h, err := digest.Parse(text)
	if err != nil {
		s.problem(t.place("mpc_hash_override"), "mpc_hash_override: %v", err)
	}
	return &h
}

func (s *source) ports(t table) []Port {
	list, ok := get[[]any](t, portsKey)
	if !ok {
		return nil
	}
	if len(list) > maxPorts {
		s.problem(t.place(portsKey), "%s has more than %d entries", portsKey, maxPorts)
		return nil
	}
	var ports []Port
	taken := map[int64]bool{}
	for i, entry := range list {
		mapping := table{source: s, name: "port_mappings", path: append(slices.Clone(t.path), portsKey, elementName(i))}
		if mapping.values, ok = entry.(map[string]any); !ok {
			s.problem(mapping.place(), "port_mappings holds tables { host = …, container = … }, not %s", kind(entry))
			continue
		}
		mapping.refuseUnknown("host", "container")
		host, container := mapping.port("host"), mapping.port("container")
		if host != 0 && taken[host] {
			s.problem(mapping.place("host"), "host port %d is mapped twice", host)
		}
		taken[host] = true
		ports = append(ports, Port{Host: uint16(host), Container: uint16(container)})
	}
	return ports
}

// image reads the reference in all the forms it ever had, any of which may stand beside another that says the same.
func (s *source) image(t table) Image {
	var image Image
	var from string // the key that image is from
	for _, key := range []string{"image_reference", "image"} {
		text, ok := get[string](t, key)
		if !ok {
			continue
		}
		parsed, err := ParseImage(text)
		if err != nil {
			s.problem(t.place(key), "%s: %v", key, err)
			continue
		}
		if from != "" && (parsed.Repository != image.Repository || !sameTag(parsed.Tag, image.Tag)) {
			s.problem(t.place(key), "%s and %s have different values: keep image_reference", from, key)
			continue
		}
		image.Repository, image.Tag, from = parsed.Repository, cmp.Or(image.Tag, parsed.Tag), cmp.Or(from, key)
	}
	image = s.oldImage(t, image, from)
	if !t.has("image") && !t.has("image_reference") && !t.has("image_name") {
		s.problem(t.place(), "image_reference is missing")
	}
	return image
}

// oldImage reads the form of the 3.8 generation and holds it against the newer one, if that is there.
func (s *source) oldImage(t table, image Image, from string) Image {
	var used []string
	for _, key := range []string{"registry", "image_name", "image_tags"} {
		if t.has(key) {
			used = append(used, key)
		}
	}
	registry, hasRegistry := get[string](t, "registry")
	text, hasName := get[string](t, "image_name")
	tags := s.oldTags(t)
	if !hasRegistry {
		registry = "docker.io"
	}
	host, err := parseRegistry(registry)
	if err != nil {
		s.problem(t.place("registry"), "registry: %v", err)
		return image
	}
	if hasName {
		old, err := parseImageIn(host, text)
		if err != nil {
			s.problem(t.place("image_name"), "image_name: %v", err)
			return image
		}
		if from == "" {
			image, from = old, "image_name"
		} else if old.Repository != image.Repository || !sameTag(old.Tag, image.Tag) {
			s.problem(t.place("image_name"), "%s and image_name have different values: keep image_reference", from)
		}
	}
	if from == "" || len(used) == 0 {
		return image
	}
	if hasRegistry && !hasName && host != image.Repository.Registry {
		s.problem(t.place("registry"), "%s and registry have different values: keep image_reference", from)
	}
	if len(tags) > 0 {
		if image.Tag != "" && !slices.Contains(tags, image.Tag) {
			s.problem(t.place("image_tags"), "%s and image_tags have different values: keep image_reference", from)
		}
		image.Tag = cmp.Or(image.Tag, tags[0])
	}
	s.warn(t.place(used[0]), "deprecated: %s; use image_reference = %q", strings.Join(used, ", "), image)
	return image
}

func (s *source) oldTags(t table) []string {
	list, _ := get[[]any](t, "image_tags")
	var tags []string
	for _, v := range list {
		tag, ok := v.(string)
		if !ok || !tagGrammar.MatchString(tag) {
			s.problem(t.place("image_tags"), "image_tags holds something that is not a tag")
			return nil
		}
		tags = append(tags, tag)
	}
	return tags
}

func sameTag(a, b string) bool { return a == "" || b == "" || a == b }
