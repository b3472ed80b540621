// Package admission decides from facts whether a boot may go on: whether it may measure, whose an
// image event is, who else could emit one, which containers have to end, which one may stay, and
// whether there is room for the image.
//
// It guarantees that `run` and `verify` judge alike, because every rule stands here and nowhere
// else, with its words and exit code: `run` ends at the first refusal in the order of its steps,
// `verify` shows all. It is pure: what it doesn't get it doesn't know, and it reads and changes
// nothing. It doesn't guarantee that the facts are still true when they are acted on; what acts
// looks again.
package admission

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/rtmr"
)

// Record says how far the launchers of one boot came: to the gate, to the intent to measure a
// digest, or to having measured it. The workload can write it too, so that it may refuse and never
// allows anything by itself.
type Record struct {
	ID     string        `json:"boot_id"` // the kernel's name of the boot; empty: there is no record
	Digest digest.Digest `json:"digest,omitzero"`
	Intent time.Time     `json:"intent,omitzero"` // zero: none yet
	Done   bool          `json:"done"`
}

// Unfinished reports whether a launcher came to its end between its intent and having measured.
func (r Record) Unfinished() bool { return !r.Done && !r.Intent.IsZero() }

// Explains reports whether a launcher was at least about to measure the digest. If not, something
// else measured it.
func (r Record) Explains(digest digest.Digest) bool {
	return r.Digest == digest && !r.Intent.IsZero()
}

// Container is a container with what only the engine's host knows about it.
type Container struct {
	inspect.Container
	// Holds says by what it could measure in the launcher's name, and through what; empty: by nothing.
	Holds string
}

// Facts is what is known at one moment. A boot finds it out little by little; what isn't known yet
// refuses nothing.
type Facts struct {
	Settings   Settings
	Boot       string             // the kernel's name of this boot
	Record     Record             // of this boot
	Log        *rtmr.Log          // nil: not known, or nothing is measured
	Wanted     *approval.Decision // nil: not known
	Self       inspect.Container  // our own; the zero value for a plain binary
	Containers []Container        // all others
	Failing    Failing            // the newest approved digest, in earlier attempts of the run
}

// Verdict is what follows from facts.
type Verdict struct {
	// Measured: the wanted image is measured already, and a launcher of this boot may have done it.
	Measured bool
	// Old are the old workloads that run: they have to end before anything is measured.
	Old []Container
	// Excused may be restarted by the engine: only the record says that the event isn't theirs.
	Excused []Container
	// Refusals are in the order in which the boot comes across them.
	Refusals []*Refusal
}

// Err returns the first refusal, nil where there is none.
func (v Verdict) Err() error {
	if len(v.Refusals) == 0 {
		return nil
	}
	return v.Refusals[0]
}

func (v *Verdict) refuse(code Code, hint []string, format string, args ...any) {
	err := fmt.Errorf(format, args...)
	v.Refusals = append(v.Refusals, &Refusal{code, exit.Measurement, err, hint})
}

// AnImage reports whether an image event is in the log, whichever.
func (f Facts) AnImage() bool { return f.Log != nil && len(f.Log.Images()) > 0 }

// Decide judges whether the boot may measure the wanted image, or has.
func Decide(f Facts) (v Verdict) {
	if !f.Settings.TEE() {
		return v
	}
	believed := true
	if f.Log != nil {
		if err := f.Log.Replays(); err != nil {
			believed = false
			v.Refusals = append(v.Refusals, typed(LogWrong, err))
		}
	}
	switch {
	case !f.AnImage():
		f.unmeasured(&v)
	case believed && f.Wanted != nil:
		f.measured(&v, f.Wanted.Digest)
	}
	for _, c := range f.Containers {
		if f.AnImage() && f.evidence(c) {
			v.refuse(ImpostorEnded, []string{"reboot the CVM: whoever measured it may have passed for that image"},
				"an image is already measured, and container %s, which no launcher had measured, ran before in this boot and may have measured it", c.Name)
		}
	}
	return v
}

// unmeasured judges a boot in which no image is measured yet.
func (f Facts) unmeasured(v *Verdict) {
	if f.Record.Unfinished() {
		v.Refusals = append(v.Refusals, UnderWay(f.Record.Digest))
	}
	for _, c := range f.Containers {
		if c.Live() && compose.OfWorkload(c.Container) {
			v.Old = append(v.Old, c)
		}
	}
	v.Refusals = append(v.Refusals, f.Holders().Refusals...)
}

