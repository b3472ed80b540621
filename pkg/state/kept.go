package state

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/internal/files"
)

const (
	keptPrefix = "image-"
	keptSuffix = ".json"
	// keptImages is how many images' manifests are cached, the newest first.
	keptImages = 3
	// maxKept bounds one cached document: three documents of at most 4 MiB in base64, and change.
	maxKept = 18 << 20
	// maxEntries bounds how many names are looked at when old ones are removed.
	maxEntries = 10_000
)

// Restore proves the manifest and config that an earlier run cached. fs.ErrNotExist: none was.
// What else can write there can only make them useless.
func (d Dir) Restore(ref name.Digest) (*image.Verified, error) {
	data, err := d.read(keptName(ref), maxKept)
	if err != nil {
		return nil, err
	}
	var kept image.Kept
	if err := decode(data, &kept, "Index", "Nested", "Manifest", "Config"); err != nil {
		return nil, fmt.Errorf("%s: %w", keptName(ref), err)
	}
	return image.Restore(ref, v1.Platform{}, kept)
}

// Known returns those images of a repository that earlier runs loaded and that prove themselves;
// the engine may have their layers.
func (d Dir) Known(repository name.Repository) []*image.Verified {
	dir, err := d.open()
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Names(maxEntries)
	if err != nil {
		return nil
	}
	var known []*image.Verified
	tried := 0
	for _, name := range names {
		hex, isKept := strings.CutPrefix(strings.TrimSuffix(name, keptSuffix), keptPrefix)
		hash, err := digest.Parse("sha256:" + hex)
		if !isKept || err != nil {
			continue
		}
		// Each costs reading and hashing: whoever shares the directory may have put any number
		// there.
		if tried++; tried > 2*keptImages {
			break
		}
		if v, err := d.Restore(repository.Digest(hash.String())); err == nil {
			known = append(known, v)
		}
	}
	return known
}

// Keep writes an image's manifest and config down, so that a boot that finds the image in the
// engine needs no registry, and forgets all but the last few and those of spared.
func (d Dir) Keep(v *image.Verified, spared ...digest.Digest) error {
	data, err := json.Marshal(v.Kept())
	if err != nil {
		return err
	}
	if err := d.Write(keptName(v.Reference()), data); err != nil {
		return err
	}
	dir, err := d.open()
	if err != nil {
		return err
	}
	defer dir.Close()
	return forgetOld(dir, spared)
}

func keptName(ref name.Digest) string {
	return keptPrefix + strings.TrimPrefix(ref.DigestStr(), "sha256:") + keptSuffix
}

func forgetOld(dir *files.Dir, spared []digest.Digest) error {
	names, err := dir.Names(maxEntries)
	if err != nil {
		return err
	}
	kept := map[string]fs.FileInfo{}
	for _, name := range names {
		if strings.HasPrefix(name, keptPrefix) && strings.HasSuffix(name, keptSuffix) {
			if info, err := dir.Stat(name); err == nil {
				kept[name] = info
			}
		}
	}
	names = names[:0]
	for name := range kept {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return kept[b].ModTime().Compare(kept[a].ModTime()) })
	for _, name := range names[min(keptImages, len(names)):] {
		if slices.ContainsFunc(spared, func(d digest.Digest) bool { return name == keptPrefix+d.Hex()+keptSuffix }) {
			continue
		}
		if err := dir.Remove(name); err != nil {
			return err
		}
	}
	return nil
}
