package image_test

import (
	"context"
	"net"
	"net/http"
	"testing"
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
			t.Parallel()
			r := newRegistry(t, launchtest.RegistryOptions{})
			ref := push(t, r, img)
			for _, f := range c.Faults {
				r.Fail(f)
			}
			clock := new(clock)
			p := defaults(clock)
			if c.Slow {
				p = impatient(clock)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			_, digests, err := pull(ctx, p, ref)
			require.NoError(t, err)
			requireLayers(t, img, digests)
			for _, f := range c.Faults {
				if f.On != launchtest.RequestPing { // which this client doesn't need
					assert.Positive(t, r.Hits(f.Kind), "the fault %q has to strike", f.Kind)
				}
			}
			assert.Less(t, clock.Slept()+time.Since(began), 30*time.Second, "time it would have taken")
			assert.Empty(t, r.Unexpected())
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

// TestOneSlowConnection has one of many answers come at 50 kB/s, too fast for the minimum: nobody waits 40 s for it.
func TestOneSlowConnection(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultDrip, Rate: 50_000, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1), Skip: 2})
	p := defaults(new(clock))
	p.Tuning.Window = time.Second
	began := time.Now()
	v, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	assert.Less(t, time.Since(began), 20*time.Second)
	assert.Positive(t, v.Stats().Resumes, "what came slowly is kept")
}

// TestArrivedStays asserts that what was fetched once isn't fetched again.
func TestArrivedStays(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{})
	ref := push(t, r, img)
	r.Fail(launchtest.RegistryFault{Kind: launchtest.FaultCut, On: launchtest.RequestBlob, Digest: layerDigest(t, img, 1), After: 300e3, Times: 4})
	v, digests, err := pull(t.Context(), defaults(new(clock)), ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
	config := int64(len(v.Config()))
	assert.Equal(t, v.Size()+config, r.BlobBytes(), "bytes that the registry sent")
	assert.Equal(t, v.Size(), v.Stats().Fetched)
	assert.Equal(t, 4, v.Stats().Resumes)
	assert.Equal(t, len(r.Requests())+1, v.Stats().Requests, "all requests are counted, and the one try of https")
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
	_, err := p.Resolve(t.Context(), ref)
	requireError(t, err, image.Unavailable)
	require.Len(t, delays, 9, "a quick one in each of five rounds, and four between them")
	for i, want := range []float64{0.25, 10, 0.25, 15, 0.25, 20, 0.25, 20, 0.25} {
		assert.InDelta(t, want, delays[i].Seconds(), want/4, "delay %d", i)
		assert.LessOrEqual(t, delays[i], p.MaxDelay, "delay %d", i)
	}
	assert.Equal(t, 10, r.Count(launchtest.RequestManifest), "requests")

	p.Rounds, delays = 0, nil
	_, err = p.Resolve(t.Context(), ref)
	assert.Equal(t, 2, requireError(t, err, image.Unavailable).Attempts, "attempts without further rounds")
}

// TestSlowServer needs longer for every answer than is usually waited: patience grows with the time-outs.
func TestSlowServer(t *testing.T) {
	t.Parallel()
	img := small(t)
	r := newRegistry(t, launchtest.RegistryOptions{RoundTrip: 300 * time.Millisecond})
	p := impatient(new(clock))
	p.Tuning.HeaderTimeout = 100 * time.Millisecond
	_, digests, err := pull(t.Context(), p, push(t, r, img))
	require.NoError(t, err)
	requireLayers(t, img, digests)
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
	_, err := p.Resolve(t.Context(), ref)
	require.NoError(t, err)

	lookups = -1000
	_, err = p.Resolve(t.Context(), ref)
	e := requireError(t, err, image.Unavailable)
	dns := new(net.DNSError)
	assert.ErrorAs(t, e, &dns)
	assert.NotEmpty(t, e.Hints())
}

// TestOutageInTheMiddle takes the registry away while layers arrive.
func TestOutageInTheMiddle(t *testing.T) {
	t.Parallel()
	img := threeLayers(t)
	r := newRegistry(t, launchtest.RegistryOptions{Rate: 2_000_000})
	ref := push(t, r, img)
	p := defaults(new(clock))
	stopped := make(chan struct{})
	p.Tuning.Sleep = func(ctx context.Context, d time.Duration) error {
		<-stopped
		return (new(clock)).Sleep(ctx, d)
	}
	go func() {
		defer close(stopped)
		for r.BlobBytes() < 3e6 {
			time.Sleep(time.Millisecond)
		}
		assert.NoError(t, r.Stop())
		assert.NoError(t, r.Start())
	}()
	_, digests, err := pull(t.Context(), p, ref)
	require.NoError(t, err)
	requireLayers(t, img, digests)
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
			t.Parallel()
			r := newRegistry(t, c.options)
			ref := push(t, r, img)
			r.Fail(c.fault)
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				for r.Hits(c.fault.Kind) == 0 {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(20 * time.Millisecond)
				cancel(context.DeadlineExceeded)
			}()
			began := time.Now()
			_, _, err := pull(ctx, &image.Puller{Rounds: 5, Tuning: image.Tuning{Getenv: func(string) string { return "" }}}, ref)
			assert.ErrorIs(t, err, context.DeadlineExceeded, "the cause of the context")
			assert.Less(t, time.Since(began), 8*time.Second)
		})
	}
}
