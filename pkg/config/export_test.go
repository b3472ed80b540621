package config

// Keys returns the keys of [launcher_config] that aren't older names.
func Keys() []string {
	return launcherKeys()[:presentKeys]
}
