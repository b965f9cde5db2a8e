// Package isolate takes from a daemon, before it is executed, the ways by
// which a socket that was passed to it leads into the listener's network
// namespace. It is what `socketbox-launch --isolate` does, for daemons behind
// a binder without a guard; the guard (package privsep) closes more.
//
// What it closes, per cure:
//
//   - Landlock: connect(2) of a TCP socket, but to Options.AllowConnect; Strict
//     also bind(2), but to Options.AllowBind. Neither MPTCP sockets nor a port
//     that listen(2) takes by itself.
//   - seccomp: MSG_FASTOPEN of sendto, sendmsg and sendmmsg (EOPNOTSUPP), which
//     connects without asking Landlock; io_uring_setup
//     (ENOSYS), whose requests no filter sees; ioctl SIOCGSKNS (EPERM), which
//     opens the network namespace of a socket. System calls of another ABI
//     (32-bit, x32) get ENOSYS: their arguments can't be looked at.
//   - capabilities NET_ADMIN, SYS_ADMIN, SYS_PTRACE: from all sets.
//
// Privilege: runs as its caller, in a process that executes the daemon next.
// No cgo: the launcher is static.
package isolate
