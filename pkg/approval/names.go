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
const listHint = "the node writes this file to the shared volume: it has to hold " +
	`{"approved_hashes": ["sha256:…"]}, newest first; ` +
	"the default digest never stands in for a list"
