package state

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/sanitize"
)

// Oddities says how the volumes and the network of the workload differ from what the engine makes of
// their names: they are taken as they are, and may lead elsewhere. That isn't refused, because on a
// machine of one's own the keys may well be meant to be on another disk. What the engine can't tell of
// is none.
func Oddities(ctx context.Context, e *inspect.Engine) []string {
	var odd []string
	for _, name := range []string{compose.SharedVolume, compose.DataVolume} {
		v, err := e.Volume(ctx, name)
		switch {
		case err != nil:
		case v.Driver != "" && v.Driver != "local": // such a container isn't started
			odd = append(odd, fmt.Sprintf("volume %s is of driver %s", name, sanitize.Line(v.Driver, 40)))
		case !harmless(v.Options):
			odd = append(odd, fmt.Sprintf("volume %s was made with options of its driver (%s): what is written there may be elsewhere than on the engine's disk",
				name, sanitize.Line(strings.Join(v.Options, ", "), 100)))
		}
	}
	n, err := e.Network(ctx, compose.Network)
	switch {
	case err != nil:
	case n.Driver != "" && n.Driver != "bridge":
		odd = append(odd, fmt.Sprintf("network %s is of driver %s, not bridge", compose.Network, sanitize.Line(n.Driver, 40)))
	case n.Internal:
		odd = append(odd, fmt.Sprintf("network %s is internal: it reaches no other machine", compose.Network))
	}
	return odd
}

// harmless reports whether the local driver's options place nothing: a quota doesn't.
func harmless(options []string) bool {
	return !slices.ContainsFunc(options, func(name string) bool { return name != "size" })
}
