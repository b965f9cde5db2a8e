//go:build amd64 || arm64

package spawn

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	lastSignal = 64 // the highest signal number (signal(7))
	sigSetMask = 2  // SIG_SETMASK
	sigIgnore  = 1  // SIG_IGN
)

// kernelAction is struct sigaction as rt_sigaction(2) takes it; all zero is
// SIG_DFL.
type kernelAction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// ignored tells whether this process ignores sig, as one that was started by
// nohup(1) or from a script's background job does.
func ignored(sig uintptr) bool {
	var action kernelAction
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&action)), unsafe.Sizeof(action.mask), 0, 0)
	return errno == 0 && action.handler == sigIgnore
}

// blocked tells whether the calling thread blocks any signal. Go's threads
// all have the mask that the process was started with.
func blocked() bool {
	var mask uint64
	setMask(nil, &mask)
	return mask != 0
}

// setMask sets the calling thread's signal mask to new, unless it is nil, and
// stores the one before into old, unless that is nil.
func setMask(new, old *uint64) {
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(new)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
}
