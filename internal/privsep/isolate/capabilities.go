package isolate

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// dropCaps takes caps from all five sets of the calling thread. The bounding
// set keeps a program with file capabilities, or uid 0, from getting them back
// at exec; only who has CAP_SETPCAP can change it, and who has not gets nothing
// back, since no_new_privs is set.
func dropCaps(caps []uint) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for _, c := range caps {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && err != unix.EPERM {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_LOWER, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("drop ambient capability %d: %w", c, err)
		}
		mask := ^(uint32(1) << (c % 32))
		set := &sets[c/32]
		set.Effective &= mask
		set.Permitted &= mask
		set.Inheritable &= mask
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
