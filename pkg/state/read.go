package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/config"
	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/docker/inspect"
	"tee-launcher/pkg/internal/files"
)

// Proc is where the kernel shows processes, locks and the boot's name.
const Proc = "/proc"

// maxLocks bounds the kernel's list of locks.
const maxLocks = 1 << 20

// OpenShared opens the shared directory.
func OpenShared(s admission.Settings) (*files.Dir, error) {
	dir, err := files.OpenDir(s.SharedDir)
	if err != nil {
		return nil, SharedDir(err)
	}
	return dir, nil
}

// IsVolume refuses a shared directory that isn't the volume which the workload mounts: then it
// wouldn't find its config, nor the launcher the list that it writes. A plain binary sees the volume's
// place, and whether it is this very directory. In a container it isn't there, and a path says nothing
// of what the engine sees by it: the kernel says on which mount the directory lies, and the engine what
// it mounted there.
func IsVolume(
	ctx context.Context, e *inspect.Engine, self inspect.Container, shared *files.Dir, proc string,
) error {
	volume, err := e.Volume(ctx, compose.SharedVolume)
	if inspect.NotFound(err) {
		return notTheVolume(fmt.Errorf("there is no volume %s", compose.SharedVolume))
	}
	if err != nil {
		return err
	}
	is := shared.Is
	if self.ID != "" {
		mounts, err := mountinfo(proc)
		if err != nil {
			return err
		}
		place, err := mounted(self, shared, string(mounts))
		if err != nil {
			return notTheVolume(err)
		}
		is = func(of string) bool { return filepath.Clean(of) == place }
	}
	for _, place := range []string{volume.Mountpoint, volume.Device} {
		if place != "" && is(place) {
			return nil
		}
	}
	return notTheVolume(fmt.Errorf("%s isn't the volume %s, which is at %s", shared.Path(), compose.SharedVolume, volume.Mountpoint))
}

// mounted returns where the engine finds an open directory of our container.
func mounted(self inspect.Container, dir *files.Dir, mountinfo string) (string, error) {
	id, path, err := dir.Mount()
	if err != nil {
		return "", err
	}
	own := fmt.Errorf("%s isn't the volume %s: it lies on no mount that the engine made",
		path, compose.SharedVolume)
	var point string
	for line := range strings.Lines(mountinfo) {
		// "98 92 8:1 /of/the/device /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw"
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[0] != strconv.FormatUint(id, 10) {
			continue
		}
		// The kernel's escapes in it, as \040 for a space, are Go's.
		if point, err = strconv.Unquote(`"` + strings.ReplaceAll(fields[4], `"`, `\"`) + `"`); err != nil {
			return "", own
		}
	}
	for _, m := range self.Mounts {
		followed, err := filepath.EvalSymlinks(m.Destination)
		if err != nil || followed != point {
			continue
		}
		below, err := filepath.Rel(point, path)
		if err != nil || below == ".." || strings.HasPrefix(below, "../") {
			return "", own
		}
		return filepath.Join(m.Source, below), nil
	}
	return "", own
}

// UserConfig reads the user config. The warnings are valid beside an error.
func UserConfig(s admission.Settings) (*config.Config, []config.Warning, error) {
	data, err := files.ReadFile(s.ConfigFile, config.MaxSize)
	if err != nil {
		return nil, nil, noConfig(err)
	}
	return config.Parse(s.ConfigFile, data, s.Platform, s.Insecure...)
}

// Approved reads the approved list; nil, there is none.
func Approved(shared *files.Dir) (*approval.List, error) {
	data, err := shared.Read(approval.File, approval.MaxSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, unlisted(err)
	}
	list, err := approval.Parse(data)
	if err != nil {
		return nil, badList(fmt.Errorf("%s: %w", approval.File, err))
	}
	return &list, nil
}

// Candidates returns the digests that a run of this boot may have chosen, as far as the files say so:
// the default one and all that are listed.
func Candidates(s admission.Settings, shared *files.Dir) []digest.Digest {
	candidates := []digest.Digest{s.DefaultDigest}
	if list, err := Approved(shared); err == nil && list != nil {
		candidates = append(candidates, list.Digests()...)
	}
	return candidates
}

// Fingerprint is of the files that say which image is wanted and where it is. It changes where one of
// them does, and where it comes or goes.
func Fingerprint(s admission.Settings, shared *files.Dir) digest.Digest {
	cfg, unconfigured := files.ReadFile(s.ConfigFile, config.MaxSize)
	list, unlisted := shared.Read(approval.File, approval.MaxSize)
	return digest.Of(fmt.Appendf(nil, "%q %v %q %v", cfg, unconfigured, list, unlisted))
}

// CanWriteNodeConfig returns why the node config, of so many bytes, couldn't be written, as far as
// that can be seen.
func CanWriteNodeConfig(shared *files.Dir, size int) error {
	if err := shared.CanWrite(compose.NodeConfig, int64(size)); err != nil {
		return NodeConfig(err)
	}
	return nil
}

