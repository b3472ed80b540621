package stage_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/stage"
)

// at is so long after the beginning.
func at(d time.Duration) time.Time { return time.Unix(1_800_000_000, 0).Add(d) }

func TestDecide(t *testing.T) {
	t.Parallel()
	v1, v2, v3 := digest.Of([]byte("1")), digest.Of([]byte("2")), digest.Of([]byte("3"))
	broken, failed := errors.New("broken"), errors.New("failed")
	plenty := &stage.Disk{Free: 50, All: 100}
	const m = time.Minute
	settings := stage.Settings{Mode: stage.Auto, After: 10 * m, Delay: 15 * m}
	for name, c := range map[string]struct {
		facts  stage.Facts // running v1
		memory stage.Memory
		want   stage.Step
		state  stage.State
		why    error // nil: none
	}{
		"what runs is the choice":             {stage.Facts{Wanted: v1}, stage.Memory{}, stage.Rest, "", nil},
		"another one is, by now":              {stage.Facts{Wanted: v2}, stage.Memory{}, stage.Rest, stage.Waiting, nil},
		"for less than it takes":              {stage.Facts{Now: at(10*m - 1), Wanted: v2}, stage.Memory{Wanted: v2}, stage.Rest, stage.Waiting, nil},
		"its turn hasn't come":                {stage.Facts{Now: at(17*m - 1), Wanted: v2}, stage.Memory{Wanted: v2, Delay: 7 * m}, stage.Rest, stage.Waiting, nil},
		"its turn has come":                   {stage.Facts{Now: at(17 * m), Wanted: v2}, stage.Memory{Wanted: v2, Delay: 7 * m}, stage.Begin, stage.Fetching, nil},
		"less than an hour after another":     {stage.Facts{Now: at(59 * m), Wanted: v2}, stage.Memory{Wanted: v2, Begun: at(0)}, stage.Rest, stage.Waiting, nil},
		"an hour after another":               {stage.Facts{Now: at(60 * m), Wanted: v2}, stage.Memory{Wanted: v2, Begun: at(0)}, stage.Begin, stage.Fetching, nil},
		"it failed":                           {stage.Facts{Now: at(59 * m), Wanted: v2}, stage.Memory{Wanted: v2, Begun: at(0), Failed: failed}, stage.Rest, stage.Failed, failed},
		"it failed an hour ago":               {stage.Facts{Now: at(60 * m), Wanted: v2}, stage.Memory{Wanted: v2, Begun: at(0), Failed: failed}, stage.Begin, stage.Fetching, nil},
		"another one failed":                  {stage.Facts{Now: at(5 * m), Wanted: v3}, stage.Memory{Wanted: v2, Begun: at(0), Failed: failed}, stage.Rest, stage.Waiting, nil},
		"it is staged":                        {stage.Facts{Now: at(99 * m), Wanted: v2, Held: v2, Ready: true}, stage.Memory{Wanted: v2}, stage.Rest, stage.Staged, nil},
		"it is staged, found at once":         {stage.Facts{Wanted: v2, Held: v2, Ready: true}, stage.Memory{}, stage.Rest, stage.Staged, nil},
		"it is held, and something is gone":   {stage.Facts{Now: at(99 * m), Wanted: v2, Held: v2}, stage.Memory{Wanted: v2}, stage.Begin, stage.Fetching, nil},
		"it is superseded, of late":           {stage.Facts{Now: at(5 * m), Wanted: v3, Held: v2}, stage.Memory{Wanted: v3}, stage.Rest, stage.Waiting, nil},
		"it is superseded":                    {stage.Facts{Now: at(10 * m), Wanted: v3, Held: v2}, stage.Memory{Wanted: v3}, stage.Clear, stage.Waiting, nil},
		"the list goes back, of late":         {stage.Facts{Now: at(5 * m), Wanted: v1, Held: v2}, stage.Memory{Wanted: v1}, stage.Rest, "", nil},
		"the list goes back":                  {stage.Facts{Now: at(10 * m), Wanted: v1, Held: v2}, stage.Memory{Wanted: v1}, stage.Clear, "", nil},
		"the holder of what runs":             {stage.Facts{Wanted: v1, Held: v1, Ready: true}, stage.Memory{}, stage.Clear, "", nil},
		"the next boot would end":             {stage.Facts{Now: at(99 * m), Broken: broken}, stage.Memory{Wanted: v2}, stage.Rest, stage.Failed, broken},
		"the next boot would end, one stays":  {stage.Facts{Now: at(99 * m), Broken: broken, Held: v2}, stage.Memory{Wanted: v2}, stage.Rest, stage.Failed, broken},
		"a twentieth is free":                 {stage.Facts{Wanted: v2, Held: v2, Ready: true, Disk: &stage.Disk{5, 100}}, stage.Memory{}, stage.Rest, stage.Staged, nil},
		"less than a twentieth":               {stage.Facts{Wanted: v2, Held: v2, Ready: true, Disk: &stage.Disk{4, 100}}, stage.Memory{}, stage.Clear, stage.Failed, stage.ErrRoom},
		"less, and the next boot would end":   {stage.Facts{Broken: broken, Held: v2, Disk: &stage.Disk{4, 100}}, stage.Memory{}, stage.Clear, stage.Failed, stage.ErrRoom},
		"less, and nothing is staged":         {stage.Facts{Wanted: v1, Disk: &stage.Disk{4, 100}}, stage.Memory{}, stage.Rest, "", nil},
		"the clock was set back":              {stage.Facts{Now: at(-99 * m), Wanted: v2}, stage.Memory{Wanted: v2}, stage.Rest, stage.Waiting, nil},
		"nobody waits: it is the next minute": {stage.Facts{Wanted: v2, Now: at(99 * m)}, stage.Memory{Wanted: v2, Since: at(89 * m)}, stage.Begin, stage.Fetching, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.facts.Running = v1
			if c.facts.Now.IsZero() {
				c.facts.Now = at(0)
			}
			if c.facts.Disk == nil {
				c.facts.Disk = plenty
			}
			if c.memory.Since.IsZero() {
				c.memory.Since = at(0)
			}
			got, state, why := stage.Decide(c.facts, &c.memory, settings, func() time.Duration { return 0 })
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.state, state)
			if c.why == nil {
				assert.NoError(t, why)
			} else {
				assert.ErrorIs(t, why, c.why)
			}
		})
	}
	t.Run("a disk that can't be seen", func(t *testing.T) {
		t.Parallel()
		got, state, why := stage.Decide(stage.Facts{Now: at(99 * m), Running: v1, Wanted: v2}, &stage.Memory{}, settings, func() time.Duration { return 0 })
		assert.Equal(t, stage.Rest, got)
		assert.Equal(t, stage.Disabled, state)
		assert.Error(t, why)
	})
}

