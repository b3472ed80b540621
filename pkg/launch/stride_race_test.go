//go:build race

package launch_test

// stride is which of the many cases that differ in little are run: every one, but every seventh with the race detector, which makes
// a process several times as slow to start. What could race is the same in all of them.
const stride = 7
