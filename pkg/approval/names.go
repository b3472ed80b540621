package approval

// Reason says why a digest was chosen.
type Reason string

// The reasons.
const (
	Newest   Reason = "newest approved"
	Override Reason = "override"
	Default  Reason = "default: no approved list"
	Measured Reason = "measured"
)

// listHint helps where a list can't be used.
const listHint = `the node writes this file to the shared volume, as {"approved_hashes": ["sha256:…"]}, newest first: ` +
	"have it written again, or remove it; the default digest runs until the node has written it"
