package inspect

import (
	"fmt"

	"tee-launcher/pkg/exit"
)

// SpaceError is a data root that has no room for an image.
type SpaceError struct {
	Root       string
	Need, Free int64 // bytes
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("the engine's data root %s has too little room: the image needs at least %d MB, %d MB are free", e.Root, e.Need/1e6, e.Free/1e6)
}

// ExitCode is Engine.
func (e *SpaceError) ExitCode() exit.Code { return exit.Engine }

// Hints says how to make room.
func (e *SpaceError) Hints() []string {
	return []string{"free space on the engine's data root: docker system df, docker image prune"}
}

// CheckSpace compares what missing bytes of layers need at the very least with what is free. Both stores hold what was
// sent for a time beside what it unpacks to, and nothing tells before how much that is: no less than the compressed bytes, and mostly two to
// four times as much.
func CheckSpace(info Info, missing, free int64) error {
	if need := 2 * missing; need > free {
		return &SpaceError{Root: info.Root, Need: need, Free: free}
	}
	return nil
}
