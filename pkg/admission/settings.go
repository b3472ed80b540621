package admission

import (
	"path"
	"time"

	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/rtmr"
)

// Settings is what flags and environment say. In a CVM they are measured with the compose file that
// holds them.
type Settings struct {
	Platform      config.Platform // empty only where somebody asks who doesn't know it
	DefaultDigest digest.Digest   // runs where there is no approved list
	ConfigFile    string
	SharedDir     string      // where the launcher sees the shared volume
	AgentSocket   string      // of the guest agent; TEE only
	Native        rtmr.Mounts // where the kernel measures; zero: the agent does
	DockerHost    string      // "unix://" and an absolute path
	Compose       string      // the command; empty: found
	Insecure      []string    // registries that may be spoken to over plain http; empty: loopback only
	Supervise     Supervise
	FallbackAfter time.Duration // how long the newest approved digest has to have failed before an older one is tried; zero: none ever is
	Report        string        // path of the launch report; empty: in our own directory; NoReport: none
}

// TEE reports whether this is a CVM, in which what runs is measured.
func (s Settings) TEE() bool { return s.Platform == config.TEE }

// Unmeasured returns the directories whose content nobody measures, so that a program there could be anybody's. Outside
// a CVM that isn't said of where the user config stands: it may be somebody's home directory.
func (s Settings) Unmeasured() []string {
	places := []string{"/tapp", s.SharedDir}
	if s.TEE() {
		places = append(places, path.Dir(s.ConfigFile))
	}
	return places
}

// Supervised reports whether the launcher looks after the workload itself.
func (s Settings) Supervised() bool {
	return s.Supervise == SuperviseOn || s.Supervise != SuperviseOff && s.TEE()
}
