package listen

import (
	"golang.org/x/sys/unix"
)

// Namespace returns the inode of the network namespace that the socket fd
// belongs to, as `ls -Li /run/netns` and lsns(8) show it; 0 if that can't be
// told: with CAP_NET_ADMIN there it always can, without it only where the
// namespace is this process's own.
func Namespace(fd int) uint64 {
	if ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS); err == nil {
		defer unix.Close(ns)
		return inodeOf(func(st *unix.Stat_t) error { return unix.Fstat(ns, st) })
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil || cookie != ownCookie() {
		return 0
	}
	return OwnNamespace()
}

// OwnNamespace returns the inode of this process's network namespace.
func OwnNamespace() uint64 {
	return inodeOf(func(st *unix.Stat_t) error { return unix.Stat("/proc/self/ns/net", st) })
}

func inodeOf(stat func(*unix.Stat_t) error) uint64 {
	var st unix.Stat_t
	if stat(&st) != nil {
		return 0
	}
	return st.Ino
}

// ownCookie returns the cookie of this process's network namespace, 0 if the
// kernel (before 5.14) has none.
func ownCookie() uint64 {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}
