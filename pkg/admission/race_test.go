//go:build race

package admission_test

// manyWorlds is fewer where each takes ten times as long.
const manyWorlds = 60
