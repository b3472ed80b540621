package state

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/internal/files"
)

const (
	bootName = "measurement.json"
	maxBoot  = 4 << 10
)

// Boot says how far runs of one boot came: as far as the gate, to the intent to measure a digest, or to having measured it.
type Boot struct {
	ID     string    `json:"boot_id"` // the kernel's name of the boot
	Digest v1.Hash   `json:"digest,omitzero"`
	Intent time.Time `json:"intent,omitzero"` // zero: none yet
	Done   bool      `json:"done"`
}

// Boot returns the record of that boot. One of another boot, or one that can't be read, says nothing: false.
func (d Dir) Boot(id string) (Boot, bool) {
	data, err := d.read(bootName, maxBoot)
	if err != nil {
		return Boot{}, false
	}
	var got Boot
	err = decode(data, &got, "boot_id", "digest", "intent", "done")
	if err != nil || id == "" || got.ID != id {
		return Boot{}, false
	}
	return got, true
}

// WriteBoot replaces the record. It is on the disk when this returns.
func (d Dir) WriteBoot(b Boot) error {
	data, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	return d.Write(bootName, append(data, '\n'))
}

// Measured tells whether the boot's record says that the digest was measured by a launcher.
func (b Boot) Measured(digest v1.Hash) bool { return b.Done && b.Digest == digest }

// Unfinished tells whether a run came to its end between its intent and having measured.
func (b Boot) Unfinished() bool { return !b.Done && !b.Intent.IsZero() }

// Explains tells whether a run was at least about to measure the digest. If not, somebody else measured it.
func (b Boot) Explains(digest v1.Hash) bool { return b.Digest == digest && !b.Intent.IsZero() }

// maxBootID bounds the kernel's file.
const maxBootID = 64

// ReadBootID returns the kernel's name of this boot, from /proc/sys/kernel/random/boot_id. It is never empty without an error.
func ReadBootID(path string) (string, error) {
	data, err := files.ReadFile(path, maxBootID)
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if id == "" {
		return "", fmt.Errorf("boot id: %s is empty", path)
	}
	return id, nil
}
