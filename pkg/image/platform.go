package image

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/sanitize"
)

// choose returns the entry of an index that is for a platform, and how many others are too.
//
// Engines differ in this (docs/images.md), so the rule is one of our own, and the same for all of
// them: of the entries that run on the platform, those without os.features come before those with,
// and of these the lowest variant comes first, so that machines of one fleet run the same code
// whatever their processors can do; of equals the first. Entries that name no platform come last.
func choose(entries []descriptor, platform v1.Platform) (chosen descriptor, others int, err error) {
	type candidate struct {
		descriptor
		rank int
	}
	var found []candidate
	var offered []string
	for _, e := range entries {
		if !e.runnable() {
			continue
		}
		if e.platform != nil {
			if s := sanitize.Line(e.platform.String(), 40); !slices.Contains(offered, s) {
				offered = append(offered, s)
			}
		}
		if rank, ok := rank(e.platform, platform); ok {
			found = append(found, candidate{e, rank})
		}
	}
	if len(found) == 0 {
		return descriptor{}, 0, &noPlatformError{want: platform, offered: offered}
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return a.rank - b.rank })
	return found[0].descriptor, len(found) - 1, nil
}

// rank says whether an image for have runs on want, and how early it is chosen: the lower, the
// earlier.
func rank(have *v1.Platform, want v1.Platform) (int, bool) {
	const features, none = 100, 1000
	if have == nil {
		return none, true // its config will tell
	}
	h, w := normal(*have), normal(want)
	if h.OS != w.OS || h.Architecture != w.Architecture {
		return 0, false
	}
	rank := 0
	if w.Architecture == "amd64" {
		// A processor that has all of one level has all of those below.
		if rank = level(h.Variant); rank < 0 || rank > level(w.Variant) {
			return 0, false
		}
	} else if h.Variant != w.Variant {
		return 0, false
	}
	if len(have.OSFeatures) > 0 {
		rank += features
	}
	return rank, true
}

// level numbers the variants of amd64. It is negative for what isn't one.
func level(variant string) int { return slices.Index([]string{"", "v2", "v3", "v4"}, variant) }

// normal spells a platform as Go does, without a variant that stands for the architecture itself.
func normal(p v1.Platform) v1.Platform {
	n := v1.Platform{
		OS: strings.ToLower(p.OS), Architecture: strings.ToLower(p.Architecture), Variant: strings.ToLower(p.Variant),
	}
	if n.OS == "" {
		n.OS = "linux" // as containerd reads it on Linux
	}
	switch n.Architecture {
	case "x86_64", "x86-64":
		n.Architecture = "amd64"
	case "aarch64":
		n.Architecture = "arm64"
	}
	switch n.Architecture + "/" + n.Variant {
	case "amd64/v1", "arm64/v8", "arm64/8", "arm64/v8.0":
		n.Variant = ""
	}
	return n
}

// forPlatform returns why an image with this config isn't one for platform. The index that named it
// says so of the platform of its entry, if it says anything.
func forPlatform(config *v1.ConfigFile, platform v1.Platform, entry *v1.Platform) error {
	if config.Architecture == "" {
		return errors.New("it names no architecture")
	}
	have := normal(v1.Platform{OS: config.OS, Architecture: config.Architecture})
	want := normal(platform)
	if have.OS == want.OS && have.Architecture == want.Architecture {
		return nil
	}
	text := sanitize.Line(config.OS+"/"+config.Architecture, 40)
	if entry != nil {
		return contradiction("it is for %s, the index says %s", text, sanitize.Line(entry.String(), 40))
	}
	return &noPlatformError{want: platform, offered: []string{text}}
}

// noPlatformError is an index or a config without the wanted platform.
type noPlatformError struct {
	want    v1.Platform
	offered []string
}

func (e *noPlatformError) Error() string {
	if len(e.offered) == 0 {
		return fmt.Sprintf("there is no image for %s", e.base())
	}
	want := e.base()
	if slices.ContainsFunc(e.offered, func(o string) bool { return strings.HasPrefix(o, want+"/") }) {
		want = e.want.String() // the variant is what matters
	}
	const most = 10
	offered := e.offered
	if len(offered) > most {
		offered = append(slices.Clone(offered[:most]), "…")
	}
	return fmt.Sprintf("there is no image for %s, only for %s", want, strings.Join(offered, ", "))
}

// base is the wanted platform without what its processor can do beyond.
func (e *noPlatformError) base() string { return e.want.OS + "/" + e.want.Architecture }
