package state

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/internal/files"
)

const (
	recordName = "measurement.json"
	maxRecord  = 4 << 10
	recordSize = 256 // of those that are written, about
)

// Record returns the record of that boot. One of another boot, or one that can't be read, says
// nothing: the zero value.
func (d Dir) Record(boot string) admission.Record {
	data, err := d.read(recordName, maxRecord)
	if err != nil {
		return admission.Record{}
	}
	var got admission.Record
	err = decode(data, &got, "boot_id", "digest", "intent", "done")
	if err != nil || boot == "" || got.ID != boot {
		return admission.Record{}
	}
	return got
}

// WriteRecord replaces the record. It is on the disk when this returns.
func (d Dir) WriteRecord(r admission.Record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = d.Write(recordName, append(data, '\n'))
	}
	if err != nil {
		return unrecorded(err)
	}
	return nil
}

// CanRecord returns what WriteRecord would fail with, as far as that can be seen without writing.
func (d Dir) CanRecord() error {
	dir, err := d.open()
	if err == nil {
		defer dir.Close()
		err = dir.CanWrite(recordName, recordSize)
	} else {
		err = d.CanMake() // and then the record in it
	}
	if err != nil {
		return unrecorded(err)
	}
	return nil
}

// maxBootID bounds the kernel's file.
const maxBootID = 64

// BootID returns the kernel's name of this boot. It is never empty without an error.
func BootID(proc string) (string, error) {
	path := filepath.Join(proc, "sys/kernel/random/boot_id")
	data, err := files.ReadFile(path, maxBootID)
	if err != nil {
		return "", noBoot(fmt.Errorf("boot ID: %w", err))
	}
	id := strings.TrimSpace(string(data))
	if id == "" {
		return "", noBoot(fmt.Errorf("boot ID: %s is empty", path))
	}
	return id, nil
}
