package privsep

import (
	"errors"
	"fmt"

	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// Rule is one line of a filter: a system call, the conditions on its
// arguments that must all hold, and who needs it (or what it would allow).
type Rule struct {
	Call string
	If   []Arg
	Why  string
	// Errno, where not 0, is the answer instead of the list's usual one.
	Errno unix.Errno
}

// Arg is a condition on one argument of a system call, compared as the kernel
// sees it: argument & Mask == Value (Mask 0 compares all bits).
type Arg struct {
	Index uint
	Mask  uint64
	Value uint64
}

// Filter is a list of rules and what happens to calls that match (Listed) and
// to those that don't (Other).
type Filter struct {
	Name   string
	Listed seccomp.ScmpAction
	Other  seccomp.ScmpAction
	Rules  []Rule
}

// minAPI is the libseccomp API level with TSYNC: below it a filter would bind
// the calling thread alone, and libseccomp-golang would not say so.
const minAPI = 2

// Install puts the filter in force for every thread of this process. It can't
// be undone, and is inherited by children through exec.
func (f Filter) Install() error {
	if level, err := seccomp.GetAPI(); err != nil || level < minAPI {
		return fmt.Errorf("install seccomp filter %s: libseccomp API level %d, at least %d needed: %w", f.Name, level, minAPI, errors.Join(err, unix.ENOSYS))
	}
	built, err := f.build()
	if err != nil {
		return fmt.Errorf("build seccomp filter %s: %w", f.Name, err)
	}
	defer built.Release()
	if err := built.Load(); err != nil {
		return fmt.Errorf("install seccomp filter %s: %w", f.Name, err)
	}
	return nil
}

func (f Filter) build() (*seccomp.ScmpFilter, error) {
	built, err := seccomp.NewFilter(f.Other)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		built.SetNoNewPrivsBit(true),
		built.SetOptimize(2), // a binary tree, not a line of comparisons
		built.SetBadArchAction(seccomp.ActKillProcess),
	); err != nil {
		return nil, err
	}
	for _, r := range f.Rules {
		if err := f.add(built, r); err != nil {
			return nil, fmt.Errorf("%s: %w", r.Call, err)
		}
	}
	return built, nil
}

func (f Filter) add(built *seccomp.ScmpFilter, r Rule) error {
	call, err := seccomp.GetSyscallFromName(r.Call)
	if err != nil {
		return err
	}
	action := f.Listed
	if r.Errno != 0 {
		action = seccomp.ActErrno.SetReturnCode(int16(r.Errno))
	}
	if len(r.If) == 0 {
		return built.AddRule(call, action)
	}
	var conditions []seccomp.ScmpCondition
	for _, a := range r.If {
		c, err := a.condition()
		if err != nil {
			return err
		}
		conditions = append(conditions, c)
	}
	return built.AddRuleConditional(call, action, conditions)
}

func (a Arg) condition() (seccomp.ScmpCondition, error) {
	if a.Mask == 0 {
		return seccomp.MakeCondition(a.Index, seccomp.CompareEqual, a.Value)
	}
	return seccomp.MakeCondition(a.Index, seccomp.CompareMaskedEqual, a.Mask, a.Value)
}
