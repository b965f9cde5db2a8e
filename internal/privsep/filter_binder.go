package privsep

import (
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// namespaceFlags are the flags of clone(2) that make namespaces.
var namespaceFlags = []uint64{
	unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC,
	unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET,
}

// BinderFilter is what the binder, and all that it starts, can't do. It is a
// deny-list answered with EPERM: filters survive exec and only add up, and the
// allow-list is the dispatcher's alone.
func BinderFilter() Filter {
	rules := deny("gain another identity",
		"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset")
	rules = append(rules, deny("enter or make namespaces", "unshare", "setns", "chroot", "pivot_root")...)
	rules = append(rules, deny("change what is mounted",
		"mount", "umount2", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "swapon", "swapoff", "quotactl")...)
	rules = append(rules, deny("look into or steer other processes",
		"ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise")...)
	rules = append(rules, deny("reach wide or seldom audited parts of the kernel",
		"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
		"add_key", "request_key", "keyctl", "open_by_handle_at", "name_to_handle_at", "personality", "acct", "syslog", "vhangup", "mknod", "mknodat")...)
	rules = append(rules, deny("change the machine",
		"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "iopl", "ioperm",
		"settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "sethostname", "setdomainname")...)
	for _, flag := range namespaceFlags {
		rules = append(rules, Rule{Call: "clone", If: []Arg{{Index: 0, Mask: flag, Value: flag}}, Why: "make namespaces"})
	}
	rules = append(rules, Rule{Call: "clone3", Errno: unix.ENOSYS, Why: "its flags can't be filtered; libc falls back to clone"})
	return Filter{
		Name:   "binder",
		Listed: seccomp.ActErrno.SetReturnCode(int16(unix.EPERM)),
		Other:  seccomp.ActAllow,
		Rules:  rules,
	}
}

func deny(why string, calls ...string) []Rule {
	rules := make([]Rule, len(calls))
	for i, call := range calls {
		rules[i] = Rule{Call: call, Why: why}
	}
	return rules
}
