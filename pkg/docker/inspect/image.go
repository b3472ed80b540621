package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/internal/api"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/image"
)

// ImageID is the engine's ID of an image that was proved to be what a manifest digest says. Only Engine.Prove makes one;
// the zero value proves nothing and is refused everywhere.
type ImageID struct {
	digest digest.Digest
}

// String returns "sha256:…", the form in which the engine takes and reports it; empty for the zero value.
func (id ImageID) String() string {
	if id.IsZero() {
		return ""
	}
	return id.digest.String()
}

// IsZero reports whether nothing was proved.
func (id ImageID) IsZero() bool { return id.digest.IsZero() }

// ErrNoImage is returned by Prove where the engine doesn't have the image.
var ErrNoImage = errors.New("the engine doesn't have the image")

// UnprovedError is an image that the engine shows under the right ID, but that isn't the one.
type UnprovedError struct {
	ID   string // what was asked for
	What string // what was compared
	Got  string
	Want string
	Err  error // the cause, where there is more to tell
}

func (e *UnprovedError) Error() string {
	return fmt.Sprintf("the engine's image %s is not the proved one: %s: got %s, want %s", e.ID, e.What, e.Got, e.Want)
}

// Unwrap returns the cause.
func (e *UnprovedError) Unwrap() error { return e.Err }

// ExitCode is Engine.
func (e *UnprovedError) ExitCode() exit.Code { return exit.Engine }

// maxClassicLayers is how many layers a classic store takes: 20.10 and 28 refuse one more. With
// containerd's store 28 runs an image of 200.
const maxClassicLayers = 125

// Takes returns why the engine can't have the image, whoever brings it: an *image.Error. Nil: it may
// take it.
func Takes(info Info, v *image.Verified) error {
	if n := len(v.Layers()); info.Store == Classic && n > maxClassicLayers {
		return &image.Error{
			Kind: image.Refused, Ref: v.Reference().String(),
			Err: fmt.Errorf("it has %d layers, this engine's image store takes %d", n, maxClassicLayers),
			Help: []string{
				"approve the digest of an image of fewer layers, or give the engine containerd's image store",
			},
		}
	}
	return nil
}

// TakesForm returns why the engine can't be given the image in the form that it has, an *image.Error.
// A containerd store takes only what is called what it is, and knows BuildKit's name for zstd from 28
// on; a classic one looks at the bytes, and read commands that are strings until 29.
func TakesForm(info Info, v *image.Verified) error {
	classic := info.Store == Classic
	return v.UsableIn(image.Laxity{
		Types: classic, Strings: classic && !info.APIAtLeast(52),
		DockerZstd: classic || info.APIAtLeast(48),
	})
}

// ErrNotUnpacked is within the UnprovedError of an image whose blobs are there, while the engine
// says that it hasn't unpacked them: it couldn't, or it did so only for the platform it prefers.
var ErrNotUnpacked = errors.New("it isn't unpacked")

// ID returns what the engine with the given store calls the image v. That is never the digest of an
// index: by that, an engine would run what it chooses among the entries.
func ID(store Store, v *image.Verified) digest.Digest {
	if store == Containerd {
		return v.ManifestDigest()
	}
	return v.ConfigDigest()
}

// Prove looks whether the engine has the image v, whole, and returns its ID. ErrNoImage: it doesn't; *UnprovedError: it has
// something under that ID which isn't v.
//
// Names and tags aren't looked at, since they can lie. A classic ID is the digest of the config, which names every
// layer's diffID; a containerd one is the digest of the manifest. The layers are compared all the same, because newer engines
// answer for images whose parts are missing. A containerd store has to say that it has unpacked them, where it can (TellsUnpacked).
func (e *Engine) Prove(ctx context.Context, info Info, v *image.Verified) (ImageID, error) {
	if !v.Valid() {
		return ImageID{}, errors.New("proving an image: no verified image given")
	}
	want := ID(info.Store, v)
	query := url.Values{}
	// An image whose blobs are missing, or couldn't be unpacked, looks whole without.
	askManifests := info.Store == Containerd && info.TellsUnpacked()
	if askManifests {
		query.Set("manifests", "1")
	}
	var got struct {
		ID     string
		RootFS struct {
			Type   string
			Layers []string
		}
		Manifests []manifest
	}
	err := e.get(ctx, "inspecting image "+want.String(), "/images/"+want.String()+"/json", query, &got)
	if NotFound(err) {
		return ImageID{}, ErrNoImage
	}
	if err != nil {
		return ImageID{}, err
	}
	unproved := func(what, got, want string) error {
		return &UnprovedError{ID: ID(info.Store, v).String(), What: what, Got: got, Want: want}
	}
	if got.ID != want.String() {
		return ImageID{}, unproved("ID", quoted(got.ID), want.String())
	}
	layers := v.Layers()
	if len(got.RootFS.Layers) != len(layers) {
		return ImageID{}, unproved("number of layers", fmt.Sprint(len(got.RootFS.Layers)), fmt.Sprint(len(layers)))
	}
	for i, layer := range layers {
		if got.RootFS.Layers[i] != layer.DiffID.String() {
			return ImageID{}, unproved(fmt.Sprintf("diffID of layer %d", i+1), quoted(got.RootFS.Layers[i]), layer.DiffID.String())
		}
	}
	if askManifests {
		ours := v.ManifestDigest().String()
		i := slices.IndexFunc(got.Manifests, func(m manifest) bool { return m.Descriptor.Digest == ours })
		switch {
		case i < 0 || !got.Manifests[i].Available:
			return ImageID{}, unproved("blobs of manifest "+ours, "not all there", "all there")
		case got.Manifests[i].ImageData.Size.Unpacked <= 0 && len(layers) > 0:
			return ImageID{}, &UnprovedError{
				ID: want.String(), What: "layers of manifest " + ours, Got: "not unpacked",
				Want: "unpacked", Err: ErrNotUnpacked,
			}
		}
	}
	return ImageID{digest: want}, nil
}

