package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"tee-launcher/pkg/rtmr"
)

type versionOpts struct {
	output output
}

// build describes this binary.
type build struct {
	Version   string `json:"version"`
	Commit    string `json:"commit"` // empty where it was built outside a checkout
	Modified  bool   `json:"modified"`
	Go        string `json:"go"`
	Platform  string `json:"platform"`
	Event     string `json:"event"`
	EventType uint32 `json:"event_type"`
	// EventVersion is the version of the event digest that this launcher replays and expects.
	EventVersion int `json:"event_version"`
	// Modules are the modules linked into this binary, as its go.sum had them.
	Modules []module `json:"modules"`
}

// module is a module as it was linked, after replacements.
type module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum"` // of its files, as in go.sum
}

func (p *program) newVersionCmd() *cobra.Command {
	var o versionOpts
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print version, commit, Go and the supported event version",
		Example: "  launcher version\n  launcher version -o json",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := thisBuild()
			if o.output == "json" {
				return p.printJSON(b)
			}
			_, err := fmt.Fprintf(p.stdout, "launcher %s\ncommit %s\n%s %s\nevent %s, version %d\n", b.Version, b.commit(), b.Go, b.Platform, b.Event, b.EventVersion)
			return err
		},
	}
	addOutput(cmd, &o.output)
	return cmd
}

// commit names what was built, for people.
func (b build) commit() string {
	switch {
	case b.Commit == "":
		return "unknown"
	case b.Modified:
		return b.Commit + " (modified)"
	}
	return b.Commit
}

// line is the answer to --version.
func (b build) line() string { return fmt.Sprintf("launcher %s (commit %s)\n", b.Version, b.commit()) }

// commit is set by the linker where the binary is built outside a checkout, as that of the image is.
var commit = ""

func thisBuild() build {
	b := build{
		Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Event: rtmr.EventName, EventType: rtmr.EventType, EventVersion: 1,
		Commit: commit, Modules: []module{},
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.Modules = append(b.Modules, module{m.Path, m.Version, m.Sum})
	}
	return b
}
