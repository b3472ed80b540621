// fleet simulates how a fleet of nodes fetches one release from one origin, without a network: a
// fluid model, in which whoever fetches has an equal share of what the origin carries, up to what
// its own link does. It prints a table: docs/performance.md has it.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

// fleet is what is simulated. Sizes are in bytes, rates in bytes per second.
type fleet struct {
	nodes       int
	size        float64       // of the image
	origin      float64       // what the origin carries
	link        float64       // of a node
	spread      time.Duration // the longest random wait before a node begins, spread evenly
	cap         float64       // what a node takes at most; 0: its link
	rack        int           // nodes behind one cache; 0: there is none
	cacheUplink float64       // of a cache, to the origin and to its nodes
}

// outcome is what came of it.
type outcome struct {
	last   time.Duration // from the first wait until the last node has the image
	peak   float64       // of the origin
	served float64       // by the origin
}

// simulate goes in steps of a second. All that fetch at a moment get the same rate, so that they
// end in the order in which they began: it is enough to know how much each would have got since the
// beginning of time.
func (f fleet) simulate() outcome {
	rate := f.link
	if f.cap > 0 {
		rate = min(rate, f.cap)
	}
	fetchers := f.nodes
	if f.rack > 0 {
		// A cache hands on what it has while the rest arrives: its nodes get what its slowest side
		// carries.
		fetchers = (f.nodes + f.rack - 1) / f.rack
		rate = min(f.cacheUplink, rate*float64(f.rack), f.cacheUplink/float64(min(f.rack, f.nodes)))
	}
	steps := max(int(f.spread/time.Second), 1)
	begin := make([]int, steps) // how many begin in each second
	for i := range fetchers {
		begin[i*steps/fetchers]++
	}
	type cohort struct {
		count int
		ends  float64 // once each of them got so much
	}
	var waiting []cohort
	var each, active float64
	var o outcome
	for second := 0; ; second++ {
		if second < steps && begin[second] > 0 {
			waiting = append(waiting, cohort{begin[second], each + f.size})
			active += float64(begin[second])
		}
		if len(waiting) == 0 && second >= steps {
			return o
		}
		left := 1.0 // of this second
		for left > 0 && len(waiting) > 0 {
			share := min(rate, f.origin/active)
			took := min(left, (waiting[0].ends-each)/share)
			each += share * took
			left -= took
			o.served += share * took * active
			o.peak = max(o.peak, share*active)
			if waiting[0].ends-each < 1 { // a byte, for what floats lose
				active -= float64(waiting[0].count)
				waiting = waiting[1:]
				o.last = time.Duration((float64(second) + 1 - left) * float64(time.Second))
			}
		}
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("fleet", flag.ContinueOnError)
	var (
		size   = flags.Float64("size", 500, "MB of the image")
		origin = flags.Float64("origin", 1250, "MB per second that the origin carries")
		link   = flags.Float64("link", 125, "MB per second of a node's link")
		uplink = flags.Float64("cache", 1250, "MB per second of a cache's link")
		rack   = flags.Int("rack", 40, "nodes behind one cache")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	const mb = 1e6
	base := fleet{size: *size * mb, origin: *origin * mb, link: *link * mb, cacheUplink: *uplink * mb}
	fmt.Fprintln(out, "| nodes | how | origin, at most | by the origin in all | until the last node |\n|---|---|---|---|---|")
	for _, nodes := range []int{100, 10_000, 1_000_000} {
		for _, way := range []struct {
			name string
			set  func(*fleet)
		}{
			{"all at once", func(*fleet) {}},
			{"within 15 min", func(f *fleet) { f.spread = 15 * time.Minute }},
			{"staged: within 15 min, 8 MB/s each", func(f *fleet) { f.spread, f.cap = 15*time.Minute, 8*mb }},
			{"one cache per rack, all at once", func(f *fleet) { f.rack = *rack }},
		} {
			f := base
			f.nodes = nodes
			way.set(&f)
			o := f.simulate()
			fmt.Fprintf(out, "| %d | %s | %.0f MB/s | %.1f GB | %s |\n", nodes, way.name, o.peak/mb, o.served/1e9, o.last.Round(time.Second))
		}
	}
	return nil
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
