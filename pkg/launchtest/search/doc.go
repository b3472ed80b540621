// Package search is nothing but tests: they run the launcher from every state that it, and what happens
// to its machine, can bring the machine into, within a bound, and look whether what must hold does.
// docs/ARCHITECTURE.md says what is searched and what isn't.
package search
