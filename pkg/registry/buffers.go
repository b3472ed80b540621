package registry

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// mapBuffers returns count buffers of size bytes, and what gives them back: nothing may touch them
// after that. They lie outside the Go heap, because the collector lets garbage grow to the size of
// what lives: buffers that live for a whole pull would cost their memory twice.
func mapBuffers(count int, size int64) (buffers [][]byte, release func() error, err error) {
	if count == 0 {
		return nil, func() error { return nil }, nil
	}
	memory, err := unix.Mmap(-1, 0, count*int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, fmt.Errorf("getting %d buffers of %d bytes: %w", count, size, err)
	}
	for i := range int64(count) {
		buffers = append(buffers, memory[i*size:(i+1)*size:(i+1)*size])
	}
	return buffers, func() error { return unix.Munmap(memory) }, nil
}
