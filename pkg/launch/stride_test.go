//go:build !race

package launch_test

// stride is which of the many cases that differ in little are run.
const stride = 1
