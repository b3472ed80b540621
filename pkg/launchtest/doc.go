// Package launchtest holds doubles of everything the launcher speaks to: the registry, the Docker
// engine, the dstack agent and compose, and the images that go through them.
//
// They are real servers and programs with the semantics that were measured on the real ones, the
// unpleasant ones included, and with faults to switch on; what a double does not know it refuses
// and remembers, so that a test can say that nothing else was asked for. The engine's and compose's
// are held to the real ones by one conformance table, which runs on both. Several doubles can share
// one Recorder, which then holds the order of all effects. A double runs no container and guards
// nothing: it is for tests and the demo, never for a deployment. Constructors return errors and
// know nothing of package testing.
package launchtest
