package launch_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/launchtest"
)

// fallback is a world whose newest approved digest can't be had, while the older one can.
func fallback(t *testing.T) (*world, *judge) {
	t.Helper()
	w, j := judgedWorld(t)
	w.settings.FallbackAfter = 30 * time.Minute
	w.approve(w.Digests[1], w.Digests[0])
	w.missing(w.Digests[1])
	return w, j
}

// missing makes the registry answer that it doesn't have a digest.
func (w *world) missing(h digest.Digest) {
	w.images(launchtest.RegistryFault{
		Kind: launchtest.FaultStatus, Status: 404, On: launchtest.RequestManifest, Digest: image.Hash(h),
	})
}

// TestFallback runs the older digest after thirty minutes, measures that, says so, and keeps it for the rest of the boot.
func TestFallback(t *testing.T) {
	t.Parallel()
	w, j := fallback(t)
	begun := w.clock.Now()
	l := w.watch()
	failures := l.failures()
	require.NotEmpty(t, failures)
	took := w.clock.Now().Sub(begun)
	assert.GreaterOrEqual(t, took, 30*time.Minute)
	assert.Less(t, took, 50*time.Minute)
	for i, f := range failures {
		assert.Equal(t, exit.Refused, f.ExitCode)
		assert.Contains(t, f.Error, w.Digests[1].String())
		assert.Equal(t, i == len(failures)-1, f.In == 0, "the older one is tried at once: %s", f.In)
	}
	w.accepted(w.Digests[0])
	w.sound(j)
	report := w.report()
	assert.Equal(t, w.Digests[0], report.Image.Digest)
	assert.Equal(t, "fallback: "+w.Digests[1].String()+" is newer and can't be had: refused", report.Image.Reason)
	require.NotNil(t, report.Image.FallbackFrom)
	assert.Equal(t, w.Digests[1], *report.Image.FallbackFrom)
	told := l.lastTold()
	assert.Equal(t, report.Image.FallbackFrom, told.FallbackFrom, "the status line says so")
	assert.Equal(t, report.Image.Reason, told.Reason)
	require.NotNil(t, told.Approved)
	assert.Equal(t, 1, *told.Approved)

	const reminder = "this is not the newest approved image"
	said := struct {
		Level, Digest, Because string
		From                   string `json:"fallback_from"`
	}{}
	w.eventually("it is said", func() bool { return l.said(reminder) == 1 })
	for _, line := range []string{"trying an older approved image", reminder} {
		require.NoError(t, json.Unmarshal(l.line(line), &said))
		assert.Equal(t, "WARN", said.Level)
		assert.Equal(t, w.Digests[0].String(), said.Digest)
		assert.Equal(t, w.Digests[1].String(), said.From)
		assert.Contains(t, said.Because, "404")
	}
	for i := range 3 {
		w.eventually("it is said again", func() bool { return l.said(reminder) == i+1 })
		l.nap(time.Hour)
	}
	require.NoError(t, l.terminate())

	w.Registry.Heal()
	w.mustBoot()
	w.accepted(w.Digests[0])
	assert.Equal(t, "measured", w.report().Image.Reason)
	assert.Nil(t, w.report().Image.FallbackFrom)
	w.rebootJudged(j)
	w.mustBoot()
	w.accepted(w.Digests[1])
	w.sound(j)
}

// TestNoFallback: the newest one runs as soon as it can be had, and a source that doesn't answer says nothing of it.
func TestNoFallback(t *testing.T) {
	t.Parallel()
	layer := func(w *world) {
		w.Registry.Heal()
		w.images(launchtest.RegistryFault{Kind: launchtest.FaultStatus, Status: 503, On: launchtest.RequestBlob})
	}
	for what, c := range map[string]struct {
		arrange  func(w *world)
		attempts int // that fail
	}{
		"it is off":            {func(w *world) { w.settings.FallbackAfter = 0 }, 20},
		"no network for hours": {func(w *world) { assert.NoError(w.t, w.Registry.Stop()) }, 50},
		"layers for too short": {layer, 6},
		"a network that comes up late, and a digest that is pushed a little later": {func(w *world) {
			assert.NoError(w.t, w.Registry.Stop())
		}, 8},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w, j := fallback(t)
			c.arrange(w)
			l := w.attempts(func(failed int) {
				switch {
				case failed == c.attempts:
					w.Registry.Heal()
					fallthrough
				case c.attempts == 8 && failed == 2:
					_ = w.Registry.Start() // unless it runs
				}
			})
			assert.Len(t, l.failures(), c.attempts)
			assert.Zero(t, l.said("an older approved image"))
			w.accepted(w.Digests[1])
			assert.Equal(t, "newest approved", w.report().Image.Reason)
			assert.Nil(t, w.report().Image.FallbackFrom)
			w.sound(j)
		})
	}
}

