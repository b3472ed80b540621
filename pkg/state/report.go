package state

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tee-launcher/pkg/admission"
	"tee-launcher/pkg/approval"
	"tee-launcher/pkg/compose"
	"tee-launcher/pkg/exit"
	"tee-launcher/pkg/internal/files"
)

// ReportName is the name of the launch report in our own directory.
const ReportName = "report.json"

// ReportDir opens the directory of the launch report at path. On the way from the shared directory no
// link is followed: the workload may have planted one.
func ReportDir(path string, shared *files.Dir) (*files.Dir, error) {
	folder := filepath.Dir(path)
	below := belowShared(folder, shared)
	if below != "" {
		folder = shared.Path()
	}
	dir, err := files.OpenDir(folder)
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(below, "/") {
		if name == "" || name == "." {
			continue
		}
		next, err := dir.Open(name)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// belowShared returns a path from the shared directory on; empty where it doesn't lead there.
func belowShared(path string, shared *files.Dir) string {
	below, err := filepath.Rel(shared.Path(), path)
	if err != nil || below == ".." || strings.HasPrefix(below, "../") {
		return ""
	}
	return below
}

// maxReport bounds a launch report that is read.
const maxReport = 1 << 20

// Waits reports whether the launch report says that the launcher of this boot waits for its next attempt.
// The workload can write there too: it is for words alone.
func Waits(s admission.Settings, shared *files.Dir, boot string) bool {
	path := s.Report
	switch path {
	case admission.NoReport:
		return false
	case "":
		path = filepath.Join(shared.Path(), Name, ReportName)
	}
	dir, err := ReportDir(path, shared)
	if err != nil {
		return false
	}
	defer dir.Close()
	data, err := dir.Read(filepath.Base(path), maxReport)
	if err != nil {
		return false
	}
	var said struct {
		BootID   string  `json:"boot_id"`
		ExitCode *int    `json:"exit_code"`
		Error    *string `json:"error"`
	}
	err = decode(data, &said, "boot_id", "exit_code", "error")
	return err == nil && boot != "" && said.BootID == boot && said.ExitCode == nil && said.Error != nil
}

// CanReport refuses a place for the launch report where one of the files stands that a boot reads or
// writes: the report would replace it. What counts is the entry of the directory, by whatever path: the
// report is renamed to it. So another name of one of those files may stand there, such as a link that
// the workload made, and gives way, except on the way to what we read outside of the shared directory.
func CanReport(s admission.Settings, shared *files.Dir) error {
	if s.Report == "" || s.Report == admission.NoReport {
		return nil
	}
	taken := reportTaken(fmt.Errorf("%s is one of the launcher's own files", s.Report))
	below, isBelow := strings.CutPrefix(belowShared(s.Report, shared), Name+"/")
	if isBelow && below != ReportName {
		return taken // whether the directory is there yet or not
	}
	name := filepath.Base(s.Report)
	dir, err := ReportDir(s.Report, shared)
	if err != nil {
		return nil // then it can't be written, which is a warning
	}
	defer dir.Close()
	outside := belowShared(filepath.Dir(s.Report), shared) == ""
	there, err := os.Stat(s.Report)
	if outside && err == nil && !there.Mode().IsRegular() {
		return reportTaken(files.NotRegular(s.Report, there))
	}
	if dir.Is(shared.Path()) {
		for _, ours := range []string{approval.File, compose.NodeConfig, Name} {
			if files.Belongs(name, ours) {
				return taken
			}
		}
	}
	if dir.Is(filepath.Join(shared.Path(), Name)) && name != ReportName {
		return taken
	}
	host := strings.TrimPrefix(s.DockerHost, "unix://")
	for _, input := range []string{s.ConfigFile, s.AgentSocket, host, s.SharedDir} {
		if input == "" {
			continue
		}
		if dir.Is(filepath.Dir(input)) && files.Belongs(name, filepath.Base(input)) {
			return taken
		}
		read, readErr := os.Stat(input)
		if outside && err == nil && readErr == nil && os.SameFile(there, read) {
			return taken
		}
	}
	return nil
}

// reportTaken refuses a place for the launch report.
func reportTaken(err error) *admission.Refusal {
	return refusal(admission.ReportTaken, exit.Usage, fmt.Errorf("launch report: %w", err),
		"name another place with --report, or none")
}
