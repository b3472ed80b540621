// Package image proves images: that documents and layers are what an approved digest says.
//
// Only the approved manifest digest is believed. What a Verified says was proved against it: the
// bytes of the manifest (of the index and its one child for this platform, where an index was
// approved) were bounded, hashed and typed from the body, never from headers; they name exactly one
// config, whose bytes were proved too, and layers that agree with it. A document that two readers
// could understand differently is refused. The bytes of a layer are hashed as they are handed out:
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
)

// Limits of what is accepted, whoever sent it.
const (
	// MaxManifest bounds an index, a manifest and a config, as containerd does.
	MaxManifest = 4 << 20
	maxEntries  = 1000 // of an index
	maxLayers   = 1000
	maxLayer    = 1 << 40
	// maxHistory bounds a config's entries, each of which costs many times its two bytes to read.
	maxHistory = 10_000
)

// orThisMachine is platform, or Linux on this architecture where it is zero.
func orThisMachine(platform v1.Platform) v1.Platform {
	if platform.OS == "" && platform.Architecture == "" {
		return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	return platform
}
