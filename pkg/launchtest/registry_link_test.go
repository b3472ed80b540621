package launchtest_test

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

// TestTotalRateIsShared: four connections that each had the whole link would need a quarter of the time.
func TestTotalRateIsShared(t *testing.T) {
	t.Parallel()
	r, err := launchtest.NewRegistry(launchtest.RegistryOptions{TotalRate: 8_000_000})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	const clients, size = 4, 1_000_000
	digest, err := r.PushBlob("test/shared", bytes.Repeat([]byte("x"), size))
	require.NoError(t, err)
	begin := time.Now()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			answer, err := client.Get("http://" + r.Host() + "/v2/test/shared/blobs/" + digest.String())
			if !assert.NoError(t, err) {
				return
			}
			defer answer.Body.Close()
			n, err := io.Copy(io.Discard, answer.Body)
			assert.NoError(t, err)
			assert.EqualValues(t, size, n)
		})
	}
	wg.Wait()
	assert.Greater(t, time.Since(begin), 400*time.Millisecond, "4 MB over a link of 8 MB/s")
}
