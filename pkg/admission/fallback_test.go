package admission_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
)

// nth returns the nth digest of a list, 0 the newest.
func nth(n int) digest.Digest { return digest.Of([]byte{byte(n)}) }

func listOf(t *testing.T, n int) *approval.List {
	t.Helper()
	var entries []string
	for i := range n {
		entries = append(entries, fmt.Sprintf("%q", nth(i)))
	}
	list, err := approval.Parse([]byte(`{"approved_hashes":[` + strings.Join(entries, ",") + `]}`))
	require.NoError(t, err)
	return &list
}

// attempts is a run that fails, as far as the rule of the fallback goes.
type attempts struct {
	t        *testing.T
	settings admission.Settings
	list     *approval.List
	override *digest.Digest
	failing  admission.Failing
	now      time.Time
}

func newAttempts(t *testing.T, approved int) *attempts {
	return &attempts{
		t: t, list: listOf(t, approved), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		settings: admission.Settings{Platform: config.TEE, FallbackAfter: 30 * time.Minute, DefaultDigest: nth(99)},
	}
}

func (a *attempts) decide() approval.Decision {
	a.t.Helper()
	d, err := admission.Facts{Settings: a.settings, Failing: a.failing}.Select(a.list, a.override)
	require.NoError(a.t, err)
	return d
}

// fail has an attempt end so, so long after the one before, and returns which digest it was for.
func (a *attempts) fail(after time.Duration, code exit.Code, answered bool) digest.Digest {
	a.t.Helper()
	d := a.decide()
	a.now = a.now.Add(after)
	a.failing = a.failing.Failed(a.settings, d, code, answered, a.now)
	return d.Digest
}

// TestFallback: thirty minutes of failures that say something of the newest digest, then all older ones at once, and the
// newest first again.
func TestFallback(t *testing.T) {
	t.Parallel()
	a := newAttempts(t, 9)
	for i := range 7 {
		assert.Equal(t, nth(0), a.fail(5*time.Minute, exit.Refused, true), "%d", i)
	}
	for range 3 {
		for older := 1; older <= 5; older++ {
			d := a.decide()
			assert.Equal(t, nth(older), d.Digest)
			assert.Equal(t, nth(0), d.From)
			assert.Equal(t, "fallback: "+nth(0).String()+" is newer and can't be had: refused", string(d.Reason))
			assert.Equal(t, older, a.failing.Turn, "and at once")
			a.fail(time.Minute, exit.Unavailable, true)
		}
		assert.Zero(t, a.failing.Turn, "after a while")
		assert.Equal(t, nth(0), a.fail(5*time.Minute, exit.Refused, true), "the newest comes first in each round")
	}
	assert.Equal(t, nth(1), a.fail(0, exit.Engine, true), "whose failure says nothing of it")
	assert.Zero(t, a.failing.Turn)
	assert.Equal(t, nth(0), a.decide().Digest)
}

