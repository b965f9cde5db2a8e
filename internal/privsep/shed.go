package privsep

import (
	"fmt"
	"os"
	"runtime"

	"github.com/syndtr/gocapability/capability"
	"golang.org/x/sys/unix"
)

// Identity is whom a process becomes. Keep says that the process is not root
// (or may not change): uid, gid and groups stay as they are.
type Identity struct {
	UID, GID int
	Keep     bool
}

// securebits: uid 0 means nothing any more, and none of that can be undone
// (capabilities(7)).
const securebits = 1<<0 | 1<<1 | // SECBIT_NOROOT, locked
	1<<5 | // SECBIT_KEEP_CAPS_LOCKED, the flag itself unset
	1<<6 | 1<<7 // SECBIT_NO_CAP_AMBIENT_RAISE, locked

// Reexec sheds all privileges and executes this program anew as role, with
// the same process id. state and fds are what the new process gets from
// TakeState. On success it does not return.
//
// capset(2), prctl(2) and the raw set*id calls act on one thread only. That
// is enough, because exec ends all other threads; the new process verifies
// the result over every thread it has.
func Reexec(role Role, id Identity, state []byte, fds []int) error {
	runtime.LockOSThread() // for good: this thread is no use to anybody else
	self, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open own executable: %w", err)
	}
	memfd, err := SealedFile(encodeState(state, fds))
	if err != nil {
		return err
	}
	if err := shedThread(id); err != nil {
		return err
	}
	if err := keepOpen(append([]int{memfd}, fds...)); err != nil {
		return err
	}
	os.Unsetenv(stateVariable)
	err = execveat(self, []string{string(role)}, append(os.Environ(), fmt.Sprintf("%s=%d", stateVariable, memfd)))
	if err == unix.EACCES {
		return fmt.Errorf("execute own file anew as uid %d: %w (the file must be executable for others: chmod 0755)", id.UID, err)
	}
	return fmt.Errorf("execute own file anew as uid %d: %w", id.UID, err)
}

// shedThread takes every privilege from the calling thread. The order
// matters: the bounding set needs CAP_SETPCAP, the ids need CAP_SETUID.
func shedThread(id Identity) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_NO_NEW_PRIVS: %w", err)
	}
	caps, err := capability.NewPid2(0)
	if err != nil {
		return fmt.Errorf("capability set: %w", err)
	}
	if err := caps.Load(); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	if caps.Get(capability.EFFECTIVE, capability.CAP_SETPCAP) {
		if err := unix.Prctl(unix.PR_SET_SECUREBITS, securebits, 0, 0, 0); err != nil {
			return fmt.Errorf("prctl PR_SET_SECUREBITS: %w", err)
		}
		caps.Clear(capability.BOUNDS)
		if err := caps.Apply(capability.BOUNDS); err != nil {
			return fmt.Errorf("clear the bounding set: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_CAP_AMBIENT_CLEAR_ALL: %w", err)
	}
	if err := changeIDs(id); err != nil {
		return err
	}
	caps.Clear(capability.CAPS)
	if err := caps.Apply(capability.CAPS); err != nil {
		return fmt.Errorf("clear the capability sets: %w", err)
	}
	return nil
}

// changeIDs uses raw system calls: the wrappers of x/sys and libc signal all
// threads, which neither is needed nor works once filters are in the way.
func changeIDs(id Identity) error {
	if id.Keep {
		return nil
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return fmt.Errorf("setgroups: %w", e)
	}
	g, u := uintptr(id.GID), uintptr(id.UID)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, g, g, g); e != 0 {
		return fmt.Errorf("setresgid %d: %w", id.GID, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, u, u, u); e != 0 {
		return fmt.Errorf("setresuid %d: %w", id.UID, e)
	}
	return nil
}