// measured judges a boot in which an image is measured: is it the wanted one, and can only a
// launcher have done it?
func (f Facts) measured(v *Verdict, want digest.Digest) {
	if _, err := f.Log.Measured(want); err != nil {
		v.Refusals = append(v.Refusals, typed(OtherMeasured, err))
		return
	}
	if f.Record.ID != "" && !f.Record.Explains(want) {
		v.Refusals = append(v.Refusals, NotOurs(want))
		return
	}
	v.Measured = true
	if !slices.ContainsFunc(f.Containers, f.runs) { // something is still to be started
		v.Refusals = append(v.Refusals, f.Holders().Refusals...)
	}
	for _, c := range f.Containers {
		hint := []string{"turn off its restart policy, then reboot the CVM: " +
			"docker update --restart=no " + c.ShortID()}
		switch {
		case !compose.OfWorkload(c.Container):
		case c.Live() && !f.ofThisBoot(c):
			v.refuse(WorkloadRestarts, hint, "an image is already measured, but container %s (%s) runs "+
				"that no launcher of this boot created, and may have measured it", c.Name, c.ShortID())
		case c.RestartPolicy == "no":
		case f.Settings.Supervise == SuperviseOff && f.ofThisBoot(c) && f.Record.Explains(want):
			v.Excused = append(v.Excused, c)
		default: // the engine may have started it before any launcher ran
			v.refuse(WorkloadRestarts, hint, "an image is already measured, but container %s (%s) "+
				"restarts by itself (%s) and may have measured it", c.Name, c.ShortID(), c.RestartPolicy)
		}
	}
}

// runs reports whether a container is the workload of this boot, and runs.
func (f Facts) runs(c Container) bool {
	return c.Name == compose.Name && c.Status == "running" && f.ofThisBoot(c)
}

// Holders refuses where something other than the workload and our own project could measure: that
// would be in our name. No record helps it: whoever measured may have written that, too.
// Decide takes it in unless the workload runs; who starts something then all the same, because what
// runs can't stay, has to ask.
func (f Facts) Holders() (v Verdict) {
	for _, c := range f.Containers {
		ours := compose.OfWorkload(c.Container) || compose.SameProject(c.Container, f.Self)
		if ours || !c.Live() || c.Holds == "" {
			continue
		}
		v.refuse(SocketHeld, []string{
			"stop it if it is yours: docker stop " + c.ShortID(),
			"otherwise reboot the CVM: what holds it can measure in the launcher's name",
		}, "container %s (%s) holds %s", c.Name, c.ShortID(), c.Holds)
	}
	return v
}

// Unstopped refuses to go on while an old workload runs that was told to end.
func Unstopped(c Container) *Refusal {
	return &Refusal{WorkloadStopped, exit.Measurement,
		fmt.Errorf("container %s (%s) of the workload can't be stopped: it is %s",
			c.Name, c.ShortID(), c.Status),
		[]string{"end it and start the launcher again: docker kill " + c.ShortID()}}
}

// ofThisBoot reports whether a container may have been created in this boot.
func (f Facts) ofThisBoot(c Container) bool {
	return f.Boot != "" && c.Labels[compose.BootLabel] == f.Boot
}

// Workload is the container that has to run.
type Workload struct {
	compose.Workload
	ID      inspect.ImageID // of its image, proved
	Base    v1.Config       // of its image, proved
	Runtime string          // the engine's, where none is asked for
}

// Check returns what a container deviates in.
func (w Workload) Check(c inspect.Container) error {
	return w.Workload.Check(c, w.ID, w.Base, w.Runtime)
}

// HolderPrefix begins the names of the containers that hold volumes and image while the workload's
// is replaced.
const HolderPrefix = "mpc-node-holder-"

// Sort says what becomes of the workload's containers. At most one may stay as it is; all others
// are removed.
func (f Facts) Sort(w Workload, measured bool) (stays *Container, replaced []Container) {
	for _, c := range f.Containers {
		switch {
		case !compose.OfWorkload(c.Container):
		case strings.HasPrefix(c.Name, HolderPrefix) && c.NeverStarted():
		case f.Stays(c, w, measured) == nil:
			stays = &c
		default:
			replaced = append(replaced, c)
		}
	}
	return stays, replaced
}

