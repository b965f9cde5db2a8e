// Command shed is a test program of privsep: started as root, it sheds that by exec
// and then, with no privilege left, prints what it has become.
package main

import (
	"fmt"
	"os"
	"strconv"

	"socketbox/internal/privsep"
)

func main() {
	if role, ok := privsep.RoleOf(os.Args); ok && role == privsep.Binder {
		fail(after())
		return
	}
	os.Setenv("SHED_PID", strconv.Itoa(os.Getpid()))
	fail(privsep.Reexec(privsep.Binder, privsep.Identity{UID: 65534, GID: 65534}, []byte("hello"), []int{1}))
}

func after() error {
	state, fds, err := privsep.TakeState()
	if err != nil {
		return err
	}
	if err := privsep.ConfineBinder(); err != nil {
		return err
	}
	if err := privsep.Verify(0, privsep.Expectation{NonRoot: true, Bounding: true, Seccomp: true}); err != nil {
		return err
	}
	kept := "changed"
	if os.Getenv("SHED_PID") == strconv.Itoa(os.Getpid()) {
		kept = "kept"
	}
	_, err = fmt.Fprintf(os.NewFile(uintptr(fds[0]), "out"), "state of %d bytes, %d descriptors, pid %s\n", len(state), len(fds), kept)
	return err
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
