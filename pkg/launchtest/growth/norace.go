//go:build !race

package growth

const checked = Large
