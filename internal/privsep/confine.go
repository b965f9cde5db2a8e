package privsep

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ConfineBinder puts the binder's filter in force and makes the process
// opaque to others of its uid: the dispatcher has the same one.
func ConfineBinder() error {
	if err := settle("socketbox"); err != nil {
		return err
	}
	return BinderFilter().Install()
}

// ConfineDispatcher takes everything from this process that moving
// connections does not need. It can't be undone.
func ConfineDispatcher() error {
	if err := settle("socketbox"); err != nil {
		return err
	}
	if err := RestrictAll(); err != nil {
		return err
	}
	return DispatcherFilter(os.Getpid()).Install()
}

// settle names the process (an exec by descriptor leaves a number) and
// forbids core dumps and ptrace by its uid; exec resets the latter.
func settle(name string) error {
	b := append([]byte(name), 0)
	if err := unix.Prctl(unix.PR_SET_NAME, addressOf(b), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_NAME: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	return nil
}