// TestNoFallback where it isn't asked for, too early, or nothing is known of the newest digest.
func TestNoFallback(t *testing.T) {
	t.Parallel()
	refused := func(a *attempts) { a.fail(5*time.Minute, exit.Refused, true) }
	for what, c := range map[string]struct {
		arrange func(a *attempts)
		attempt func(a *attempts)
	}{
		"it is off":               {func(a *attempts) { a.settings.FallbackAfter = 0 }, refused},
		"nobody supervises":       {func(a *attempts) { a.settings.Supervise = admission.SuperviseOff }, refused},
		"an override":             {func(a *attempts) { n := nth(0); a.override = &n }, refused},
		"an override to an older": {func(a *attempts) { n := nth(1); a.override = &n }, refused},
		"no list":                 {func(a *attempts) { a.list = nil }, refused},
		"one approved":            {func(a *attempts) { a.list = listOf(a.t, 1) }, refused},
		"no source answered":      {nil, func(a *attempts) { a.fail(5*time.Minute, exit.Unavailable, false) }},
		"the engine's fault":      {nil, func(a *attempts) { a.fail(5*time.Minute, exit.Engine, true) }},
		"the config's fault":      {nil, func(a *attempts) { a.fail(5*time.Minute, exit.Config, true) }},
		"every other answer": {nil, func(a *attempts) {
			a.fail(5*time.Minute, exit.Unavailable, false)
			a.fail(5*time.Minute, exit.Refused, true)
		}},
		"it got through in between": {nil, func(a *attempts) {
			a.fail(5*time.Minute, exit.Refused, true)
			a.fail(5*time.Minute, exit.Engine, true)
		}},
		"a list that changes": {nil, func(a *attempts) {
			if a.failing.For >= 20*time.Minute {
				a.list = listOf(a.t, 3)
				a.failing.Newest = digest.Of(nil)
			}
			refused(a)
		}},
		"a clock that is set back": {nil, func(a *attempts) {
			a.fail(10*time.Minute, exit.Refused, true)
			a.fail(-10*time.Minute, exit.Refused, true)
		}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			a := newAttempts(t, 5)
			if c.arrange != nil {
				c.arrange(a)
			}
			first := a.decide().Digest
			for range 200 {
				c.attempt(a)
				require.Equal(t, first, a.decide().Digest)
				require.Zero(t, a.decide().From)
				require.Zero(t, a.failing.Turn)
			}
		})
	}

	// Forty seconds until there is a network, and then a digest that isn't there.
	a := newAttempts(t, 3)
	a.fail(40*time.Second, exit.Unavailable, false)
	for range 30 {
		a.fail(time.Minute, exit.Refused, true)
		require.Zero(t, a.decide().From, "%s", a.now)
	}
	a.fail(time.Minute, exit.Refused, true)
	assert.Equal(t, nth(1), a.decide().Digest)
	// An override goes before it, and a list that doesn't hold it any more.
	override := nth(2)
	a.override = &override
	assert.Equal(t, approval.Override, a.decide().Reason)
	a.override = nil
	assert.Equal(t, nth(1), a.decide().Digest)
	a.list = listOf(t, 1)
	assert.Equal(t, nth(0), a.decide().Digest)
}

// TestFallbackKeepsWhatIsMeasured: never after the emit.
func TestFallbackKeepsWhatIsMeasured(t *testing.T) {
	t.Parallel()
	a := newAttempts(t, 5)
	for range 7 {
		a.fail(5*time.Minute, exit.Mismatch, true)
	}
	require.Equal(t, nth(1), a.decide().Digest)
	for n, reason := range map[int]approval.Reason{0: approval.Measured, 1: approval.Measured, 4: approval.Measured, 7: approval.Newest} {
		_, log := logs(t, nth(n))
		d, err := admission.Facts{Settings: a.settings, Failing: a.failing, Log: log}.Select(a.list, nil)
		require.NoError(t, err)
		assert.Equal(t, reason, d.Reason, "%d", n)
		assert.Zero(t, d.From)
		if reason == approval.Measured {
			assert.Equal(t, nth(n), d.Digest)
		}
	}
}

// TestFallbackWhateverHappens goes through random runs: an older digest is tried only right after the newest failed again,
// only of those that are listed, and only once it has failed for long enough by what sources said.
func TestFallbackWhateverHappens(t *testing.T) {
	t.Parallel()
	fellBack := 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 7))
		a := newAttempts(t, 1+r.IntN(8))
		var last struct {
			digest digest.Digest
			said   bool
		}
		var said time.Duration
		for range 60 {
			if r.IntN(15) == 0 {
				a.list = listOf(t, 1+r.IntN(8))
			}
			a.override = nil
			if n := nth(r.IntN(len(a.list.Digests()))); r.IntN(20) == 0 {
				a.override = &n
			}
			d := a.decide()
			approved := a.list.Digests()
			require.Contains(t, approved, d.Digest)
			if d.From.IsZero() {
				require.True(t, d.Digest == approved[0] || a.override != nil)
			} else {
				fellBack++
				require.Nil(t, a.override)
				require.Equal(t, approved[0], d.From)
				require.Contains(t, approved[1:min(6, len(approved))], d.Digest)
				require.GreaterOrEqual(t, said, a.settings.FallbackAfter)
				require.True(t, last.said, "what came before said something of it")
				if d.Digest == approved[1] {
					require.Equal(t, approved[0], last.digest, "the newest was tried right before")
				}
			}
			code := []exit.Code{exit.Config, exit.Unavailable, exit.Refused, exit.Mismatch, exit.Engine}[r.IntN(5)]
			answered := r.IntN(4) > 0
			step := time.Duration(r.IntN(600)) * time.Second
			unpullable := answered && code >= exit.Unavailable && code <= exit.Mismatch
			if unpullable && last.said {
				said += step // no less than what counts
			}
			last.digest, last.said = d.Digest, unpullable
			a.fail(step, code, answered)
		}
	}
	assert.Greater(t, fellBack, 1000, "the runs are too much alike")
}
