package preflight

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
	"tee-launcher/pkg/internal/strictjson"
)

// maxAppCompose bounds an app-compose document.
const maxAppCompose = 4 << 20

// checkAppCompose holds an app-compose against the verifier's rules. A document that was named and breaks them is an error. The agent's
// is measured already, so that a boot would succeed, and its quote would be refused.
func checkAppCompose(_ context.Context, f *facts) outcome {
	named := f.options.AppCompose != ""
	var document []byte
	switch {
	case named:
		data, err := files.ReadFile(f.options.AppCompose, maxAppCompose)
		if err != nil {
			return outcome{findings: []Finding{ending(AppComposeBroken, exit.Config, fmt.Errorf("app-compose: %w", err))}}
		}
		document = data
	case f.events == nil:
		return outcome{unknown: "the agent doesn't tell it; --app-compose names a file"}
	case f.events.AppCompose == "":
		return outcome{unknown: "the agent doesn't tell it; --app-compose names a file"}
	default:
		document = []byte(f.events.AppCompose)
	}
	found, err := judge(document)
	if err != nil {
		code := exit.Measurement
		if named {
			code = exit.Config
		}
		found = []Finding{ending(AppComposeBroken, code, fmt.Errorf("app-compose: %w", err))}
	}
	if measured, ok := f.measuredCompose(); ok && !bytes.Equal(measured, hash(document)) {
		found = append(found, warning(AppComposeDiffers, fmt.Sprintf("sha256 is %x, measured in this CVM is %x", hash(document), measured),
			"nothing, if the document is that of another CVM"))
	}
	if !named {
		for i := range found {
			found[i].Severity, found[i].ExitCode = Warning, exit.OK
		}
	}
	return ok(fmt.Sprintf("held against the verifiers' rules, hash %.6x…", hash(document)), found...)
}

func hash(document []byte) []byte {
	sum := sha256.Sum256(document)
	return sum[:]
}

// measuredCompose returns the hash of the app-compose that this boot measured.
func (f *facts) measuredCompose() ([]byte, bool) {
	if f.events == nil {
		return nil, false
	}
	for _, e := range f.events.Log.Events() {
		if e.Name == "compose-hash" {
			return e.Payload, true
		}
	}
	return nil, false
}

// rule is what the verifier demands of one field.
type rule struct {
	field string
	want  string // JSON; empty: anything
	// absent is what a missing field counts as; empty: it must be there.
	absent string
}

// rules are all fields that the verifier knows. It refuses every other one.
func rules() []rule {
	const none = "null"
	return []rule{
		{"manifest_version", "2", ""}, {"name", "", ""}, {"runner", `"docker-compose"`, ""}, {"docker_compose_file", "", ""},
		{"kms_enabled", "false", "false"}, {"gateway_enabled", "false", "false"}, {"tproxy_enabled", "false", "false"},
		{"public_logs", "true", "false"}, {"public_sysinfo", "true", "false"}, {"local_key_provider_enabled", "true", "false"},
		{"no_instance_id", "true", "false"}, {"allowed_envs", "[]", "[]"},
		{"key_provider", "", none}, {"key_provider_id", "", none}, {"secure_time", "", none}, {"features", "", none},
		{"public_tcbinfo", "", none}, {"storage_fs", "", none}, {"swap_size", "", none}, {"port_policy", "", none}, {"docker_config", "", none},
	}
}

func scripts() []string { return []string{"pre_launch_script", "init_script", "bash_script"} }

// judge returns what breaks the verifier's rules.
func judge(document []byte) ([]Finding, error) {
	v, err := strictjson.Parse(document)
	if err != nil {
		return nil, err
	}
	fields, err := v.Object()
	if err != nil {
		return nil, err
	}
	refuse := func(code Code, format string, args ...any) Finding {
		return ending(code, exit.Measurement, fmt.Errorf(format, args...), "correct the app-compose; it needs a new CVM, because its hash is measured")
	}
	var found []Finding
	known := scripts()
	for _, r := range rules() {
		known = append(known, r.field)
		var compact bytes.Buffer
		_ = json.Compact(&compact, fields[r.field].Raw())
		value := compact.String()
		if !fields[r.field].Present() || value == "null" && r.absent != "" {
			value = r.absent
		}
		switch {
		case value == "":
			found = append(found, refuse(AppComposeRefused, "%s is missing", r.field))
		case r.want != "" && value != r.want:
			found = append(found, refuse(AppComposeRefused, "%s is %.60s, must be %s", r.field, value, r.want))
		}
	}
	for _, name := range scripts() {
		if fields[name].Present() && !fields[name].Null() {
			found = append(found, refuse(AppComposeScript, "%s is not allowed", name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, name) {
			found = append(found, refuse(AppComposeUnknown, "unknown field %.60q", name))
		}
	}
	return found, nil
}
