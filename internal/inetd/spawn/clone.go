//go:build amd64 || arm64

package spawn

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clone makes a child by the given system call (clone or clone3) that shares
// our memory and walks steps. It returns what the system call returned, in the
// parent only. steps escape on purpose: the child outlives the call, and a
// goroutine's stack may move.
func clone(trap, a1, a2, a3, a4, a5 uintptr, steps *step) uintptr

// cloneArgs is struct clone_args, version 0 (clone(2)).
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// cloner starts children that share our memory until they execute.
type cloner struct {
	table *table
	base  []*byte // the part of the environment that all have
	plain bool    // clone(2), for want of clone3(2)
	free  []*launch
}

// launch is one child on its way to the program, and all memory it uses. It
// must be on the heap (newLaunch).
type launch struct {
	onTheWay uint32 // cleared by the kernel when the child has left our memory
	steps    []step
	block    []byte
	env      []*byte
	owner    *cloner
}

// newCloner returns nil if the kernel, or a seccomp filter, has no clone for
// us: container runtimes answer clone3 with ENOSYS, since a filter can't look
// at its flags; emulators lack CLONE_VM.
func newCloner(c Command, base []string, nullFD int) (*cloner, error) {
	for _, plain := range []bool{false, true} {
		if !cloneWorks(plain) {
			continue
		}
		k, err := newClonerOf(plain, c, base, nullFD)
		if err != nil {
			return nil, err
		}
		return k, k.rehearse(c.Path, nullFD)
	}
	return nil, nil
}

func newClonerOf(plain bool, c Command, base []string, nullFD int) (*cloner, error) {
	files, err := originalFileLimit()
	if err != nil {
		return nil, err
	}
	if !c.limits(unix.RLIMIT_NOFILE) {
		c.Limits = append([]Limit{{unix.RLIMIT_NOFILE, files}}, c.Limits...)
	}
	k := &cloner{plain: plain}
	if k.table, err = newTable(&c, nullFD, plain); err != nil {
		return nil, err
	}
	for _, v := range base {
		p, err := unix.BytePtrFromString(v)
		if err != nil {
			return nil, err
		}
		k.base = append(k.base, p)
	}
	return k, nil
}

// cloneWorks tries a child that only ends.
func cloneWorks(plain bool) bool {
	t := &table{}
	t.addSignals(plain)
	return t.rehearse(plain) == nil
}

// rehearse sends a child all the way, except that it does not execute path
// but looks whether it might: what can't be done for any child is told before
// the first connection comes.
func (k *cloner) rehearse(path string, nullFD int) error {
	t := *k.table
	program := t.steps[t.program].a
	t.steps, t.names, t.paths = t.steps[:t.program:t.program], t.names[:t.program:t.program], t.paths[:t.program:t.program]
	for _, i := range t.socketSteps {
		t.steps[i].a = uintptr(nullFD) // in the place of a socket
	}
	t.add("execute", path, unix.SYS_FACCESSAT, atCurrentDir, program, unix.X_OK)
	return t.rehearse(k.plain)
}

// atCurrentDir is AT_FDCWD as the kernel takes it.
const atCurrentDir = ^uintptr(99)

// rehearse sends a child through the table and then ends it.
func (t *table) rehearse(plain bool) error {
	t.add("exit_group", "", unix.SYS_EXIT_GROUP, 0)
	l := newLaunch(nil, append([]step(nil), t.steps...))
	defer runtime.KeepAlive(l)
	defer runtime.KeepAlive(t)
	pid, errno := l.clone(plain)
	if errno != 0 {
		return &StepError{Step: "clone", Err: errno}
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("wait4", err)
		}
		break
	}
	if err := t.failure(l.steps); err != nil {
		return err
	}
	if !status.Exited() || status.ExitStatus() != 0 {
		return fmt.Errorf("a child that was to end has ended with status %#x", uint32(status))
	}
	return nil
}

func (k *cloner) start(socket int, vars []byte) (int, Launch, error) {
	l := k.take()
	l.setEnvironment(k.base, vars)
	k.table.fill(l.steps, socket, &l.env[0])
	pid, errno := l.clone(k.plain)
	if errno != 0 {
		l.Release()
		return 0, nil, &StepError{Step: "clone", Err: errno}
	}
	return pid, l, nil
}

func (k *cloner) take() *launch {
	if n := len(k.free); n > 0 {
		l := k.free[n-1]
		k.free = k.free[:n-1]
		return l
	}
	return newLaunch(k, make([]step, len(k.table.steps)))
}

// newLaunch returns a launch on the heap, whatever the compiler knows about
// its use: the kernel writes to it later.
//
//go:noinline
func newLaunch(owner *cloner, steps []step) *launch {
	return &launch{steps: steps, owner: owner}
}

// setEnvironment makes l.env the base and the NUL-ended strings of vars.
func (l *launch) setEnvironment(base []*byte, vars []byte) {
	l.block = append(l.block[:0], vars...)
	l.env = append(l.env[:0], base...)
	start := 0
	for i, c := range l.block {
		if c == 0 {
			l.env = append(l.env, &l.block[start])
			start = i + 1
		}
	}
	l.env = append(l.env, nil)
}

// cloneFlags: the child shares our memory, and the kernel tells when it has
// left it.
const cloneFlags = unix.CLONE_VM | unix.CLONE_CHILD_CLEARTID

func (l *launch) clone(plain bool) (pid int, errno unix.Errno) {
	atomic.StoreUint32(&l.onTheWay, 1)
	word := uintptr(unsafe.Pointer(&l.onTheWay))
	var r uintptr
	if plain {
		r = l.plainClone(word)
	} else {
		args := &cloneArgs{flags: cloneFlags | unix.CLONE_CLEAR_SIGHAND, childTID: uint64(word), exitSignal: uint64(unix.SIGCHLD)}
		r = clone(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, &l.steps[0])
		runtime.KeepAlive(args)
	}
	if r > ^uintptr(4095) {
		atomic.StoreUint32(&l.onTheWay, 0)
		return 0, unix.Errno(-r)
	}
	return int(r), 0
}

// plainClone blocks all signals meanwhile, so that none of our handlers runs
// in the child; the child unblocks them when it has reset them.
func (l *launch) plainClone(word uintptr) uintptr {
	runtime.LockOSThread() // the mask is the thread's
	defer runtime.UnlockOSThread()
	all := ^uint64(0)
	var before uint64
	setMask(&all, &before)
	defer setMask(&before, nil)
	if runtime.GOARCH == "arm64" { // tls comes before the child's word there
		return clone(unix.SYS_CLONE, cloneFlags|uintptr(unix.SIGCHLD), 0, 0, 0, word, &l.steps[0])
	}
	return clone(unix.SYS_CLONE, cloneFlags|uintptr(unix.SIGCHLD), 0, 0, word, 0, &l.steps[0])
}

// Gone implements Launch.
func (l *launch) Gone() bool { return atomic.LoadUint32(&l.onTheWay) == 0 }

// Err implements Launch.
func (l *launch) Err() error { return l.owner.table.failure(l.steps) }

// Release implements Launch.
func (l *launch) Release() { l.owner.free = append(l.owner.free, l) }
