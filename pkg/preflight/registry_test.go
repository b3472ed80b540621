package preflight_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/launchtest"
	"tee-launcher/pkg/preflight"
)

func TestTheRateLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	assert.Equal(t, "the registry states none", result(t, w.run(), "rate limit").Detail)

	left := "76"
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: w.Registry.Host()})
			r.Out.Header.Del("X-Forwarded-For")
		},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set("RateLimit-Limit", "100;w=21600")
			r.Header.Set("RateLimit-Remaining", left+";w=21600")
			return nil
		},
	})
	defer proxy.Close()
	text := strings.ReplaceAll(string(w.read(w.ConfigFile)), w.Registry.Host(), strings.TrimPrefix(proxy.URL, "http://"))
	require.NoError(t, os.WriteFile(w.ConfigFile, []byte(text), 0o600))
	report := w.run()
	assert.Equal(t, "76 of 100 requests left", result(t, report, "rate limit").Detail)
	left = "1"
	report = w.run()
	assert.Equal(t, []string{"REG007"}, codes(report))
	assert.Equal(t, exit.OK, report.ExitCode)
}

// TestDeep downloads every layer, and has one that was damaged on its way once repaired as a boot would.
func TestDeep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, launchtest.MachineOptions{})
	w.settings.Deep = true
	w.Registry.Fail(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: w.target("@layer0@"), After: 7, Times: 2})
	sent := w.Registry.BlobBytes()
	report := w.run()
	assert.Equal(t, exit.OK, report.ExitCode, "%v", result(t, report, "download"))
	assert.Equal(t, preflight.OK, result(t, report, "download").Status)
	assert.GreaterOrEqual(t, w.Registry.BlobBytes()-sent, *report.WouldRun.SizeBytes)
	assert.Equal(t, 2, w.Registry.Hits(launchtest.FaultFlip), "one of them may have hit the question whether the layer is there")
	assert.Equal(t, *report.WouldRun.SizeBytes, *report.WouldRun.BytesLeft, "nothing was kept")
}
