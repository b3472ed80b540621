// Package image proves images: that documents and layers are what an approved digest says.
//
// Only the approved manifest digest is believed. What a Verified says was proved against it: the
// bytes of the manifest (of the index and its one child for this platform, where an index was
// approved) were bounded, hashed and typed from the body, never from headers; they name exactly one
// config, whose bytes were proved too, and layers that agree with it. A document that two readers
// could understand differently is refused, although Docker may take it: that is this package's own
// strictness. So is a form that can't be used, by its name. Neither is a lie: that are bytes which
// aren't those of their digest, and documents which contradict each other. The bytes of a layer are hashed as they are handed out:
// the last of them is given out only once digest and exact size are proved, and Close says so
// again.
//
// Where the bytes come from is nothing to this package: it asks what has them and believes
// nothing. It knows no network and opens no file; a Verified holds bytes and descriptors, and a
// source is named again where layers are read.
//
// Not guaranteed: that the approved image is a good one, that its layers can be unpacked, and that
// an engine that is fed the compressed bytes checks the diffIDs; NextPlain proves those too, where
// an engine doesn't.
package image

import (
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/cpu"
)

// Limits of what is accepted, whoever sent it.
const (
	// MaxManifest bounds an index, a manifest and a config, as containerd does.
	MaxManifest = 4 << 20
	maxEntries  = 1000 // of an index
	maxNested   = 3    // indexes within indexes
	maxLayers   = 1000
	maxLayer    = 1 << 40
	// maxHistory bounds a config's entries, each of which costs many times its two bytes to read.
	maxHistory = 10_000
)

// orThisMachine is platform, or Linux on this machine where it is zero, and for this architecture
// with what its processor can do where no variant is named.
func orThisMachine(platform v1.Platform) v1.Platform {
	if platform.OS == "" && platform.Architecture == "" {
		platform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	if platform.Architecture == runtime.GOARCH && platform.Variant == "" {
		platform.Variant = thisVariant()
	}
	return platform
}

// thisVariant is the highest level of amd64 that this processor has all of, as far as the features
// tell that are looked for here. It is empty for the lowest, and on other architectures.
func thisVariant() string {
	x := cpu.X86
	v2 := x.HasCX16 && x.HasPOPCNT && x.HasSSE3 && x.HasSSSE3 && x.HasSSE41 && x.HasSSE42
	v3 := v2 && x.HasOSXSAVE && x.HasAVX && x.HasAVX2 && x.HasBMI1 && x.HasBMI2 && x.HasFMA
	v4 := v3 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512CD && x.HasAVX512DQ && x.HasAVX512VL
	switch {
	case v4:
		return "v4"
	case v3:
		return "v3"
	case v2:
		return "v2"
	}
	return ""
}
