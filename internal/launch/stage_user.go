package launch

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// becomeUser changes user and capabilities of this thread. Raw system calls:
// the wrappers ask all threads, and nothing that the others are counts after
// the exec.
func (s *stage) becomeUser() error {
	if s.DropCaps {
		if err := s.dropBounding(); err != nil {
			return err
		}
	}
	if s.User != nil {
		if err := s.changeIDs(); err != nil {
			return err
		}
	}
	return s.capabilities()
}

// dropBounding leaves nothing in the bounding set but what is to be kept: no
// exec gives anything else, to root neither.
func (s *stage) dropBounding() error {
	for c := range lastCapability() + 1 {
		if s.KeepCaps.has(c) {
			continue
		}
		if has, _ := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); has != 1 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if err == unix.EPERM && s.User == nil && unix.Geteuid() != 0 {
			continue // an ordinary user has none that the exec could give back
		}
		if err != nil {
			return fmt.Errorf("drop capability %s: %w", capabilityNames[c], err)
		}
	}
	return nil
}

func (s *stage) changeIDs() error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_KEEPCAPS", err)
	}
	u := s.User
	groups := append(append([]uint32(nil), u.Groups...), 0) // so that there is an address
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(u.Groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
	if errno != 0 {
		return changeError(u.UID, u.GID, "setgroups", errno)
	}
	if _, _, errno = unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); errno != 0 {
		return changeError(u.UID, u.GID, "setresgid", errno)
	}
	if _, _, errno = unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); errno != 0 {
		return changeError(u.UID, u.GID, "setresuid", errno)
	}
	return nil
}

func changeError(uid, gid uint32, call string, errno unix.Errno) error {
	hint := "only root may become somebody else"
	if errno == unix.EINVAL {
		hint = "that id is not in the user namespace: give it one by --map-root with /etc/subuid, /etc/subgid and newuidmap, or by --uid-map and --gid-map"
	}
	return &handoff.HintError{Err: fmt.Errorf("become uid %d, gid %d: %s: %w", uid, gid, call, errno), Text: hint}
}

// capabilities leaves this thread with what the daemon shall have after the
// exec. Root gets by exec what the bounding set has; anybody else what is in
// the ambient set, which therefore must not have what was for the stage alone.
func (s *stage) capabilities() error {
	sets, err := getCapabilities()
	if err != nil {
		return err
	}
	keep := s.KeepCaps
	if missing := keep &^ sets.permitted; missing != 0 {
		return fmt.Errorf("keep capability %s: we don't have it", missing.first())
	}
	given := s.Mapped || s.User != nil || s.DropCaps
	if given {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl PR_CAP_AMBIENT_CLEAR_ALL", err)
		}
		sets.inheritable = keep
	}
	sets.inheritable |= keep
	if s.DropCaps {
		sets.permitted, sets.effective = keep, keep
	}
	if given || keep != 0 {
		if err := sets.set(); err != nil {
			return err
		}
	}
	for c := range lastCapability() + 1 {
		if keep.has(c) {
			if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
				return fmt.Errorf("keep capability %s: %w", capabilityNames[c], err)
			}
		}
	}
	return nil
}

// first names one capability of a set that is not empty.
func (s capabilitySet) first() string {
	for c, name := range capabilityNames {
		if s.has(uint(c)) {
			return name
		}
	}
	return fmt.Sprintf("%#x", uint64(s))
}
