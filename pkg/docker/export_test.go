package docker

import "io"

// ReadAnswer is readAnswer for tests.
func ReadAnswer(r io.Reader, unpacked func(id string, current int64)) error {
	return readAnswer(r, func() {}, unpacked)
}
