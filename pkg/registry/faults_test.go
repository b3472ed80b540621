package registry_test

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

func TestFaultTable(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	table := launchtest.FaultTable(layerDigest(t, img, 1))
	require.Len(t, table, 22, "the table of faults")
	for _, c := range table {
		t.Run(c.Name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, network *launchtest.Network) {
				r := newRegistry(t, launchtest.RegistryOptions{Network: network})
				ref := push(t, r, img)
				for _, f := range c.Faults {
					r.Fail(f)
				}
				began := time.Now()
				_, digests, err := pull(t.Context(), within(network), ref)
				require.NoError(t, err)
				requireLayers(t, img, digests)
				for _, f := range c.Faults {
					if f.On != launchtest.RequestPing { // which this client doesn't need
						assert.Positive(t, r.Hits(f.Kind), "the fault %q has to strike", f.Kind)
					}
				}
				assert.Less(t, time.Since(began), 30*time.Second)
				assert.Empty(t, r.Unexpected())
			})
		})
	}
}

// TestFaultsElsewhere has what the table doesn't.
func TestFaultsElsewhere(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	layer := layerDigest(t, img, 1)
	for name, faults := range map[string][]launchtest.RegistryFault{
		"nonsense instead of HTTP":         {{Kind: launchtest.FaultGarbage, On: launchtest.RequestBlob, Digest: layer, Times: 2}},
		"length says half, once":           {{Kind: launchtest.FaultShortLength, On: launchtest.RequestBlob, Digest: layer}},
		"another range, once":              {{Kind: launchtest.FaultShiftRange, On: launchtest.RequestBlob, Digest: layer}},
		"no ranges at all":                 {{Kind: launchtest.FaultNoRange, On: launchtest.RequestBlob, Times: -1}},
		"no ranges after the first answer": {{Kind: launchtest.FaultNoRange, On: launchtest.RequestBlob, Digest: layer, Skip: 2, Times: -1}},
		"no ranges, cut every 4 MB": {{Kind: launchtest.FaultNoRange, On: launchtest.RequestBlob, Times: -1},
			{Kind: launchtest.FaultCut, On: launchtest.RequestBlob, Digest: layer, After: 4e6, Times: 1},
			{Kind: launchtest.FaultCut, On: launchtest.RequestBlob, Digest: layer, After: 8e6, Times: 1}},
		"ranges are refused": {{Kind: launchtest.FaultStatus, Status: http.StatusRequestedRangeNotSatisfiable,
			On: launchtest.RequestBlob, Digest: layer}},
		"a small layer is damaged twice": {{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 2), Times: 2}},
		"the manifest is damaged twice":  {{Kind: launchtest.FaultFlip, On: launchtest.RequestManifest, Times: 2}},
		"a large layer is damaged twice": {{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layer},
			{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: layer, Skip: 5}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, launchtest.RegistryOptions{})
			ref := push(t, r, img)
			for _, f := range faults {
				r.Fail(f)
			}
			_, digests, err := pull(t.Context(), defaults(new(clock)), ref)
			require.NoError(t, err)
			requireLayers(t, img, digests)
			for _, f := range faults {
				assert.Positive(t, r.Hits(f.Kind), "the fault %q has to strike", f.Kind)
			}
		})
	}
}

// TestOneSlowConnection has one of many answers come at 50 kB/s, too fast for the minimum: nobody
// waits 40 s for it.
func TestOneSlowConnection(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network, Rate: 20_000_000})
		ref := push(t, r, img)
		r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultDrip, Rate: 50_000, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1), Skip: 2})
		began := time.Now()
		v, digests, err := pull(t.Context(), within(network), ref)
		require.NoError(t, err)
		requireLayers(t, img, digests)
		assert.Less(t, time.Since(began), 20*time.Second)
		assert.Equal(t, 1, v.Stats().Resumes, "what came slowly is kept")
	})
}

// TestArrivedStays asserts that what was fetched once isn't fetched again.
func TestArrivedStays(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network})
		ref := push(t, r, img)
		r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultCut, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1), After: 300e3, Times: 4})
		v, digests, err := pull(t.Context(), within(network), ref)
		require.NoError(t, err)
		requireLayers(t, img, digests)
		synctest.Wait() // the registry counts an answer once all of it is gone
		config := int64(len(v.Config()))
		assert.Equal(t, v.Size()+config, r.BlobBytes(), "bytes that the registry sent")
		assert.Equal(t, v.Size(), v.Stats().Fetched)
		assert.Equal(t, 4, v.Stats().Resumes)
		assert.Equal(t, len(r.Requests())+1, v.Stats().Requests, "all requests are counted, and the one try of https")
	})
}

