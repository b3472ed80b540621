package docker

import (
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
)

// loadSize is how many bytes a load must bring to be worth a load of its own.
const loadSize = 8 << 20

// group is one load: after it the engine has the first upto layers.
type group struct {
	upto int   // layers [0, upto) are named
	send []int // those of them whose bytes are sent
}

// planLoads cuts the layers that have doesn't hold into loads of at least size bytes. An engine unpacks a load only once it has all of it, so a load
// for some layers at a time lets it unpack while the next ones come. The last group names all layers; it may send none.
func planLoads(layers []image.Layer, have func(int) bool, size int64) []group {
	var groups []group
	var current group
	var bytes int64
	sent := map[digest.Digest]bool{} // in the current group: each load is unpacked from its own bytes
	for i, layer := range layers {
		if have(i) || sent[layer.Digest] {
			continue
		}
		if bytes >= size {
			current.upto = i
			groups = append(groups, current)
			current, bytes = group{}, 0
			clear(sent)
		}
		current.send = append(current.send, i)
		sent[layer.Digest] = true
		bytes += layer.Size
	}
	current.upto = len(layers)
	return append(groups, current)
}
