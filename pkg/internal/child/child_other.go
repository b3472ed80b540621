//go:build !linux

package child

import "syscall"

// What is started here are helpers of verify and digest, on somebody's own machine.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