// TestOnlyFailures ends every way in which a registry can be out of order for ever.
func TestOnlyFailures(t *testing.T) {
	t.Parallel()
	img := small(t)
	always := func(f launchtest.RegistryFault) launchtest.RegistryFault {
		f.Times = -1
		return f
	}
	for name, c := range map[string]struct {
		fault launchtest.RegistryFault
		part  string
	}{
		"manifest 503": {always(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestManifest}), "manifest"},
		"blob 503":     {always(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1)}), "layer 2 of 2"},
		"blob reset":   {always(launchtest.RegistryFault{Kind: launchtest.FaultReset, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1)}), "layer 2 of 2"},
		"429 that asks for an hour": {always(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: http.StatusTooManyRequests, RetryAfter: "3600",
			On: launchtest.RequestBlob, Digest: layerDigest(t, img, 0)}), "layer 1 of 2"},
		"garbage": {always(launchtest.RegistryFault{Kind: launchtest.FaultGarbage, On: launchtest.RequestManifest}), "manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, launchtest.RegistryOptions{})
			ref := push(t, r, img)
			r.Fail(c.fault)
			clock := new(clock)
			_, _, err := pull(t.Context(), defaults(clock), ref)
			e := requireError(t, err, image.Unavailable)
			assert.Equal(t, exit.Unavailable, exit.Of(err))
			assert.Equal(t, c.part, e.Part)
			assert.Equal(t, ref.String(), e.Ref)
			assert.Equal(t, r.Host(), e.Host)
			assert.Greater(t, e.Attempts, 5, "attempts")
			assert.Greater(t, clock.Slept(), 15*time.Second, "delays")
			assert.Less(t, clock.Slept(), 6*time.Minute, "delays")
		})
	}
}

// TestRounds holds the delays to the user's settings.
func TestRounds(t *testing.T) {
	t.Parallel()
	img := small(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultStatus, On: launchtest.RequestManifest, Times: -1})
	var delays []time.Duration
	p := defaults(new(clock))
	p.Rounds, p.Interval, p.MaxDelay = 4, 10*time.Second, 20*time.Second
	p.Tuning.QuickTries = 2
	p.Tuning.Sleep = func(_ context.Context, d time.Duration) error {
		delays = append(delays, d)
		return nil
	}
	_, err := resolve(t.Context(), p, ref)
	requireError(t, err, image.Unavailable)
	require.Len(t, delays, 9, "a quick one in each of five rounds, and four between them")
	for i, want := range []float64{0.25, 10, 0.25, 15, 0.25, 20, 0.25, 20, 0.25} {
		assert.InDelta(t, want, delays[i].Seconds(), want/4, "delay %d", i)
		assert.LessOrEqual(t, delays[i], p.MaxDelay, "delay %d", i)
	}
	assert.Equal(t, 10, r.Count(launchtest.RequestManifest), "requests")

	p.Rounds, delays = 0, nil
	_, err = resolve(t.Context(), p, ref)
	assert.Equal(t, 2, requireError(t, err, image.Unavailable).Attempts, "attempts without further rounds")
}

// TestSlowServer needs longer for every answer than is usually waited: patience grows with the
// time-outs.
func TestSlowServer(t *testing.T) {
	img := small(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network, RoundTrip: 45 * time.Second})
		_, digests, err := pull(t.Context(), within(network), push(t, r, img))
		require.NoError(t, err)
		requireLayers(t, img, digests)
	})
}

// TestNetworkComesUp starts before the network does, as a boot may.
func TestNetworkComesUp(t *testing.T) {
	t.Parallel()
	img := small(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	require.NoError(t, r.Stop())
	p := defaults(new(clock))
	attempts := 0
	p.Tuning.Sleep = func(ctx context.Context, _ time.Duration) error {
		if attempts++; attempts == 6 {
			return r.Start()
		}
		return nil
	}
	_, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
}

func TestNameThatDoesNotResolve(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, launchtest.RegistryOptions{TLS: true})
	ref := at(t, "registry.test", push(t, r, small(t)))
	p := defaults(new(clock))
	p.Tuning.RootCAs = r.CertPool()
	lookups := 0
	p.Tuning.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if lookups++; lookups < 7 {
			return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: "registry.test", IsNotFound: true}}
		}
		return new(net.Dialer).DialContext(ctx, network, r.Host())
	}
	_, err := resolve(t.Context(), p, ref)
	require.NoError(t, err)

	lookups = -1000
	_, err = resolve(t.Context(), p, ref)
	e := requireError(t, err, image.Unavailable)
	dns := new(net.DNSError)
	assert.ErrorAs(t, e, &dns)
	assert.NotEmpty(t, e.Hints())
}

