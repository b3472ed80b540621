package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// TestSimulate holds the model to what can be worked out by hand.
func TestSimulate(t *testing.T) {
	t.Parallel()
	base := fleet{nodes: 1000, size: 500e6, origin: 1250e6, link: 125e6, cacheUplink: 1250e6}
	for name, c := range map[string]struct {
		set    func(*fleet)
		last   time.Duration
		peak   float64
		served float64
	}{
		"the origin is the limit": {func(*fleet) {}, 400 * time.Second, 1250e6, 500e9},
		"the link is the limit":   {func(f *fleet) { f.nodes = 5 }, 4 * time.Second, 625e6, 2.5e9},
		"a rate":                  {func(f *fleet) { f.nodes, f.cap = 5, 5e6 }, 100 * time.Second, 25e6, 2.5e9},
		"spread so far that few meet": {func(f *fleet) { f.nodes, f.spread = 10, 1000*time.Second },
			904 * time.Second, 125e6, 5e9},
		"caches": {func(f *fleet) { f.rack = 40 }, 16 * time.Second, 781.25e6, 12.5e9},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := base
			c.set(&f)
			o := f.simulate()
			assert.InDelta(t, c.last.Seconds(), o.last.Seconds(), 1)
			assert.InDelta(t, c.peak, o.peak, c.peak/100)
			assert.InDelta(t, c.served, o.served, c.served/100)
		})
	}
}
