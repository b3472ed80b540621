// Command walk prints all of a file system that a container sees: one line for each file below /,
// with what a program there could tell two
// files apart by. It doesn't go into what is mounted there.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := walk("/", os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "walk:", err)
		os.Exit(1)
	}
}

// touched are the files that the engine makes, or makes something in, whenever it makes a
// container.
func touched() []string { return []string{"/", "/.dockerenv", "/etc", "/etc/mtab"} }

func walk(root string, out io.Writer) error {
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		return err
	}
	first := map[uint64]string{} // the first name of each file that has several
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var s unix.Stat_t
		if err := unix.Lstat(path, &s); err == unix.ENOENT { // one of overlay's whiteouts
			_, err = fmt.Fprintf(out, "%q is listed, and not there\n", path)
			return err
		} else if err != nil {
			return err
		}
		if s.Dev != top.Dev {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		line := fmt.Sprintf("%q mode=%o owner=%d:%d", path, s.Mode, s.Uid, s.Gid)
		if !slices.Contains(touched(), path) {
			line += fmt.Sprintf(" time=%d.%09d", s.Mtim.Sec, s.Mtim.Nsec)
		}
		switch s.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			hash := sha256.New()
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := io.Copy(hash, f); err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d sha256=%x", s.Size, hash.Sum(nil)[:8])
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" to=%q", target)
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device=%d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
		}
		if !entry.IsDir() && s.Nlink > 1 {
			if first[s.Ino] == "" {
				first[s.Ino] = path
			}
			line += fmt.Sprintf(" links=%d first=%q", s.Nlink, first[s.Ino])
		}
		attributes, err := xattrs(path)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(attributes)) {
			line += fmt.Sprintf(" %s=%q", name, attributes[name])
		}
		_, err = fmt.Fprintln(out, line)
		return err
	})
}

// xattrs returns the extended attributes of a file itself, not of what it links to.
func xattrs(path string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return nil, fmt.Errorf("%s: attributes: %w", path, err)
	}
	all := map[string]string{}
	for name := range bytes.SplitSeq(bytes.TrimRight(list[:n], "\x00"), []byte{0}) {
		if len(name) == 0 || strings.HasPrefix(string(name), "trusted.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, name, err)
		}
		all[string(name)] = string(value[:n])
	}
	return all, nil
}
