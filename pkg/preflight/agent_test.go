package preflight_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
)

const goodCompose = `{"manifest_version":2,"name":"mpc","runner":"docker-compose","docker_compose_file":"services: {}","kms_enabled":false,` +
	`"gateway_enabled":false,"local_key_provider_enabled":true,"public_logs":true,"public_sysinfo":true,"allowed_envs":[ ],"no_instance_id":true}`

// TestTheVerifiersRules changes one thing at a time in a document that verifiers accept.
func TestTheVerifiersRules(t *testing.T) {
	t.Parallel()
	found, err := preflight.Judge([]byte(goodCompose))
	require.NoError(t, err)
	assert.Empty(t, found)
	for _, c := range []struct {
		old, by string
		want    preflight.Code
	}{
		{`"manifest_version":2`, `"manifest_version":3`, preflight.AppComposeRefused},
		{`"manifest_version":2`, `"manifest_version":"2"`, preflight.AppComposeRefused},
		{`"manifest_version":2,`, ``, preflight.AppComposeRefused},
		{`"name":"mpc",`, ``, preflight.AppComposeRefused},
		{`"runner":"docker-compose"`, `"runner":"bash"`, preflight.AppComposeRefused},
		{`"docker_compose_file":"services: {}",`, ``, preflight.AppComposeRefused},
		{`"kms_enabled":false`, `"kms_enabled":true`, preflight.AppComposeRefused},
		{`"gateway_enabled":false`, `"gateway_enabled":true`, preflight.AppComposeRefused},
		{`"gateway_enabled":false`, `"gateway_enabled":false,"tproxy_enabled":true`, preflight.AppComposeRefused},
		{`"gateway_enabled":false,`, ``, preflight.AppComposeRefused},
		{`"kms_enabled":false,`, ``, ""},
		{`"public_logs":true`, `"public_logs":false`, preflight.AppComposeRefused},
		{`"public_logs":true,`, ``, preflight.AppComposeRefused},
		{`"public_sysinfo":true`, `"public_sysinfo":null`, preflight.AppComposeRefused},
		{`"local_key_provider_enabled":true`, `"local_key_provider_enabled":false`, preflight.AppComposeRefused},
		{`"no_instance_id":true`, `"no_instance_id":false`, preflight.AppComposeRefused},
		{`"allowed_envs":[ ]`, `"allowed_envs":["A"]`, preflight.AppComposeRefused},
		{`"name":"mpc"`, `"name":"mpc","pre_launch_script":"id"`, preflight.AppComposeScript},
		{`"name":"mpc"`, `"name":"mpc","init_script":""`, preflight.AppComposeScript},
		{`"name":"mpc"`, `"name":"mpc","bash_script":"id"`, preflight.AppComposeScript},
		{`"name":"mpc"`, `"name":"mpc","rünner":"docker-compose"`, preflight.AppComposeUnknown},
		{`"name":"mpc"`, `"name":"mpc","key_provider":"local","swap_size":0,"storage_fs":"zfs","secure_time":true`, ""},
	} {
		require.Contains(t, goodCompose, c.old)
		found, err := preflight.Judge([]byte(strings.Replace(goodCompose, c.old, c.by, 1)))
		require.NoError(t, err)
		if c.want == "" {
			assert.Empty(t, found, "%s", c.by)
			continue
		}
		if assert.Len(t, found, 1, "%s instead of %s", c.by, c.old) {
			assert.Equal(t, c.want, found[0].Code)
			assert.Equal(t, exit.Measurement, found[0].ExitCode)
		}
	}
	for _, broken := range []string{"", "x", "[]", goodCompose + "{}", `{"a":1,"a":1}`, `{"runner":1,"Runner":1}`, goodCompose[:40], "null"} {
		_, err := preflight.Judge([]byte(broken))
		assert.Error(t, err, "%s", broken)
	}
}

// TestTheMeasuredDocument: a document that is the measured one says so, and a named one is looked at whatever is left out.
func TestTheMeasuredDocument(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{Agent: launchtest.AgentOptions{AppCompose: goodCompose}})
	w.write("app.json", goodCompose)
	w.settings.AppCompose = w.path("app.json")
	assert.Empty(t, codes(w.run()))
	w.settings.Skip = preflight.Groups()
	report := w.run()
	assert.Equal(t, preflight.OK, result(t, report, "app-compose").Status)
	w.write("app.json", strings.Replace(goodCompose, "true", "false", 1))
	report = w.run()
	assert.Equal(t, exit.Measurement, report.ExitCode)
	assert.Equal(t, "run would go on, but verifiers would refuse the node: exit code 8, APP002.", report.Summary)
}
