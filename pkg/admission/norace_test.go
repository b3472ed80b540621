//go:build !race

package admission_test

const manyWorlds = 500
