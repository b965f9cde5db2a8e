package spawn

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Stderr says where the children's descriptor 2 goes.
type Stderr int

const (
	StderrInherit Stderr = iota // where our own goes
	StderrSocket                // to the client
	StderrNull                  // nowhere
)

// Credential is who a child becomes. It takes root to become somebody else.
type Credential struct {
	UID, GID uint32
	Groups   []uint32 // supplementary groups, may be empty
}

// Limit is a resource limit of the children (setrlimit(2)).
type Limit struct {
	Resource int // unix.RLIMIT_NOFILE, ...
	unix.Rlimit
}

// Command is what every child executes, and as what.
type Command struct {
	Path   string   // an absolute path, or one that is relative to Dir
	Args   []string // with argv[0]
	Dir    string   // working directory, entered as the new user; "" keeps ours
	User   *Credential
	Nice   *int // nice value, -20..19; nil keeps ours
	Limits []Limit
	Stderr Stderr
}

// StepError says which step on the way to the program failed.
type StepError struct {
	Step string // "setresuid", "execve", ...
	Path string // what the step was about, may be empty
	Err  unix.Errno
}

func (e *StepError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("%s: %v", e.Step, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Step, e.Path, e.Err)
}

func (e *StepError) Unwrap() error { return e.Err }

// Transient tells whether the same step may work a moment later: the machine
// is short of processes, memory or descriptors, or the program is just being
// written by an upgrade.
func (e *StepError) Transient() bool {
	switch e.Err {
	case unix.EAGAIN, unix.ENOMEM, unix.ENFILE, unix.EMFILE, unix.ETXTBSY, unix.EINTR:
		return true
	}
	return false
}
