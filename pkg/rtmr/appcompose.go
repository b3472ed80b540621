package rtmr

import (
	"fmt"
	"maps"
	"slices"

	"tee-launcher/pkg/internal/strictjson"
)

// FaultKind says what kind of thing the NEAR verifier refuses in an app-compose.
type FaultKind int

// The kinds.
const (
	RefusedValue  FaultKind = iota // a field is missing, of another type, or has another value
	RefusedField                   // a field that the verifier doesn't know
	RefusedScript                  // a script, which would run unmeasured by anybody's list
)

// AppComposeFault is one thing for which the NEAR verifier refuses an app-compose.
type AppComposeFault struct {
	Kind    FaultKind
	Message string
}

// field is one field of the verifier's type AppCompose.
type field struct {
	name string
	read func(strictjson.Value) error // checks type and value
	// absent says what may stand for the field: nothing at all, or null as well.
	absent presence
	kind   FaultKind
}

type presence int

const (
	required    presence = iota // it has to be there
	defaulted                   // it may be missing, but not be null
	optional                    // it may be missing or null
	mustBeUnset                 // it has to be missing or null
)

// appComposeFields are the fields of the verifier's type: near/mpc, crates/attestation, AppCompose
// and validate_app_compose_config. It refuses every other one.
func appComposeFields() []field {
	yes, no, any := boolean(true), boolean(false), func(strictjson.Value) error { return nil }
	return []field{
		{"manifest_version", version2, required, RefusedValue},
		{"name", text, required, RefusedValue},
		{"runner", dockerCompose, required, RefusedValue},
		{"docker_compose_file", text, required, RefusedValue},
		{"kms_enabled", no, defaulted, RefusedValue},
		{"tproxy_enabled", no, optional, RefusedValue},
		{"gateway_enabled", no, required, RefusedValue},
		{"public_logs", yes, required, RefusedValue},
		{"public_sysinfo", yes, required, RefusedValue},
		{"local_key_provider_enabled", yes, required, RefusedValue},
		{"key_provider_id", text, optional, RefusedValue},
		{"allowed_envs", empty, defaulted, RefusedValue},
		{"no_instance_id", yes, required, RefusedValue},
		{"secure_time", eitherBoolean, optional, RefusedValue},
		{"pre_launch_script", any, mustBeUnset, RefusedScript},
		{"init_script", any, mustBeUnset, RefusedScript},
		{"bash_script", any, mustBeUnset, RefusedScript},
		{"features", any, optional, RefusedValue},
		{"public_tcbinfo", eitherBoolean, optional, RefusedValue},
		{"key_provider", any, optional, RefusedValue},
		{"storage_fs", any, optional, RefusedValue},
		{"swap_size", any, optional, RefusedValue},
		{"port_policy", any, optional, RefusedValue},
		{"docker_config", any, optional, RefusedValue},
	}
}

// JudgeAppCompose returns all for which the NEAR verifier refuses an app-compose. An error is a
// document that isn't JSON with one meaning; that is refused as well.
func JudgeAppCompose(document []byte) ([]AppComposeFault, error) {
	v, err := strictjson.Parse(document)
	if err != nil {
		return nil, err
	}
	fields := appComposeFields()
	known := map[string]bool{}
	names := make([]string, 0, len(fields))
	for _, f := range fields {
		known[f.name] = true
		names = append(names, f.name)
	}
	members, err := v.Object(names...)
	if err != nil {
		return nil, err
	}
	var faults []AppComposeFault
	for _, f := range fields {
		if err := f.judge(members[f.name]); err != nil {
			faults = append(faults, AppComposeFault{f.kind, f.name + " " + err.Error()})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if !known[name] && len(faults) < len(fields)+maxFaults {
			fault := fmt.Sprintf("unknown field %.60q", name)
			faults = append(faults, AppComposeFault{RefusedField, fault})
		}
	}
	return faults, nil
}

func (f field) judge(v strictjson.Value) error {
	unset := !v.Present() || v.Null()
	switch {
	case f.absent == mustBeUnset && unset, f.absent == optional && unset:
		return nil
	case f.absent == defaulted && !v.Present():
		return nil
	case f.absent == mustBeUnset:
		return fmt.Errorf("is not allowed")
	case !v.Present():
		if err := f.read(v); err != nil {
			return fmt.Errorf("is missing: it %w", err)
		}
		return fmt.Errorf("is missing")
	}
	if err := f.read(v); err != nil {
		return fmt.Errorf("is %.60s: it %w", v.Raw(), err)
	}
	return nil
}

func text(v strictjson.Value) error {
	if _, err := v.Text(); err != nil {
		return fmt.Errorf("must be a string")
	}
	return nil
}

func boolean(want bool) func(strictjson.Value) error {
	return func(v strictjson.Value) error {
		if got, err := v.Bool(); err != nil || got != want {
			return fmt.Errorf("must be %t", want)
		}
		return nil
	}
}

func eitherBoolean(v strictjson.Value) error {
	if _, err := v.Bool(); err != nil {
		return fmt.Errorf("must be true or false")
	}
	return nil
}

func version2(v strictjson.Value) error {
	if n, err := v.Uint32(); err != nil || n != 2 {
		return fmt.Errorf("must be 2")
	}
	return nil
}

func dockerCompose(v strictjson.Value) error {
	if s, err := v.Text(); err != nil || s != "docker-compose" {
		return fmt.Errorf(`must be "docker-compose"`)
	}
	return nil
}

func empty(v strictjson.Value) error {
	if _, err := v.Array(0); err != nil {
		return fmt.Errorf("must be []")
	}
	return nil
}