// TestADelayIsDrawnOnceForEachDigest.
func TestADelayIsDrawnOnceForEachDigest(t *testing.T) {
	t.Parallel()
	drawn := 0
	draw := func() time.Duration { drawn++; return time.Minute }
	var m stage.Memory
	f := stage.Facts{Running: digest.Of([]byte("1")), Disk: &stage.Disk{50, 100}}
	for i, text := range []string{"1", "2", "2", "2", "3", "3", "1"} {
		f.Now, f.Wanted = at(time.Duration(i)*time.Second), digest.Of([]byte(text))
		stage.Decide(f, &m, stage.Settings{After: time.Hour}, draw)
	}
	assert.Equal(t, 4, drawn)
}

func TestRoom(t *testing.T) {
	t.Parallel()
	d := stage.Disk{Free: 30, All: 100}
	require.NoError(t, d.Fits(inspect.Classic, 20))
	require.ErrorIs(t, d.Fits(inspect.Classic, 21), stage.ErrRoom)
	require.NoError(t, d.Fits(inspect.Containerd, 10), "it keeps what it got, too")
	require.ErrorIs(t, d.Fits(inspect.Containerd, 11), stage.ErrRoom)
}

func TestWanted(t *testing.T) {
	t.Parallel()
	for mode, want := range map[stage.Mode]bool{"": false, stage.Off: false, stage.On: true, stage.Auto: true} {
		assert.Equal(t, want, stage.Settings{Mode: mode}.Wanted(true), "%q", mode)
		assert.False(t, stage.Settings{Mode: mode}.Wanted(false), "%q", mode)
	}
}