// TestNoFallbackInSilence: an attempt that begins with an answer and then waits for hours for another one tells of the digest no more than one that
// never had any.
func TestNoFallbackInSilence(t *testing.T) {
	t.Parallel()
	w, j := fallback(t)
	w.configure("pull_retry_interval_secs = 60\npull_max_delay_secs = 60")
	text, err := os.ReadFile(w.ConfigFile)
	require.NoError(t, err)
	text = bytes.Replace(text, []byte("pull_max_retries = 0"), []byte("pull_max_retries = 40"), 1)
	require.NoError(t, os.WriteFile(w.ConfigFile, text, 0o600))
	w.Registry.Heal()
	w.images(launchtest.RegistryFault{Kind: launchtest.FaultGarbage, On: launchtest.RequestBlob, Digest: w.layerOf(w.Digests[1])})
	begun := w.clock.Now()
	l := w.attempts(func(failed int) {
		if failed == 4 {
			w.Registry.Heal()
		}
	})
	assert.Greater(t, w.clock.Now().Sub(begun), 2*time.Hour)
	assert.Len(t, l.failures(), 4)
	assert.Zero(t, l.said("an older approved image"))
	w.accepted(w.Digests[1])
	w.sound(j)
}

// TestFallbackWhereNothingCanBeHad tries the newest first in each round, and waits between them.
func TestFallbackWhereNothingCanBeHad(t *testing.T) {
	t.Parallel()
	lies := func(w *world, h digest.Digest) {
		w.images(launchtest.RegistryFault{Kind: launchtest.FaultFlip, On: launchtest.RequestBlob, Digest: w.layerOf(h)})
	}
	for what, c := range map[string]struct {
		arrange func(w *world)
		rests   bool // an attempt costs much of its image, so that a round is followed by a long wait
	}{
		"no manifest":                   {func(w *world) { w.missing(w.Digests[0]); w.missing(w.Digests[1]) }, false},
		"layers that lie":               {func(w *world) { lies(w, w.Digests[0]); lies(w, w.Digests[1]) }, true},
		"layers that lie of the newest": {func(w *world) { lies(w, w.Digests[1]); w.missing(w.Digests[0]) }, true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w, j := fallback(t)
			w.Registry.Heal()
			c.arrange(w)
			var tried []digest.Digest
			rounds := 0
			l := w.attempts(func(int) {
				tried = append(tried, w.report().Image.Digest)
				if w.report().Image.FallbackFrom != nil {
					rounds++
				}
				if rounds == 2 {
					w.Registry.Heal()
				}
			})
			failures := l.failures()
			require.Len(t, tried, len(failures))
			for i, f := range failures {
				older := tried[i] == w.Digests[0]
				if older {
					assert.Equal(t, w.Digests[1], tried[i-1])
					assert.Zero(t, failures[i-1].In)
				}
				switch {
				case c.rests && f.In > 0:
					assert.Greater(t, f.In, 45*time.Minute)
				case older:
					around(t, 5*time.Minute, f)
				}
			}
			w.accepted(w.Digests[1])
			assert.Equal(t, "newest approved", w.report().Image.Reason)
			w.sound(j)
		})
	}
}

// TestFallbackBeginsAnew in a run that follows one which was killed, or ended, before it measured anything.
func TestFallbackBeginsAnew(t *testing.T) {
	t.Parallel()
	w, j := fallback(t)
	l := w.begin("step started measure")
	assert.NoError(t, l.end())
	assert.Equal(t, 1, l.said("trying an older approved image"))
	w.sound(j)
	l = w.attempts(func(failed int) {
		if failed == 3 {
			w.Registry.Heal()
		}
	})
	assert.Len(t, l.failures(), 3)
	w.accepted(w.Digests[1])
	w.sound(j)
}
