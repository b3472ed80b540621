package config

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tee-launcher/pkg/digest"
)

// The settings of the Python launcher's user config, under all their names. Of the first list the values belong into
// [launcher_config] and may be shown; of the second only the names, because the values are the node's.
func dotenvLauncherKeys() []string {
	return []string{
		"MPC_IMAGE_NAME", "MPC_IMAGE_TAGS", "MPC_REGISTRY", "LAUNCHER_IMAGE_NAME", "LAUNCHER_IMAGE_TAGS", "LAUNCHER_REGISTRY",
		"MPC_HASH_OVERRIDE", "PORTS", "RPC_REQUEST_TIMEOUT_SECS", "RPC_REQUEST_INTERVAL_SECS", "RPC_MAX_ATTEMPTS",
	}
}

func dotenvNodeKeys() []string {
	return []string{
		"EXTRA_HOSTS", "MPC_ACCOUNT_ID", "MPC_BACKUP_ENCRYPTION_KEY_HEX", "MPC_CONTRACT_ID", "MPC_ENV", "MPC_HOME_DIR",
		"MPC_LOCAL_ADDRESS", "MPC_RESPONDER_ID", "MPC_SECRET_STORE_KEY", "NEAR_BOOT_NODES", "NEAR_TESTS_PROTOCOL_UPGRADE_OVERRIDE",
		"RUST_BACKTRACE", "RUST_LOG",
	}
}

// answerDotenv recognises the .env form and returns the TOML to write instead and the offset of the first setting, or
// an empty string for anything else: a file with a table's header, or with none of the Python launcher's names.
func answerDotenv(data []byte) (string, int) {
	values := map[string]string{}
	first, offset := 0, 0
	for line := range bytes.Lines(data) {
		text := strings.TrimSpace(string(line))
		if strings.HasPrefix(text, "[") {
			return "", 0
		}
		key, value, found := strings.Cut(text, "=")
		key = strings.TrimSpace(key)
		if found && (slices.Contains(dotenvLauncherKeys(), key) || slices.Contains(dotenvNodeKeys(), key)) {
			if len(values) == 0 {
				first = offset + bytes.IndexByte(line, key[0])
			}
			values[key] = strings.TrimSpace(value)
		}
		offset += len(line)
	}
	if len(values) == 0 {
		return "", 0
	}
	return dotenvTOML(values), first
}

// dotenvTOML writes the values it knows to be what they should be. What isn't is not shown: it may be anything.
func dotenvTOML(values map[string]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[%s]\n", launcherTable)
	if image, err := dotenvImage(values); err == nil {
		fmt.Fprintf(&b, "image_reference = %q\n", image)
	} else {
		fmt.Fprintf(&b, "# image: what the file says can't be used\n")
	}
	if override := values["MPC_HASH_OVERRIDE"]; override != "" {
		if h, err := digest.Parse(override); err == nil {
			fmt.Fprintf(&b, "mpc_hash_override = %q  # must be a manifest's digest now, not an image's ID\n", h)
		} else {
			fmt.Fprintf(&b, "# mpc_hash_override: what the file says can't be used\n")
		}
	}
	if ports, ok := values["PORTS"]; ok {
		mappings, unusable := dotenvPorts(ports)
		fmt.Fprintf(&b, "port_mappings = [%s]\n", strings.Join(mappings, ", "))
		if unusable > 0 {
			fmt.Fprintf(&b, "# %d of PORTS can't be used\n", unusable)
		}
	}
	for _, key := range dotenvLauncherKeys() {
		if _, ok := values[key]; ok && strings.HasPrefix(key, "RPC_") {
			fmt.Fprintf(&b, "# %s: see pull_max_retries, pull_retry_interval_secs, pull_max_delay_secs\n", key)
		}
	}
	fmt.Fprintf(&b, "\n[%s]\n", nodeTable)
	for _, key := range dotenvNodeKeys() {
		if _, ok := values[key]; ok {
			fmt.Fprintf(&b, "# %s: under the name it has in the node's own config\n", key)
		}
	}
	return b.String()
}

func dotenvImage(values map[string]string) (Image, error) {
	get := func(key, def string) string {
		return cmp.Or(values["MPC_"+key], values["LAUNCHER_"+key], def)
	}
	registry, err := parseRegistry(get("REGISTRY", "docker.io"))
	if err != nil {
		return Image{}, err
	}
	image, err := parseImageIn(registry, get("IMAGE_NAME", "nearone/mpc-node"))
	if err != nil {
		return Image{}, err
	}
	tag, _, _ := strings.Cut(get("IMAGE_TAGS", ""), ",")
	if tag = strings.TrimSpace(tag); image.Tag == "" && tagGrammar.MatchString(tag) {
		image.Tag = tag
	}
	return image, nil
}

func dotenvPorts(list string) (mappings []string, unusable int) {
	taken := map[uint64]bool{}
	for mapping := range strings.SplitSeq(list, ",") {
		host, container, _ := strings.Cut(strings.TrimSpace(mapping), ":")
		h, err1 := strconv.ParseUint(host, 10, 16)
		c, err2 := strconv.ParseUint(container, 10, 16)
		if err1 != nil || err2 != nil || h == 0 || c == 0 || taken[h] {
			unusable++
			continue
		}
		taken[h] = true
		mappings = append(mappings, fmt.Sprintf("{ host = %d, container = %d }", h, c))
	}
	return mappings, unusable
}
