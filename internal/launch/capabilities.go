package launch

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilityNames are the names of capabilities(7) by number, without "cap_".
var capabilityNames = []string{
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "linux_immutable",
	"net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot",
	"sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease",
	"audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read",
	"perfmon", "bpf", "checkpoint_restore",
}

// ParseCapability reads a name of capabilities(7), with or without "cap_", in
// either case.
func ParseCapability(text string) (uint, error) {
	name := strings.TrimPrefix(strings.ToLower(text), "cap_")
	if n := slices.Index(capabilityNames, name); n >= 0 {
		return uint(n), nil
	}
	return 0, fmt.Errorf("capability %q: no such name; see capabilities(7)", text)
}

// capabilitySet is a set of capabilities, one bit each.
type capabilitySet uint64

func (s capabilitySet) has(c uint) bool { return s>>c&1 != 0 }

func setOf(caps []uint) (s capabilitySet) {
	for _, c := range caps {
		s |= 1 << c
	}
	return s
}

// lastCapability returns the highest capability that this kernel knows.
func lastCapability() uint {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	n, err2 := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 6)
	if err != nil || err2 != nil {
		return uint(len(capabilityNames) - 1)
	}
	return uint(n)
}

// capabilities are the three sets of capget(2), of this thread.
type capabilities struct{ effective, permitted, inheritable capabilitySet }

func getCapabilities() (c capabilities, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return c, os.NewSyscallError("capget", err)
	}
	join := func(low, high uint32) capabilitySet { return capabilitySet(low) | capabilitySet(high)<<32 }
	c.effective = join(data[0].Effective, data[1].Effective)
	c.permitted = join(data[0].Permitted, data[1].Permitted)
	c.inheritable = join(data[0].Inheritable, data[1].Inheritable)
	return c, nil
}

// set sets this thread's sets, and no other thread's.
func (c capabilities) set() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i, shift := range []uint{0, 32} {
		data[i].Effective = uint32(c.effective >> shift)
		data[i].Permitted = uint32(c.permitted >> shift)
		data[i].Inheritable = uint32(c.inheritable >> shift)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return os.NewSyscallError("capset", errno)
	}
	return nil
}

// hasCapability tells whether this thread has c in effect.
func hasCapability(c uint) bool {
	sets, err := getCapabilities()
	return err == nil && sets.effective.has(c)
}
