// Package spawn starts a program on a socket, as often and as cheaply as the
// kernel allows. It runs with the privilege of its caller; what the caller
// wants to give up (uid, groups, limits) is given up in the child, before the
// program is executed.
//
// os/exec and syscall.ForkExec hold one lock and one thread until the new
// program has been loaded, so one process starts one child at a time. Here a
// child is made by clone(2) with CLONE_VM and without CLONE_VFORK: nothing is
// copied, nobody waits, and several children load their programs at the same
// time. docs/decisions has the measurement.
//
// The price is that the child shares our memory until its execve(2). So it
// runs no Go code at all: it walks a table of system calls (steps.go) that was
// written for it before, in twenty lines of assembly per architecture, and
// touches neither stack nor heap. The kernel clears a word when the child has
// left our memory (CLONE_CHILD_CLEARTID), and only then is the table used
// again. Where there is no such assembly, or the kernel refuses such a clone,
// ForkExec does the same work more slowly (forkexec.go).
package spawn