// TestOutageInTheMiddle takes the registry away while layers arrive.
func TestOutageInTheMiddle(t *testing.T) {
	img := threeLayers(t)
	inBubble(t, func(t *testing.T, network *launchtest.Network) {
		r := newRegistry(t, launchtest.RegistryOptions{Network: network, Rate: 2_000_000})
		p := within(network)
		var arrived atomic.Int64
		var outage sync.Once
		p.Progress = func(n int64) {
			if arrived.Add(n) < 3e6 {
				return
			}
			outage.Do(func() {
				assert.NoError(t, r.Stop())
				time.AfterFunc(10*time.Second, func() { assert.NoError(t, r.Start()) })
			})
		}
		began := time.Now()
		_, digests, err := pull(t.Context(), p, push(t, r, img))
		require.NoError(t, err)
		requireLayers(t, img, digests)
		assert.Greater(t, time.Since(began), 10*time.Second, "the outage")
	})
}

// TestEveryWaitEnds cancels a pull wherever it can wait.
func TestEveryWaitEnds(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	for name, c := range map[string]struct {
		options launchtest.RegistryOptions
		fault   launchtest.RegistryFault
	}{
		"header of the manifest": {fault: launchtest.RegistryFault{Kind: launchtest.FaultNoHeader, On: launchtest.RequestManifest, Times: -1}},
		"body of the manifest":   {fault: launchtest.RegistryFault{Kind: launchtest.FaultStall, On: launchtest.RequestManifest, Times: -1}},
		"header of a layer": {fault: launchtest.RegistryFault{Kind: launchtest.FaultNoHeader, On: launchtest.RequestBlob,
			Digest: layerDigest(t, img, 1), Times: -1}},
		"body of a layer": {fault: launchtest.RegistryFault{Kind: launchtest.FaultStall, On: launchtest.RequestBlob,
			Digest: layerDigest(t, img, 0), After: 1000, Times: -1}},
		"body of a layer without ranges": {options: launchtest.RegistryOptions{NoRanges: true},
			fault: launchtest.RegistryFault{Kind: launchtest.FaultStall, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1), After: 3e6, Times: -1}},
		"delay": {fault: launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: http.StatusTooManyRequests, RetryAfter: "60",
			On: launchtest.RequestBlob, Digest: layerDigest(t, img, 2), Times: -1}},
		"token server": {options: launchtest.RegistryOptions{Auth: launchtest.RegistryBearer, Public: true},
			fault: launchtest.RegistryFault{Kind: launchtest.FaultNoHeader, On: launchtest.RequestToken, Times: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, network *launchtest.Network) {
				c.options.Network = network
				r := newRegistry(t, c.options)
				ref := push(t, r, img)
				r.Fail(c.fault)
				ctx, cancel := context.WithCancelCause(t.Context())
				ended := make(chan error, 1)
				began := time.Now()
				go func() {
					_, _, err := pull(ctx, within(network), ref)
					ended <- err
				}()
				synctest.Wait() // all there is to do but wait is done
				require.Positive(t, r.Hits(c.fault.Kind))
				cancel(context.DeadlineExceeded)
				assert.ErrorIs(t, <-ended, context.DeadlineExceeded, "the cause of the context")
				assert.Equal(t, began, time.Now(), "it ends at once")
			})
		})
	}
}

// TestAPushDuringTheRounds is what they are for: the digest was asked for before it was there.
func TestAPushDuringTheRounds(t *testing.T) {
	t.Parallel()
	r, clock := newRegistry(t, launchtest.RegistryOptions{}), new(clock)
	ref := push(t, r, small(t))
	r.Fail(launchtest.RegistryFault{
		Kind: launchtest.FaultStatus, Status: http.StatusNotFound, On: launchtest.RequestManifest, Times: -1,
	})
	p := defaults(clock)
	p.Tuning.Sleep = func(ctx context.Context, d time.Duration) error {
		if clock.Slept() > 8*time.Second {
			r.Heal()
		}
		return clock.Sleep(ctx, d)
	}
	_, err := resolve(t.Context(), p, ref)
	require.NoError(t, err)

	// Who only wants to know is told after the first round.
	r.Fail(launchtest.RegistryFault{
		Kind: launchtest.FaultStatus, Status: http.StatusNotFound, On: launchtest.RequestManifest, Times: -1,
	})
	p = defaults(clock)
	p.Rounds = 0
	_, err = resolve(t.Context(), p, ref)
	assert.Equal(t, 3, requireError(t, err, image.Refused).Attempts)
}
