// Package child runs other programs in such a way that none outlives what it was started for.
package child

import (
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// patience is how long the output of a program that has ended is waited for: what left its group
// may still hold it.
const patience = 5 * time.Second

// Run runs a command of exec.CommandContext. It has a process group of its own, which ends as a
// whole with the context, so that a plugin ends with its front end; and on Linux it ends together
// with us.
func Run(cmd *exec.Cmd) error {
	cmd.SysProcAttr = attributes()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = patience
	// Pdeathsig is sent when the thread that started the process ends, so it has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}
