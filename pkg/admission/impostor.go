package admission

import (
	"fmt"
	"slices"
	"strings"

	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/exit"
)

// Impostor reports whether a container runs as the workload, or will as soon as the engine likes, and no launcher of this boot made it: the
// engine started it, unmeasured and with the agent's socket. A launcher that supervises ends it before anything can make it refuse. Without
// supervision the engine's restarts are wanted, and the record decides.
func (f Facts) Impostor(c Container) bool {
	return f.Settings.TEE() && f.Settings.Supervised() && f.foreign(c) && (c.Live() || c.RestartPolicy != "no")
}

// foreign reports whether a container is the workload's, and no launcher of this boot made it.
func (f Facts) foreign(c Container) bool {
	workload := c.Name == compose.Name || strings.HasPrefix(c.Name, compose.ImpostorPrefix) ||
		c.Labels[compose.ProjectLabel] == compose.Name && c.Labels[compose.ServiceLabel] == compose.Name
	return workload && !f.launched(c)
}

// launched reports whether no engine can have started a container by itself, because a launcher of this boot made it. Where nobody knows which boot this
// is, that is one that a launcher which supervises made: no engine starts it ever.
func (f Facts) launched(c Container) bool {
	supervised := c.Labels[compose.BootLabel] != "" && c.RestartPolicy == "no" && !strings.HasPrefix(c.Name, compose.ImpostorPrefix)
	return f.ofThisBoot(c) || f.Boot == "" && supervised
}

// Impostors returns those among the containers.
func (f Facts) Impostors() []Container {
	return slices.DeleteFunc(slices.Clone(f.Containers), func(c Container) bool { return !f.Impostor(c) })
}

// ImpostorName is what an impostor is called from its end on. The name is the evidence that it ran in this boot: whatever has the shared volume can
// remove what is written there, and no name.
func (f Facts) ImpostorName(c Container) string {
	return compose.ImpostorPrefix + f.Boot + "-" + c.ShortID()
}

// evidence reports whether a container is one that ran as the workload in this boot before it was ended, or in one that had no name, which may be this
// one. One that never ran measured nothing: that the engine can't take back, and no launcher removes it before the log is judged. It may have been
// started until its policy was changed and it was stopped, so what counts is how it is found after that.
//
// A container that removes itself (docker run --rm) leaves none. It needs none: an engine refuses it a restart policy and starts it at no boot, so whoever
// ran it in this one has the engine itself, which is trusted, and could as well have removed any other evidence.
//
// One that the engine didn't give the name, though it ended it, is evidence as well: where an image is measured, a launcher has removed all such containers
// before it did so.
func (f Facts) evidence(c Container) bool {
	ended := !c.Live() && c.RestartPolicy == "no" && f.foreign(c)
	return !c.NeverStarted() && (ended || c.Name == f.ImpostorName(c) || c.Name == Facts{}.ImpostorName(c))
}

// Ended returns the containers as they are once the impostors were ended.
func (f Facts) Ended() []Container {
	then := slices.Clone(f.Containers)
	for i, c := range then {
		if !f.Impostor(c) {
			continue
		}
		then[i].Name, then[i].RestartPolicy = f.ImpostorName(c), "no"
		if c.Live() {
			then[i].Status = "exited"
		}
	}
	return then
}

// Unended refuses to go on beside an impostor that was told to end.
func Unended(c Container) *Refusal {
	return &Refusal{WorkloadStopped, exit.Engine,
		fmt.Errorf("container %s (%s), which nobody has measured, can't be ended: it is %s and restarts by itself: %s", c.Name, c.ShortID(), c.Status, c.RestartPolicy),
		[]string{"end it and start the launcher again: docker kill " + c.ShortID()}}
}
