package config

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"tee-launcher/pkg/digest"
)

// Where the workload finds things, whatever the launcher's own paths are.
const (
	approvedFile = "/mnt/shared/image-digest.bin"
	agentSocket  = "/var/run/dstack.sock"
)

// secrets hands out [mpc_node_config]. It is a function because that is the one thing that fmt prints without its
// contents wherever it stands: in an unexported field fmt can't call Format, and with a verb that doesn't fit it follows
// pointers.
type secrets func() map[string]any

// NodeConfig returns the text of the node's config file: [mpc_node_config] as it is, with [tee] added.
func (c *Config) NodeConfig(p Platform, image digest.Digest) ([]byte, error) {
	if c == nil || c.node == nil {
		return nil, errors.New("node config: not made by Parse")
	}
	if _, err := ParsePlatform(string(p)); err != nil {
		return nil, fmt.Errorf("node config: %w", err)
	}
	if image.IsZero() {
		return nil, fmt.Errorf("node config: %w", digest.ErrNone)
	}
	// Once more, because p need not be what Parse was told.
	node := c.node()
	var problems Problems
	for _, r := range reserved(node, p) {
		problems = append(problems, Problem{File: c.file, Message: r.message})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	authority := map[string]any{"type": "local"}
	if p == TEE {
		authority = map[string]any{"type": "dstack", "dstack_endpoint": agentSocket}
	}
	whole := maps.Clone(node)
	if whole == nil {
		whole = map[string]any{}
	}
	whole["tee"] = map[string]any{
		"image_hash":                    image.String(),
		"latest_allowed_hash_file_path": approvedFile,
		"authority":                     authority,
	}
	text, err := encode(whole)
	if err != nil {
		return nil, Problems{{File: c.file, Message: fmt.Sprintf("[%s] %v", nodeTable, err)}}
	}
	return text, nil
}

type reservedKey struct {
	key, message string
}

// reserved finds the keys that the user config must not have. In any letter case, so that it doesn't matter how
// exactly the node compares them.
func reserved(node map[string]any, p Platform) []reservedKey {
	var found []reservedKey
	for _, key := range slices.Sorted(maps.Keys(node)) {
		switch {
		case strings.EqualFold(key, "tee"):
			found = append(found, reservedKey{key, fmt.Sprintf("%q in [%s] is reserved: remove it, the launcher writes [tee]", key, nodeTable)})
		case strings.EqualFold(key, "gcp") && p != NONTEE:
			message := fmt.Sprintf("%q in [%s] is refused in a TEE: remove it, it could move key material out", key, nodeTable)
			found = append(found, reservedKey{key, message})
		}
	}
	return found
}

var errNotWritable = errors.New("holds something that can't be written unchanged")

// encode writes TOML and proves that it decodes to what was given. Its error never says what couldn't be written.
func encode(table map[string]any) ([]byte, error) {
	text, err := toml.Marshal(table)
	if err != nil {
		return nil, errNotWritable
	}
	var back map[string]any
	if err := toml.Unmarshal(text, &back); err != nil || !equalTOML(table, back) {
		return nil, errNotWritable
	}
	return text, nil
}

// equalTOML is equality of decoded TOML: NaN equals NaN, zero differs from minus zero, and a time's offset counts.
func equalTOML(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, equalTOML)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equalTOML)
	case float64:
		b, ok := b.(float64)
		return ok && (a == b && math.Signbit(a) == math.Signbit(b) || math.IsNaN(a) && math.IsNaN(b))
	case time.Time:
		b, ok := b.(time.Time)
		_, offsetA := a.Zone()
		_, offsetB := b.Zone()
		return ok && a.Equal(b) && offsetA == offsetB
	}
	return a == b
}
