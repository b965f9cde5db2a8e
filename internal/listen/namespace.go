package listen

import (
	"fmt"
	"os"

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
	if !inOwnNamespace(fd) {
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

// NamespaceCookie returns another number of the network namespace that the
// socket fd belongs to, which anybody may ask for (SO_NETNS_COOKIE, Linux 5.14); 0
// if the kernel has none.
func NamespaceCookie(fd int) uint64 {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

func inOwnNamespace(fd int) bool {
	own, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(own)
	cookie := NamespaceCookie(fd)
	return cookie != 0 && cookie == NamespaceCookie(own)
}

// InNamespaceOf runs do in the network namespace that the socket fd belongs to, on
// a thread that is thrown away afterwards. Another one than the caller's own takes
// CAP_NET_ADMIN there (to find it, SIOCGSKNS) and CAP_SYS_ADMIN there (to enter
// it, setns(2)).
func InNamespaceOf(fd int, do func() error) error {
	if inOwnNamespace(fd) {
		return do()
	}
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return fmt.Errorf("find the network namespace of a socket: %w", os.NewSyscallError("ioctl SIOCGSKNS", err))
	}
	defer unix.Close(ns)
	return onLostThread(func() error {
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace of a socket: %w", os.NewSyscallError("setns", err))
		}
		return do()
	})
}
