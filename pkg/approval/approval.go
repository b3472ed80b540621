// Package approval is the policy: which of the approved digests runs, and why.
//
// It guarantees that a digest is chosen only from a list that was read whole and without a doubt, from the measured
// default where there is no list, and by nothing but what it was given: it does no input or output and has no state. It
// doesn't guarantee that the list is the one the contract voted for. The workload writes it, and what is chosen is measured.
package approval

import (
	"errors"
	"fmt"
	"slices"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/strictjson"
)

const (
	// File is the approved list's name in the shared directory. The workload writes it.
	File = "image-digest.bin"
	// MaxSize is the size of the largest approved list that is read.
	MaxSize = 64 << 10

	key        = "approved_hashes"
	maxEntries = 1000
)

// List is a list of approved digests, newest first. Only Parse makes one; its zero value selects nothing.
type List struct {
	digests []digest.Digest
}

// Digests returns the digests, newest first, each once.
func (l List) Digests() []digest.Digest { return slices.Clone(l.digests) }

// Decision is the digest that runs.
type Decision struct {
	Digest digest.Digest
	Reason Reason
	Older  []digest.Digest // the other approved ones where it is the newest, newest first
	From   digest.Digest   // the newest, where this one is tried instead; zero: it isn't
}

// Error is a list that can't be used, or a choice that it doesn't allow.
type Error struct {
	message, hint string
}

func (e *Error) Error() string { return e.message }

// ExitCode says that a file has to be corrected.
func (e *Error) ExitCode() exit.Code { return exit.Config }

// Hints says which file, and how.
func (e *Error) Hints() []string { return []string{e.hint} }

// Parse reads the file that the workload writes: one JSON document of which only approved_hashes matters. There is no
// partial success: a list with one bad entry is no list.
func Parse(data []byte) (List, error) {
	digests, err := parse(data)
	if err != nil {
		return List{}, &Error{message: fmt.Sprintf("approved list: %v", err), hint: listHint}
	}
	return List{digests: digests}, nil
}

func parse(data []byte) ([]digest.Digest, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("larger than %d bytes", MaxSize)
	}
	document, err := strictjson.Parse(data)
	if err != nil {
		return nil, err
	}
	members, err := document.Object(key)
	if err != nil {
		return nil, err
	}
	if !members[key].Present() {
		return nil, fmt.Errorf("%s is missing", key)
	}
	entries, err := members[key].Array(maxEntries)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%s has no entry", key)
	}
	var digests []digest.Digest
	for i, entry := range entries {
		text, err := entry.Text()
		if err != nil {
			return nil, fmt.Errorf("%s: entry %d: %w", key, i+1, err)
		}
		h, err := digest.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: entry %d: %w", key, i+1, err)
		}
		if !slices.Contains(digests, h) {
			digests = append(digests, h)
		}
	}
	return digests, nil
}

// Select chooses the digest that runs. A nil list is an absent file: then the default runs and an override says nothing.
func Select(list *List, override *digest.Digest, def digest.Digest) (Decision, error) {
	switch {
	case list == nil:
		return decide(def, Default)
	case len(list.digests) == 0:
		return Decision{}, errors.New("selecting a digest: the approved list was never read")
	case override == nil:
		return decide(list.digests[0], Newest, list.digests[1:]...)
	case !slices.Contains(list.digests, *override):
		return Decision{}, &Error{
			message: fmt.Sprintf("mpc_hash_override %s does not match any approved digest; the list has %d", override, len(list.digests)),
			hint:    "remove mpc_hash_override from the user config, or wait until that digest is approved",
		}
	}
	return decide(*override, Override)
}

// Stay chooses what is measured already, for the rest of the boot, and reports whether it could have
// been chosen: the list, which changes at any time, may have a newer one by now. An override says
// nothing here: one that could have been chosen is in the list, and one that isn't approves nothing.
func Stay(measured digest.Digest, list *List, def digest.Digest) (Decision, bool) {
	approved := measured == def
	if list != nil {
		approved = slices.Contains(list.digests, measured)
	}
	return Decision{Digest: measured, Reason: Measured}, approved && !measured.IsZero()
}

// decide lets no zero value through: of a caller who forgot something, or 64 zeros in a file.
func decide(h digest.Digest, reason Reason, older ...digest.Digest) (Decision, error) {
	if h.IsZero() {
		return Decision{}, &Error{
			message: fmt.Sprintf("selecting a digest (%s): it is 64 zeros", reason),
			hint:    "64 zeros are no image's digest: correct DEFAULT_IMAGE_DIGEST or the list, whichever has them",
		}
	}
	return Decision{Digest: h, Reason: reason, Older: slices.DeleteFunc(slices.Clone(older), digest.Digest.IsZero)}, nil
}