// Stays returns why a container of the workload can't stay as it is; nil: it can. A container keeps
// its writable layer, and one that ran before may hold another program than its image: so none
// stays in a CVM unless its image is measured in this boot and it belongs to it.
func (f Facts) Stays(c Container, w Workload, measured bool) error {
	switch {
	case f.Settings.TEE() && !(measured && f.ofThisBoot(c)):
		return fmt.Errorf("each boot makes its own")
	case !w.made(c, measured):
		return fmt.Errorf("it was made from another Compose file")
	case w.ID.IsZero():
		return fmt.Errorf("it is of another image")
	}
	return w.Check(c.Container)
}

// made reports whether a container was made from the file that is given to Compose now. From
// another one, as after a change of the image's name in the user config, Compose would make it anew,
// and leave half of it where it is killed at that. One that runs measured isn't given to Compose
// any more.
func (w Workload) made(c Container, measured bool) bool {
	return c.Labels[compose.ProjectLabel] == compose.Name &&
		(c.Labels[compose.ReferenceLabel] == w.Reference || measured && c.Status == "running")
}

// Running reports whether the container that stays runs, so that nothing is left to do. Outside a
// CVM a boot does all steps nevertheless.
func Running(stays *Container, measured bool) bool {
	return measured && stays != nil && stays.Status == "running"
}

// Startable refuses a container that the engine can't start.
func Startable(c inspect.Container) error {
	if c.Status == "paused" {
		return &Refusal{WorkloadPaused, exit.Workload, fmt.Errorf("container %s is paused", c.Name),
			[]string{"docker unpause " + c.Name}}
	}
	return nil
}

// Unused refuses a container that ran before where what is about to be measured is its image: it
// may hold another program.
func Unused(c inspect.Container) error {
	if c.NeverStarted() {
		return nil
	}
	return &compose.DeviationError{
		Container: c.Name, What: "status", Got: c.Status, Want: "never started",
	}
}

// Room refuses an image whose missing layers, so many bytes as the registry has them, don't fit on
// the engine's disk. An engine holds what it was sent for a time beside what it unpacks to, and
// nothing says beforehand how much that is: no less than the compressed bytes, and mostly two to four
// times as much. A containerd store may keep its images anywhere, so that nothing is known about
// its room.
func Room(info inspect.Info, missing, free int64) error {
	if need := 2 * missing; info.Store == inspect.Classic && need > free {
		return &Refusal{SpaceShort, exit.Engine,
			fmt.Errorf("the engine's data root %s has too little room: the image needs at least %d MB, "+
				"%d MB are free", info.Root, need/1e6, free/1e6),
			[]string{"free space on the engine's data root: docker system df, docker image prune"}}
	}
	return nil
}

// Engine refuses what answers like a Docker engine and isn't one.
func Engine(info inspect.Info) error {
	if info.Podman {
		return &Refusal{EngineNotDocker, exit.Engine,
			fmt.Errorf("what answers at the engine's socket is Podman %s", info.Version),
			[]string{"the launcher needs a Docker engine: name its socket with --docker-host"}}
	}
	return nil
}

// Select chooses the digest that runs. Where an image is measured, no file can make it another one in this boot.
func (f Facts) Select(list *approval.List, override *digest.Digest) (approval.Decision, error) {
	if f.AnImage() {
		image, _ := f.Log.Images()[0].Image()
		if measured, err := f.Log.Measured(image); err == nil && measured {
			if decision, stays := approval.Stay(image, list, f.Settings.DefaultDigest); stays {
				return decision, nil
			}
		}
	}
	decision, err := approval.Select(list, override, f.Settings.DefaultDigest)
	switch {
	case err == nil && f.AnImage():
		return decision, nil
	case err == nil:
		return f.Failing.instead(f.Settings, decision), nil
	case f.AnImage():
		return approval.Decision{}, &Refusal{OtherMeasured, exit.Measurement, fmt.Errorf("another image is measured than any that may be chosen: %w", err),
			[]string{"reboot the CVM: what is in RTMR3 stays there until then"}}
	}
	return approval.Decision{}, typed(OverrideRefused, err)
}
