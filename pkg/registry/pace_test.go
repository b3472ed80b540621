package registry_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/launchtest"
)

// TestTheRateHolds over all connections together, to a tenth, with ranges and without.
func TestTheRateHolds(t *testing.T) {
	img := threeLayers(t)
	for _, noRanges := range []bool{false, true} {
		t.Run(fmt.Sprintf("no ranges: %t", noRanges), func(t *testing.T) {
			inBubble(t, func(t *testing.T, network *launchtest.Network) {
				r := newRegistry(t, launchtest.RegistryOptions{Network: network, NoRanges: noRanges})
				p := within(network)
				p.Rate = 1_000_000
				began := time.Now()
				v, _, err := pull(t.Context(), p, push(t, r, img))
				require.NoError(t, err)
				assert.InEpsilon(t, float64(v.Stats().Fetched)/1e6, time.Since(began).Seconds(), 0.1)
			})
		})
	}
}

// TestARateIsNoStall: what a low rate holds back is not taken for a registry that has stopped.
func TestARateIsNoStall(t *testing.T) {
	img := small(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network})
		p := within(network)
		p.Rate = 100 // a tenth of a percent of what may come at least
		began := time.Now()
		v, _, err := pull(t.Context(), p, push(t, r, img))
		require.NoError(t, err)
		assert.Zero(t, v.Stats().Resumes)
		assert.Greater(t, time.Since(began), 3*time.Minute)
		assert.Less(t, time.Since(began), 5*time.Minute)
	})
}

// TestARateEndsWithThePull: a wait for it is no reason to stay.
func TestARateEndsWithThePull(t *testing.T) {
	img := small(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network})
		p := within(network)
		p.Rate = 100
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		_, _, err := pull(ctx, p, push(t, r, img))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Minute, time.Since(began))
	})
}

// TestARateSparesNobodyWhoStalls: the watch sees through the waits that are our own.
func TestARateSparesNobodyWhoStalls(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network})
		r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStall, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1), After: 100_000})
		p := within(network)
		p.Rate = 1_000_000
		v, _, err := pull(t.Context(), p, push(t, r, img))
		require.NoError(t, err)
		assert.Positive(t, v.Stats().Resumes)
	})
}