// Self returns our own container; the zero value for a plain binary.
func Self(ctx context.Context, e *inspect.Engine, proc string) (inspect.Container, error) {
	mounts, err := mountinfo(proc)
	if err != nil {
		return inspect.Container{}, err
	}
	return e.Self(ctx, mounts)
}

func mountinfo(proc string) ([]byte, error) {
	mounts, err := files.ReadFile(filepath.Join(proc, "self/mountinfo"), inspect.MaxMountinfo)
	if err != nil {
		return nil, fmt.Errorf("finding our own container: %w", err)
	}
	return mounts, nil
}

// SelfID returns the ID of our own container; empty for a plain binary, and where it can't be seen.
func SelfID(proc string) string {
	mounts, err := mountinfo(proc)
	if err != nil {
		return ""
	}
	return inspect.SelfID(mounts)
}

// Containers returns all containers but our own. Beside an error they are those that the engine could
// tell of.
func Containers(
	ctx context.Context, e *inspect.Engine, self string,
) ([]admission.Container, error) {
	all, err := e.Containers(ctx)
	var others []admission.Container
	for _, c := range all {
		if c.ID != self {
			others = append(others, admission.Container{Container: c})
		}
	}
	return others, err
}

// Free returns how many bytes are free on the engine's disk, and whether that can be seen: a plain
// binary sees the data root itself, in a container the shared volume mostly lies under it. Look
// looks at a path; nil: the file system is asked.
func Free(
	info inspect.Info, self inspect.Container, s admission.Settings, look func(string) (int64, error),
) (int64, bool) {
	place, seen := place(info, self, s)
	if !seen {
		return 0, false
	}
	if look == nil {
		look = func(path string) (int64, error) { free, _, err := available(path); return free, err }
	}
	free, err := look(place)
	return free, err == nil
}

// Disk returns how many bytes of the engine's disk are free and how many it has in all, where Free
// can see it.
func Disk(
	info inspect.Info, self inspect.Container, s admission.Settings, look func(string) (free, all int64, err error),
) (free, all int64, known bool) {
	place, seen := place(info, self, s)
	if !seen {
		return 0, 0, false
	}
	if look == nil {
		look = available
	}
	free, all, err := look(place)
	return free, all, err == nil
}

// place returns a path on the engine's disk, as we see it.
func place(info inspect.Info, self inspect.Container, s admission.Settings) (string, bool) {
	if self.ID == "" {
		return info.Root, true
	}
	lies := func(m inspect.Mount) bool {
		return m.Destination == s.SharedDir && strings.HasPrefix(m.Source, info.Root+"/")
	}
	return s.SharedDir, slices.ContainsFunc(self.Mounts, lies)
}

func available(path string) (free, all int64, err error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(path, &disk); err != nil {
		return 0, 0, err
	}
	return int64(disk.Bavail) * int64(disk.Bsize), int64(disk.Blocks) * int64(disk.Bsize), nil
}

// Lock is the holder of the shared directory's lock.
type Lock struct {
	PID       string               // empty: nobody
	Container *admission.Container // whose process it is, as far as that can be seen
}

// Launcher reports whether it is a launcher's: that of anything but the workload, which may take
// the lock of its volume too.
func (l Lock) Launcher() bool {
	return l.PID != "" && (l.Container == nil || !compose.OfWorkload(l.Container.Container))
}

// LockHolder returns the holder of the shared directory's lock, as the kernel shows it in proc, without
// taking it. Processes of other containers can be seen only from outside of all.
func LockHolder(
	ctx context.Context, e *inspect.Engine, shared *files.Dir, proc string,
) (Lock, error) {
	pid, err := lockedBy(shared.Path(), proc)
	if err != nil || pid == "" || e == nil {
		return Lock{PID: pid}, err
	}
	lock := Lock{PID: pid}
	mounts, err := files.ReadFile(filepath.Join(proc, pid, "mountinfo"), inspect.MaxMountinfo)
	if err == nil {
		if c, err := e.Self(ctx, mounts); err == nil && c.ID != "" {
			lock.Container = &admission.Container{Container: c}
		}
	}
	return lock, nil
}

// LogLockHolder returns the process that has dstack's lock of its event log; empty: none.
func LogLockHolder(s admission.Settings, proc string) (string, error) {
	path := s.Native.Lock()
	pid, err := lockedBy(path, proc)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return pid, err
}

// lockedBy returns the process that has the lock of a file; empty: none.
func lockedBy(path, proc string) (string, error) {
	data, err := files.ReadFile(filepath.Join(proc, "locks"), maxLocks)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	stat, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat {
		return "", fmt.Errorf("%s has no inode", path)
	}
	device := uint64(stat.Dev)
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(device), unix.Minor(device), stat.Ino)
	for line := range strings.Lines(string(data)) {
		// "1: FLOCK  ADVISORY  WRITE 1234 08:02:5678 0 EOF"
		fields := strings.Fields(line)
		if len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == file {
			return fields[4], nil
		}
	}
	return "", nil
}
