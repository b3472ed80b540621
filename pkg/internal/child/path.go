package child

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Path is where programs are found.
type Path struct {
	dirs       []string
	unmeasured []string
}

// Search returns PATH, or what stands for it where that is empty, without the entries in or below
// unmeasured: directories in which anybody may have put a program. The root is never one, because
// nothing would be left. An entry that isn't absolute is none either.
func Search(instead string, unmeasured []string) Path {
	value := os.Getenv("PATH")
	if value == "" {
		value = instead
	}
	p := Path{unmeasured: unmeasured}
	p.dirs = slices.DeleteFunc(filepath.SplitList(value), func(entry string) bool {
		return !filepath.IsAbs(entry) || below(entry, unmeasured)
	})
	return p
}

// Look returns the program of that name that comes first, empty if there is none. One that a link
// leads to counts as what it is.
func (p Path) Look(name string) string {
	for _, dir := range p.dirs {
		program, err := exec.LookPath(filepath.Join(dir, name))
		if err == nil && !below(program, p.unmeasured) {
			return program
		}
	}
	return ""
}

// String is the value of PATH for a program that is started.
func (p Path) String() string { return strings.Join(p.dirs, string(filepath.ListSeparator)) }

// below reports whether path is one of dirs, or in one, whatever links lead there.
func below(path string, dirs []string) bool {
	for _, dir := range dirs {
		root := followed(dir)
		if dir == "" || root == "/" {
			continue
		}
		rel, err := filepath.Rel(root, followed(path))
		if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return true
		}
	}
	return false
}

func followed(path string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}
