package launch

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/image"
	"tee-launcher/pkg/internal/files"
)

const (
	keptPrefix = "image-"
	keptSuffix = ".json"
	// keptImages is how many images' manifests are kept, the newest first.
	keptImages = 3
	// maxKept bounds one kept document: three documents of at most 4 MiB in base64, and change.
	maxKept = 18 << 20
	// maxEntries bounds how many names are looked at when old ones are removed.
	maxEntries = 10_000
)

// restore proves the manifest and config that an earlier run kept. fs.ErrNotExist: none was. The bytes prove themselves by
// their digests, so whoever else can write there can only make them useless.
func (r *run) restore(p *image.Puller, ref name.Digest) (*image.Verified, error) {
	data, err := r.own.read(keptName(ref), maxKept)
	if err != nil {
		return nil, err
	}
	var kept image.Kept
	if err := json.Unmarshal(data, &kept); err != nil {
		return nil, fmt.Errorf("%s: %w", keptName(ref), err)
	}
	return p.Restore(ref, kept)
}

// known returns the images that earlier runs loaded; the engine may have their layers.
func (r *run) known() []*image.Verified {
	var known []*image.Verified
	tried := 0
	_ = r.own.use(func(dir *files.Dir) error {
		names, err := dir.Names(maxEntries)
		if err != nil {
			return err
		}
		for _, name := range names {
			hex, isKept := strings.CutPrefix(strings.TrimSuffix(name, keptSuffix), keptPrefix)
			hash, err := digest.Parse("sha256:" + hex)
			if !isKept || err != nil {
				continue
			}
			// Each costs reading and hashing: whoever shares the directory may have put any number there.
			if tried++; tried > 2*keptImages {
				break
			}
			if v, err := r.restore(&image.Puller{}, r.ref.Context().Digest(hash.String())); err == nil {
				known = append(known, v)
			}
		}
		return nil
	})
	return known // less of it costs a fetch, no more
}

// keep writes manifest and config of the loaded image down, so that a boot that finds the image in the engine needs no
// registry, and forgets all but the last few. That this doesn't work out costs a later boot its independence, no more.
func (r *run) keep() {
	if r.shared == nil {
		return // `launcher pull` without a shared directory
	}
	data, err := json.Marshal(r.image.Kept())
	if err == nil {
		err = r.own.write(keptName(r.image.Reference()), data)
	}
	if err == nil {
		err = r.own.use(forgetOld)
	}
	if err != nil {
		r.Log.Warn("manifest and config can't be kept; the next boot will need the registry", "error", err)
	}
}

func keptName(ref name.Digest) string {
	return keptPrefix + strings.TrimPrefix(ref.DigestStr(), "sha256:") + keptSuffix
}

func forgetOld(dir *files.Dir) error {
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
		if err := dir.Remove(name); err != nil {
			return err
		}
	}
	return nil
}
