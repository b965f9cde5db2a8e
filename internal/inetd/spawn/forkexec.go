package spawn

import (
	"bytes"
	"errors"
	"syscall"
)

// forker starts children by syscall.ForkExec: for architectures without the
// assembly and kernels without the clone. It has no way to set a nice value or
// limits in the child.
type forker struct {
	command Command
	base    []string
	attr    syscall.ProcAttr
}

func newForker(c Command, base []string, nullFD int) (*forker, error) {
	if c.Nice != nil || len(c.Limits) > 0 {
		return nil, errNoLimits
	}
	f := &forker{command: c, base: base}
	f.attr = syscall.ProcAttr{Dir: c.Dir, Files: []uintptr{0, 0, 2}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if c.Stderr == StderrNull {
		f.attr.Files[2] = uintptr(nullFD)
	}
	if u := c.User; u != nil {
		f.attr.Sys.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	return f, nil
}

func (f *forker) start(socket int, vars []byte) (int, Launch, error) {
	f.attr.Files[0], f.attr.Files[1] = uintptr(socket), uintptr(socket)
	if f.command.Stderr == StderrSocket {
		f.attr.Files[2] = uintptr(socket)
	}
	f.attr.Env = append([]string(nil), f.base...)
	for v := range bytes.SplitSeq(bytes.TrimSuffix(vars, []byte{0}), []byte{0}) {
		f.attr.Env = append(f.attr.Env, string(v))
	}
	pid, err := syscall.ForkExec(f.command.Path, f.command.Args, &f.attr)
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		return 0, nil, &StepError{Step: "execute", Path: f.command.Path, Err: errno}
	}
	return pid, gone{}, nil
}

// errNoLimits is told at start, not for each child.
var errNoLimits = noLimitsError{}

type noLimitsError struct{}

func (noLimitsError) Error() string {
	return "the nice value and limits of children can't be set on this kernel or processor"
}

// Hint names the programs that can.
func (noLimitsError) Hint() string {
	return "leave out --nice and --rlimit, and write it into the command: -- nice -n 5 prlimit --nofile=256 command"
}

// gone is the Launch of a child that is there already.
type gone struct{}

func (gone) Gone() bool { return true }
func (gone) Err() error { return nil }
func (gone) Release()   {}
