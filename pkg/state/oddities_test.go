package state_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/state"
)

// TestOddities tells what leads elsewhere, without the values, which may be secret, and nothing of
// what every engine makes.
func TestOddities(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		request, document string
		says              string // empty: nothing
	}{
		{"volumes/mpc-data", `{"Driver":"local","Options":{"device":"//host/x","o":"username=u,password=p","type":"cifs"}}`, "(device, o, type)"},
		{"volumes/shared-volume", `{"Driver":"local","Options":{"device":"/x","o":"bind"}}`, "volume shared-volume"},
		{"volumes/mpc-data", `{"Driver":"rexray","Options":{}}`, "driver rexray"},
		{"volumes/mpc-data", `{"Driver":"local","Options":{"size":"10G"}}`, ""},
		{"volumes/mpc-data", `{"Driver":"local","Options":null}`, ""},
		{"networks/mpc-node_default", `{"Driver":"macvlan","Options":{"parent":"eth0"}}`, "driver macvlan"},
		{"networks/mpc-node_default", `{"Driver":"bridge","Internal":true}`, "internal"},
		{"networks/mpc-node_default", `{"Driver":"bridge","Options":{"com.docker.network.driver.mtu":"1450"}}`, ""},
	} {
		dir := filepath.Join(t.TempDir(), "d")
		double, err := launchtest.NewEngine(dir, launchtest.EngineOptions{})
		require.NoError(t, err)
		t.Cleanup(func() { double.Close() })
		engine, err := inspect.New(double.Host())
		require.NoError(t, err)
		for path, name := range map[string]string{"volumes": "mpc-data", "volumes/": "shared-volume", "networks": "mpc-node_default"} {
			_, err := double.Call("POST", "/"+filepath.Clean(path)+"/create", map[string]any{"Name": name})
			require.NoError(t, err)
		}
		require.Empty(t, state.Oddities(t.Context(), engine))
		double.Fail(launchtest.EngineFault{Match: "GET /" + c.request, Times: -1, Edit: func([]byte) []byte { return []byte(c.document) }})
		odd := state.Oddities(t.Context(), engine)
		if c.says == "" {
			assert.Empty(t, odd, c.document)
			continue
		}
		require.Len(t, odd, 1, c.document)
		assert.Contains(t, odd[0], c.says)
		assert.NotContains(t, odd[0], "password")
	}
}
