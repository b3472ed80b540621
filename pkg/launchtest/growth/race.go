//go:build race

package growth

// checked is less where each takes ten times as long.
const checked = Large / 16
