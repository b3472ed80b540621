package launchtest

import (
	"maps"
	"slices"
)

// EngineState is all that an Engine keeps at a moment, but what it was told and asked so far.
type EngineState struct {
	images     imageStore
	containers []container
	volumes    map[string]*volume
	networks   map[string]map[string]any
	serial     int
}

// State returns what the engine keeps now.
func (e *Engine) State() EngineState {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := EngineState{images: e.images.clone(), volumes: maps.Clone(e.volumes), networks: maps.Clone(e.networks), serial: e.serial}
	for _, c := range e.containers {
		s.containers = append(s.containers, c.clone())
	}
	return s
}

// Restore brings the engine back to a state of its own. What is under way goes on.
func (e *Engine) Restore(s EngineState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images, e.volumes, e.networks, e.serial = s.images.clone(), maps.Clone(s.volumes), maps.Clone(s.networks), s.serial
	e.containers, e.events, e.requests = nil, nil, nil
	for _, c := range s.containers {
		again := c.clone()
		e.containers = append(e.containers, &again)
	}
	e.notify()
}

// clone copies what can change of a container; its config is made once.
func (c *container) clone() container {
	copied := *c
	copied.host, copied.labels, copied.log = maps.Clone(c.host), maps.Clone(c.labels), slices.Clone(c.log)
	return copied
}

func (s *classicStore) clone() imageStore {
	copied := &classicStore{engine: s.engine, images: map[string]*classicImage{}, tags: maps.Clone(s.tags)}
	for id, image := range s.images {
		again := *image
		copied.images[id] = &again
	}
	return copied
}

func (s *containerdStore) clone() imageStore {
	return &containerdStore{
		engine: s.engine, blobs: maps.Clone(s.blobs), leased: maps.Clone(s.leased), ingests: maps.Clone(s.ingests),
		names: maps.Clone(s.names), snapshots: maps.Clone(s.snapshots), full: maps.Clone(s.full),
	}
}

// AgentState is all that an Agent keeps at a moment.
type AgentState struct {
	runtime   []agentEvent
	boot      []agentEvent
	registers [4][48]byte
	late      []func()
}

// Late returns how many effects wait.
func (s AgentState) Late() int { return len(s.late) }

// State returns what the agent keeps now.
func (a *Agent) State() AgentState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return AgentState{slices.Clone(a.runtime), slices.Clone(a.boot), a.registers, slices.Clone(a.late)}
}

// Restore brings the agent back to a state of its own.
func (a *Agent) Restore(s AgentState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.runtime, a.boot, a.registers, a.late = slices.Clone(s.runtime), slices.Clone(s.boot), s.registers, slices.Clone(s.late)
	a.requests = nil
}
