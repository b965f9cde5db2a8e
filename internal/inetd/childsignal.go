package inetd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// childSignal turns SIGCHLD off while children come and go. Go's runtime can't
// block that signal on all its threads, and to have a handler interrupt a
// thread, wake another and tell a third costs a tenth of a connection's time.
// At its default the kernel does not even send it (signal(7)), and ended
// children wait for wait4(2) all the same.
//
// That goes behind the runtime's back, so the runtime's own action is put back
// as it was found.
type childSignal struct {
	off    bool
	action sigaction // the runtime's
}

// sigaction has room for the kernel's struct sigaction of every architecture.
type sigaction [8]uint64

// sigsetSize is that of the kernel's signal set, in bytes.
const sigsetSize = 8

// set makes the signal come, or not.
func (c *childSignal) set(on bool) {
	if on != c.off {
		return
	}
	var fresh, old sigaction // all zero: the default
	if on {
		fresh = c.action
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD),
		uintptr(unsafe.Pointer(&fresh)), uintptr(unsafe.Pointer(&old)), sigsetSize, 0, 0)
	if errno != 0 {
		return // as it was
	}
	if c.off = !on; c.off {
		c.action = old
	}
}
