package config

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// table is a decoded table with its place. Names are compared as they are written: TOML's are case-sensitive.
type table struct {
	*source
	name   string // for messages
	path   []string
	values map[string]any
}

func (t table) has(key string) bool {
	_, ok := t.values[key]
	return ok
}

func (t table) place(keys ...string) int {
	return t.source.place(append(slices.Clone(t.path), keys...)...)
}

// get returns the value of the key if it is there and of that type.
func get[T any](t table, key string) (T, bool) {
	v, there := t.values[key]
	typed, ok := v.(T)
	if there && !ok {
		form := kind(typed)
		if key == portsKey {
			form += " of tables { host = …, container = … }"
		} else if key == sourcesKey {
			form += " of tables, each behind [[launcher_config.sources]]"
		}
		t.problem(t.place(key), "%s must be %s, not %s", key, form, kind(v))
	}
	return typed, ok
}

// integer returns the value of the key, or def where there is none.
func (t table) integer(key string, def, least, most int64) int64 {
	v, ok := get[int64](t, key)
	if !ok {
		return def
	}
	if v < least || v > most {
		t.problem(t.place(key), "%s must be %d to %d, not %d", key, least, most, v)
	}
	return v
}

// port returns the value of the key, or 0 after a problem.
func (t table) port(key string) int64 {
	if !t.has(key) {
		t.problem(t.place(), "%s: %s is missing", t.name, key)
		return 0
	}
	v := t.integer(key, 0, 1, 65535)
	if v != int64(uint16(v)) {
		return 0
	}
	return v
}

func (t table) unknown(known ...string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(t.values)), func(key string) bool { return slices.Contains(known, key) })
}

func (t table) refuseUnknown(known ...string) {
	listed := false
	for _, key := range t.unknown(known...) {
		nearest, near := Near(key, known...)
		switch {
		case near:
			t.problem(t.place(key), "unknown key %.60q in %s; the nearest known one is %q", key, t.name, nearest)
		case !listed:
			keys := strings.Join(known[:min(len(known), presentKeys)], ", ")
			if t.name == "["+launcherTable+"]" {
				keys += "; all else is a flag, a variable or the node's"
			}
			t.problem(t.place(key), "unknown key %.60q in %s; the keys are %s", key, t.name, keys)
			listed = true
		default:
			t.problem(t.place(key), "unknown key %.60q in %s", key, t.name)
		}
	}
}

func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	case time.Time, toml.LocalDate, toml.LocalTime, toml.LocalDateTime:
		return "a date or time"
	}
	return "something else"
}

// Nearest returns the known name that takes the fewest edits to get to; letter case costs nothing.
func Nearest(name string, known ...string) string {
	name = strings.ToLower(name)
	// Longer than any known name, so the rest changes nothing.
	name = name[:min(len(name), 64)]
	return slices.MinFunc(known, func(a, b string) int { return distance(name, strings.ToLower(a)) - distance(name, strings.ToLower(b)) })
}

// Near returns the nearest of known, and whether it may have been meant.
func Near(name string, known ...string) (nearest string, near bool) {
	if len(known) == 0 {
		return "", false
	}
	nearest = Nearest(name, known...)
	name = strings.ToLower(name)
	return nearest, distance(name[:min(len(name), 64)], strings.ToLower(nearest)) <= max(2, len(nearest)/4)
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