// manifest is what an engine with a containerd store says of one manifest of an image.
type manifest struct {
	Descriptor struct{ Digest string }
	Available  bool // its blobs are there
	ImageData  struct {
		Size struct{ Unpacked int64 } // on the disk; 0 where it isn't unpacked, or couldn't be
	}
}

// Summary is an image as a list shows it.
type Summary struct {
	ID    string
	Names []string // tags and digests
}

// Labelled returns the images whose config has the label.
func (e *Engine) Labelled(ctx context.Context, label string) ([]Summary, error) {
	filters, err := json.Marshal(map[string][]string{"label": {label}})
	if err != nil {
		return nil, err
	}
	return e.images(ctx, url.Values{"all": {"1"}, "filters": {string(filters)}})
}

func (e *Engine) images(ctx context.Context, query url.Values) ([]Summary, error) {
	var answer []struct {
		ID                    string
		RepoTags, RepoDigests []string
	}
	if err := e.get(ctx, "listing images", "/images/json", query, &answer); err != nil {
		return nil, err
	}
	images := make([]Summary, 0, len(answer))
	for _, i := range answer {
		images = append(images, Summary{i.ID, append(i.RepoTags, i.RepoDigests...)})
	}
	return images, nil
}

// maxInspected bounds how many images are looked at for layers that needn't be fetched.
const maxInspected = 500

// Present finds out which layers of v the engine has, so that they needn't be fetched. A containerd store can't be asked for its blobs: there,
// those of the known images count that it has. Only images of those IDs count that stays says will be there; nil: all do.
func (e *Engine) Present(
	ctx context.Context, info Info, v *image.Verified, known []*image.Verified, stays func(id string) bool,
) (func(layer int) bool, error) {
	if stays == nil {
		stays = func(string) bool { return true }
	}
	layers := v.Layers()
	if info.Store == Containerd {
		blobs := map[digest.Digest]bool{}
		for _, k := range known {
			// Only such an engine says whether the blobs are there: an unpacked image may have lost them.
			if id, err := e.Prove(ctx, info, k); err == nil && info.TellsUnpacked() && stays(id.String()) {
				for _, layer := range k.Layers() {
					blobs[layer.Digest] = true
				}
			}
		}
		return func(i int) bool { return blobs[layers[i].Digest] }, nil
	}
	n, err := e.common(ctx, layers, stays)
	return func(i int) bool { return i < n }, err
}

// common returns how many of the layers, from the lowest on, a classic store has: as many as any one of its images begins with. A layer is
// known there by all below it.
func (e *Engine) common(ctx context.Context, layers []image.Layer, stays func(id string) bool) (int, error) {
	images, err := e.images(ctx, url.Values{"all": {"1"}})
	if api.Answered(err) {
		return 0, nil // engines fail to list images while some are being removed
	}
	if err != nil {
		return 0, err
	}
	most := 0
	for _, i := range images[:min(maxInspected, len(images))] {
		if !stays(i.ID) {
			continue
		}
		var got struct{ RootFS struct{ Layers []string } }
		err := e.get(ctx, "inspecting image "+i.ID, "/images/"+url.PathEscape(i.ID)+"/json", nil, &got)
		if api.Answered(err) {
			continue // gone since the list was made, or somebody's broken image
		}
		if err != nil {
			return 0, err
		}
		n := 0
		for n < len(layers) && n < len(got.RootFS.Layers) && got.RootFS.Layers[n] == layers[n].DiffID.String() {
			n++
		}
		most = max(most, n)
	}
	return most, nil
}

// quoted bounds and escapes what an engine says in the place of a digest.
func quoted(s string) string { return fmt.Sprintf("%.100q", s) }
