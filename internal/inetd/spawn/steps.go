//go:build amd64 || arm64

package spawn

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// step is one system call of a child. The assembly knows this layout.
type step struct {
	trap       uintptr
	a, b, c, d uintptr
	failed     uintptr // written by the child: -errno, if the call failed
}

// table is the child's way from clone to the program: the steps in order, the
// last of which is execve, and a name for each, for errors.
type table struct {
	steps []step
	names []string
	paths []string

	socketSteps []int // whose argument a is the socket
	program     int   // index of execve; its argument c is the environment
	keep        []any // what the steps point at
}

func (t *table) add(name, path string, trap uintptr, args ...uintptr) {
	var a [4]uintptr
	copy(a[:], args)
	t.steps = append(t.steps, step{trap: trap, a: a[0], b: a[1], c: a[2], d: a[3]})
	t.names = append(t.names, name)
	t.paths = append(t.paths, path)
}

// address pins what p points at for the life of the table.
func address[T any](t *table, p *T) uintptr {
	t.keep = append(t.keep, p)
	return uintptr(unsafe.Pointer(p))
}

// newTable writes the steps for c. With resetSignals the child starts with
// every signal blocked and with our handlers, and puts both right itself;
// without, it has no handlers (CLONE_CLEAR_SIGHAND) and what is left to mend
// is what we ignore or block. nullFD is an open /dev/null.
//
// The order matters: limits and nice value while still privileged, groups
// before the uid, the directory as the new user.
func newTable(c *Command, nullFD int, resetSignals bool) (*table, error) {
	t := &table{}
	t.addSignals(resetSignals)
	t.add("setsid", "", unix.SYS_SETSID)
	if c.Nice != nil {
		t.add("setpriority", "", unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, uintptr(*c.Nice))
	}
	for _, l := range c.Limits {
		limit := l.Rlimit
		t.add("setrlimit", limitName(l.Resource), unix.SYS_PRLIMIT64, 0, uintptr(l.Resource), address(t, &limit))
	}
	if u := c.User; u != nil {
		groups := append([]uint32(nil), u.Groups...)
		groups = append(groups, 0) // so that there is an address
		t.add("setgroups", "", unix.SYS_SETGROUPS, uintptr(len(u.Groups)), address(t, &groups[0]))
		t.add("setresgid", "", unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID))
		t.add("setresuid", "", unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID))
	}
	if c.Dir != "" {
		dir, err := unix.BytePtrFromString(c.Dir)
		if err != nil {
			return nil, err
		}
		t.add("chdir", c.Dir, unix.SYS_CHDIR, address(t, dir))
	}
	t.addDescriptors(c.Stderr, nullFD)
	return t, t.addProgram(c)
}

// addDescriptors puts the socket on 0 and 1; dup3 without O_CLOEXEC clears
// close-on-exec. The socket is never 0, 1 or 2 itself: Go's runtime opens
// those at start if they are closed.
func (t *table) addDescriptors(stderr Stderr, nullFD int) {
	targets := []uintptr{0, 1}
	if stderr == StderrSocket {
		targets = append(targets, 2)
	}
	for _, to := range targets {
		t.socketSteps = append(t.socketSteps, len(t.steps))
		t.add("dup3", "", unix.SYS_DUP3, ^uintptr(0), to, 0)
	}
	if stderr == StderrNull {
		t.add("dup3", "", unix.SYS_DUP3, uintptr(nullFD), 2, 0)
	}
}

func (t *table) addProgram(c *Command) error {
	path, err := unix.BytePtrFromString(c.Path)
	if err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings(c.Args)
	if err != nil {
		return err
	}
	t.program = len(t.steps)
	t.add("execute", c.Path, unix.SYS_EXECVE, address(t, path), address(t, &argv[0]), 0)
	return nil
}

// addSignals sets dispositions to their default, then unblocks all: in this
// order, since one of our handlers must not run in the child.
func (t *table) addSignals(all bool) {
	var action kernelAction
	var mask uint64
	byDefault := address(t, &action)
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		if sig == uintptr(unix.SIGKILL) || sig == uintptr(unix.SIGSTOP) {
			continue
		}
		if all || ignored(sig) {
			t.add("rt_sigaction", "", unix.SYS_RT_SIGACTION, sig, byDefault, 0, unsafe.Sizeof(mask))
		}
	}
	if all || blocked() {
		t.add("rt_sigprocmask", "", unix.SYS_RT_SIGPROCMASK, sigSetMask, address(t, &mask), 0, unsafe.Sizeof(mask))
	}
}

// fill makes steps those for one connection. The caller keeps them, and the
// environment, until the child has left our memory.
func (t *table) fill(steps []step, socket int, env **byte) {
	copy(steps, t.steps)
	for _, i := range t.socketSteps {
		steps[i].a = uintptr(socket)
	}
	steps[t.program].c = uintptr(unsafe.Pointer(env))
}

// failure returns the error that a child has left in its steps, or nil.
func (t *table) failure(steps []step) error {
	for i := range steps {
		if e := steps[i].failed; e != 0 {
			return &StepError{Step: t.names[i], Path: t.paths[i], Err: unix.Errno(-e)}
		}
	}
	return nil
}
