package config

import "slices"

// Keys returns the keys of [launcher_config] that aren't older names.
func Keys() []string {
	keys := launcherKeys()
	return keys[:slices.Index(keys, "image")]
}
