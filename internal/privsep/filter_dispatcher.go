package privsep

import (
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// ControlFD is the dispatcher's end of the pair that connects it with the
// binder: the first that os/exec passes on.
const ControlFD = 3

// DispatcherFilter is all that the dispatcher pid can do; anything else kills
// the process. There is no socket, connect, bind, listen, open or exec in it.
func DispatcherFilter(pid int) Filter {
	return Filter{
		Name:   "dispatcher",
		Listed: seccomp.ActAllow,
		Other:  seccomp.ActKillProcess,
		Rules:  append(workRules(), runtimeRules(uint64(pid))...),
	}
}

// workRules are the calls of the dispatcher's own code, one line each.
func workRules() []Rule {
	const sendFlags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	const recvFlags = unix.MSG_DONTWAIT | unix.MSG_CMSG_CLOEXEC
	return []Rule{
		{Call: "accept4", Why: "worker.accept"}, // no condition: so the kernel need not run the filter for it
		{Call: "sendmsg", If: []Arg{{Index: 2, Value: sendFlags}}, Why: "fdpass.Packet.Send, fdpass.Send: MSG_FASTOPEN would connect"},
		{Call: "sendmmsg", If: []Arg{{Index: 3, Value: sendFlags}}, Why: "fdpass.Burst.Send, as sendmsg"},
		{Call: "recvmsg", If: []Arg{{Index: 0, Value: ControlFD}, {Index: 2, Value: recvFlags}}, Why: "worker.readControl"},
		{Call: "getsockname", Why: "listener.localAddress"},
		{Call: "getsockopt", If: []Arg{{Index: 1, Value: unix.IPPROTO_TCP}, {Index: 2, Value: unix.TCP_INFO}}, Why: "worker.queued"},
		{Call: "getsockopt", If: []Arg{{Index: 1, Value: unix.SOL_SOCKET}, {Index: 2, Value: unix.SO_COOKIE}}, Why: "worker.cookieOf: sessions that a rule limits"},
		{Call: "setsockopt", If: []Arg{{Index: 1, Value: unix.SOL_IPV6}, {Index: 2, Value: unix.IPV6_ADDRFORM}}, Why: "worker.unmap"},
		{Call: "setsockopt", If: []Arg{{Index: 1, Value: unix.SOL_SOCKET}, {Index: 2, Value: unix.SO_LINGER}}, Why: "worker.reset"},
		{Call: "close", Why: "worker: a connection that was sent, a listener that was removed"},
		{Call: "epoll_ctl", Why: "worker.watch"},
		{Call: "epoll_pwait", Why: "worker.wait"},
		{Call: "epoll_wait", Why: "worker.wait"},
		{Call: "write", Why: "log lines on stderr"},
		{Call: "fstat", Why: "privsep.ReadFile: a table's size"},
		{Call: "fcntl", If: []Arg{{Index: 1, Value: unix.F_GET_SEALS}}, Why: "counters: the file can't shrink under the mapping"},
		{Call: "exit_group", Why: "end of file from the binder"},
	}
}

// runtimeRules are the calls that the Go runtime and libc make at any hour.
func runtimeRules(pid uint64) []Rule {
	const noExec = unix.PROT_EXEC
	thread := uint64(unix.CLONE_THREAD)
	return []Rule{
		{Call: "futex", Why: "locks, parked threads"},
		{Call: "nanosleep", Why: "runtime.usleep in sysmon"},
		{Call: "clock_nanosleep", Why: "libc's nanosleep"},
		{Call: "clock_gettime", Why: "time, where the vDSO has no clock source"},
		{Call: "gettimeofday", Why: "as clock_gettime"},
		{Call: "sched_yield", Why: "runtime.osyield"},
		{Call: "sched_getaffinity", Why: "libc, thread start"},
		{Call: "rt_sigreturn", Why: "return from a handler"},
		{Call: "rt_sigprocmask", Why: "thread start and end"},
		{Call: "rt_sigaction", Why: "runtime, signal set-up"},
		{Call: "sigaltstack", Why: "thread start and end"},
		{Call: "getpid", Why: "runtime.signalM"},
		{Call: "gettid", Why: "thread start"},
		{Call: "tgkill", If: []Arg{{Index: 0, Value: pid}}, Why: "preemption; of this process alone"},
		{Call: "restart_syscall", Why: "a wait that a stop signal interrupted"},
		{Call: "prlimit64", If: []Arg{{Index: 0, Value: 0}}, Why: "libc, thread stacks; of this process alone"},
		{Call: "madvise", Why: "heap given back"},
		{Call: "mmap", If: []Arg{{Index: 2, Mask: noExec, Value: 0}}, Why: "heap, thread stacks, counters"},
		{Call: "mprotect", If: []Arg{{Index: 2, Mask: noExec, Value: 0}}, Why: "libc, guard pages"},
		{Call: "munmap", Why: "heap, thread stacks"},
		{Call: "brk", Why: "libc's malloc"},
		{Call: "pread64", Why: "the runtime re-reads the cgroup's CPU limit; privsep.ReadFile"},
		{Call: "read", Why: "netpoller's eventfd"},
		{Call: "eventfd2", Why: "netpoller, first use"},
		{Call: "epoll_create1", Why: "netpoller, first use"},
		{Call: "clone", If: []Arg{{Index: 0, Mask: thread, Value: thread}}, Why: "threads, never processes"},
		{Call: "clone3", Errno: unix.ENOSYS, Why: "its flags can't be filtered; libc falls back to clone"},
		{Call: "openat", Errno: unix.ENOENT, Why: "libc looks for /sys/devices/system/cpu/online when a thread starts"},
		{Call: "rseq", Why: "libc, thread start"},
		{Call: "set_robust_list", Why: "libc, thread start"},
		{Call: "exit", Why: "thread end"},
	}
}
